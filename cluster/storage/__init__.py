"""Object storage: S3's API for everything that lasts, and the manifest protocol on top of it.

``object_store()`` gives this process's bucket, ``ArtifactStore`` the artifacts in it. Importing this package
loads neither boto3 nor pyarrow: they come with the first request.
"""

from cluster.storage.artifacts import PARTS, ArtifactStore, fingerprint
from cluster.storage.attempt import Attempt
from cluster.storage.client import ObjectStore, StoredObject, object_store
from cluster.storage.digest import canonical_json, merge_row_digests, row_digest, rows_digest
from cluster.storage.environment import storage_environment

__all__ = [
    "PARTS",
    "ArtifactStore",
    "Attempt",
    "ObjectStore",
    "StoredObject",
    "canonical_json",
    "fingerprint",
    "merge_row_digests",
    "object_store",
    "row_digest",
    "rows_digest",
    "storage_environment",
]
