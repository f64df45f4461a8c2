"""The manifest protocol: an artifact is visible if, and only if, its manifest exists.

::

    <team>/<kind>/<name>/<fingerprint>/attempts/<run id>/...   files of one attempt, seen by nobody
    <team>/<kind>/<name>/<fingerprint>/manifest.json           one conditional put decides the winner

Readers take the files that the manifest names and no others, so that a late writer of a won attempt
changes nothing. Files of lost and killed attempts stay until ``manta gc`` collects them.
"""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from cluster.contracts import ArtifactRef, Manifest, Principal, Tombstone
from cluster.errors import NotFoundError, RefusedError, UsageError
from cluster.storage.attempt import ATTEMPTS, MANIFEST, Attempt, read_record, told_erased
from cluster.storage.client import ObjectStore
from cluster.storage.digest import canonical_json
from cluster.storage.paths import join

#: File in which an artifact names the parts that it was made of: a JSON list of addresses.
PARTS = "parts.json"
_READERS = 8


def fingerprint(
    kind: str, configuration: Mapping[str, Any], input_digests: Iterable[str], code_epoch: int
) -> str:
    """First 16 hex digits of SHA-256 over what decides an artifact's content.

    :param configuration: only what has meaning: leave out worker counts, labels and addresses of inputs.
    :param input_digests: the inputs' data digests, in an order that the caller keeps.
    :param code_epoch: the verb's declared epoch; it rises when equal inputs shall give another result.
    """
    whole = {
        "kind": kind,
        "configuration": configuration,
        "inputs": list(input_digests),
        "code_epoch": code_epoch,
    }
    return hashlib.sha256(canonical_json(whole)).hexdigest()[:16]


class ArtifactStore:
    """The artifacts in one bucket. Safe to share between threads."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    # Finding

    def find(self, ref: ArtifactRef) -> Manifest | None:
        """The artifact's manifest; None if nothing is there.

        Raises RefusedError if it was erased, or if its manifest cannot be understood.
        """
        found = self._record(ref)
        if isinstance(found, Tombstone):
            raise RefusedError(told_erased(found))
        return found

    def open(self, address: str | ArtifactRef) -> Manifest:
        """The manifest at an address (``team/kind/name/fingerprint``, with or without ``s3://bucket/``).

        Raises UsageError for what is no address, NotFoundError if it has no manifest, RefusedError if it was
        erased.
        """
        ref = address if isinstance(address, ArtifactRef) else self._parse(address)
        manifest = self.find(ref)
        if manifest is None:
            raise NotFoundError(
                f"There is no artifact {ref} in s3://{self.store.bucket} (no manifest): its job has not"
                " finished, or the address is wrong."
            )
        return manifest

    def latest(self, team: str, kind: str, name: str) -> Manifest | None:
        """The artifact of that name whose commit is the newest; None if there is none."""
        return max(self.list(team, kind, name), key=lambda manifest: manifest.ended_at, default=None)

    def list(
        self, team: str | None = None, kind: str | None = None, name: str | None = None
    ) -> Iterator[Manifest]:
        """All visible artifacts that fit, in the order of their addresses; erased ones are left out."""
        refs = self.refs(team, kind, name)
        with ThreadPoolExecutor(_READERS, thread_name_prefix="manifests") as pool:
            for found in pool.map(self._record, refs):
                if isinstance(found, Manifest):
                    yield found

    def refs(
        self, team: str | None = None, kind: str | None = None, name: str | None = None
    ) -> Iterator[ArtifactRef]:
        """All addresses that fit under which anything stands, be it visible, erased or only tried."""
        return self._refs("", [team, kind, name, None])

    def lineage(self, address: str | ArtifactRef) -> builtins.list[Manifest]:
        """The artifact and everything that it was made from, nearest first, each once.

        Outside sources are found in the manifests' ``inputs``; erased ancestors end their branch.
        Raises as :meth:`open` for the address itself.
        """
        found = [self.open(address)]
        seen = {found[0].ref}
        for manifest in found:  # It grows while we walk: breadth first.
            for ref in artifact_inputs(manifest):
                if ref not in seen:
                    seen.add(ref)
                    parent = self._record(ref)
                    if isinstance(parent, Manifest):
                        found.append(parent)
        return found

    # Reading

    def prefix(self, manifest: Manifest) -> str:
        """The key prefix of the winning attempt, ending in ``/``."""
        return f"{manifest.ref}/{ATTEMPTS}/{manifest.run_id}/"

    def uri(self, manifest: Manifest, path: str = "") -> str:
        """``s3://bucket/...`` of the winning attempt, or of a path in it."""
        return self.store.uri(self.prefix(manifest) + path)

    def uris(self, manifest: Manifest, under: str = "", suffix: str = "") -> builtins.list[str]:
        """The addresses of exactly those files that the manifest names below ``under``, sorted.

        Give these to Ray Data rather than a folder: a folder may hold what a late writer left.
        """
        start = join(under, "") if under else ""
        paths = (entry.path for entry in manifest.files)
        return [
            self.uri(manifest, path)
            for path in sorted(paths)
            if path.startswith(start) and path.endswith(suffix)
        ]

    def read(self, manifest: Manifest, path: str) -> bytes:
        """One file of the artifact, checked against the manifest.

        Raises NotFoundError if the manifest does not name it, RefusedError if its bytes have changed.
        """
        entry = next((entry for entry in manifest.files if entry.path == path), None)
        if entry is None:
            raise NotFoundError(
                f"Artifact {manifest.ref} has no file {path!r}: its manifest names every file."
            )
        data = self.store.get(self.prefix(manifest) + path)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise RefusedError(f"Artifact {manifest.ref} is damaged: {path} differs from its checksum.")
        return data

    def verify(self, manifest: Manifest) -> None:
        """Read every file and compare size and SHA-256. Raises RefusedError that names what differs."""

        def fault(item: tuple[str, int, str]) -> str | None:
            path, size, sha256 = item
            try:
                found, found_size = self.store.sha256(self.prefix(manifest) + path)
            except NotFoundError:
                return f"{path} is missing"
            if found_size != size:
                return f"{path} has {found_size} bytes instead of {size}"
            return None if found == sha256 else f"{path} differs from its checksum"

        items = [(entry.path, entry.bytes, entry.sha256) for entry in manifest.files]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="verify") as pool:
            faults = [said for said in pool.map(fault, items) if said]
        if faults:
            more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise RefusedError(f"Artifact {manifest.ref} is damaged: {'; '.join(faults[:5])}{more}.")

    # Writing

    def attempt(self, ref: ArtifactRef, run_id: str) -> Attempt:
        """A place to write under. Equal run ids find the same place again, so that a run can resume."""
        return Attempt(self.store, ref, run_id)

    def erase(self, ref: ArtifactRef, by: Principal, reason: str) -> Tombstone:
        """Put a tombstone in the manifest's place, then delete every file of every attempt.

        Readers and writers are refused from the first step on; if it is interrupted, calling it again
        finishes the deletion and returns the first tombstone. Older versions of objects, where a bucket keeps
        them, are the bucket's own matter. Raises NotFoundError if there is no such artifact.
        """
        found = self._record(ref)
        if found is None:
            raise NotFoundError(f"There is no artifact {ref} in s3://{self.store.bucket}: nothing to erase.")
        if isinstance(found, Manifest):
            found = Tombstone(ref=ref, erased_by=by, erased_at=datetime.now(UTC), reason=reason)
            self.store.put(f"{ref}/{MANIFEST}", found.model_dump_json(indent=1).encode())
        self.store.delete(item.key for item in self.store.list(f"{ref}/{ATTEMPTS}/"))
        return found

    # Inside

    def _record(self, ref: ArtifactRef) -> Manifest | Tombstone | None:
        return read_record(self.store, ref)

    def _parse(self, address: str) -> ArtifactRef:
        try:
            return ArtifactRef.parse(self.store.key(address))
        except ValueError:
            raise UsageError(
                f"{address!r} is no artifact address: write <team>/<kind>/<name>/<16 hex digits>."
            ) from None

    def _refs(self, prefix: str, parts: builtins.list[str | None]) -> Iterator[ArtifactRef]:
        """Walk the four levels of addresses; what does not look like one is not an artifact."""
        if not parts:
            try:
                yield ArtifactRef.parse(prefix)
            except ValueError:
                return
            return
        names = [parts[0]] if parts[0] is not None else self.store.folders(prefix)
        for name in names:
            yield from self._refs(f"{prefix}{name}/", parts[1:])


def artifact_inputs(manifest: Manifest) -> Iterator[ArtifactRef]:
    """Those of the manifest's inputs that are artifacts themselves."""
    for item in manifest.inputs:
        try:
            yield ArtifactRef.parse(item.address)
        except ValueError:
            continue
