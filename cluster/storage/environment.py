"""The one place that says where object storage is: what boto3, pyarrow, MLflow and Ray each read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from cluster.errors import UsageError
from cluster.settings import load_settings

#: Passed on as they are, so that temporary keys, IAM roles for Kubernetes and AWS profiles work too.
_PASSED_ON = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CA_BUNDLE",
    "AWS_ENDPOINT_URL",
    "AWS_EC2_METADATA_DISABLED",
)


@dataclass(frozen=True)
class Endpoint:
    """Where the S3 API answers."""

    url: str | None
    region: str

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return urlsplit(self.url).scheme if self.url else "https"

    @property
    def host(self) -> str | None:
        """``host:port``, without scheme; None for AWS itself."""
        return urlsplit(self.url).netloc if self.url else None

    def __str__(self) -> str:
        """For messages: without a password that a URL may hold."""
        if self.url is None:
            return f"AWS S3 ({self.region})"
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def endpoint(environ: Mapping[str, str] | None = None) -> Endpoint:
    """Read AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, and AWS_DEFAULT_REGION or AWS_REGION.

    Raises UsageError when the URL is none.
    """
    env = os.environ if environ is None else environ
    url = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or None
    region = env.get("AWS_DEFAULT_REGION") or env.get("AWS_REGION") or "us-east-1"
    found = Endpoint(url.rstrip("/") if url else None, region)
    if url and (found.scheme not in ("http", "https") or not found.host):
        raise UsageError(
            f"AWS_ENDPOINT_URL={found}: not the address of an S3 server; write it as http://host:port."
        )
    return found


def storage_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables from which boto3, pyarrow, MLflow and Ray all find the same storage.

    boto3 reads AWS_DEFAULT_REGION, pyarrow and the AWS SDK for C++ read AWS_REGION, MLflow has an endpoint
    variable of its own, and Ray hands to its workers what is set before it starts. So set all of this before
    ``ray start``, and in the environment of every process outside the cluster.

    :param environ: where to read from; this process's environment if absent.
    :return: name to value; it contains the secret key, so never log it.
    """
    env = os.environ if environ is None else environ
    found = endpoint(env)
    result = {name: env[name] for name in _PASSED_ON if env.get(name)}
    result |= {
        "AWS_DEFAULT_REGION": found.region,
        "AWS_REGION": found.region,
        "MANTA_STORAGE__BUCKET": load_settings().storage.bucket,
    }
    if found.url:
        result |= {"AWS_ENDPOINT_URL_S3": found.url, "MLFLOW_S3_ENDPOINT_URL": found.url}
        if "AWS_ACCESS_KEY_ID" in result:
            # With keys given, nobody needs to wait for a cloud's metadata service that is not there.
            result.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    return result
