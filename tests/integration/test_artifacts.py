"""The manifest protocol against the real S3 server."""

import hashlib
import json
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from cluster.contracts import ArtifactInput, ArtifactRef, Manifest
from cluster.errors import NotFoundError, RefusedError, UsageError
from cluster.storage import fingerprint

pytestmark = pytest.mark.integration


@pytest.fixture
def ref(team):
    return ArtifactRef(
        team=team, kind="dataset", name="demo", fingerprint=fingerprint("dataset", {"a": 1}, [], 1)
    )


@pytest.fixture
def commit(owner, code):
    """Commit with what a test does not care about filled in."""

    def act(attempt, **given):
        given = {"configuration": {"a": 1}, "started_at": datetime.now(UTC)} | given
        return attempt.commit(owner=owner, code=code, **given)

    return act


def test_nothing_is_visible_before_the_commit_and_everything_after(artifacts, ref, commit):
    attempt = artifacts.attempt(ref, "run-1")
    attempt.write("data/rows.txt", b"rows")
    assert artifacts.find(ref) is None
    assert artifacts.latest(ref.team, ref.kind, ref.name) is None
    assert list(artifacts.list(team=ref.team)) == []
    with pytest.raises(NotFoundError, match=f"no artifact {ref} .*no manifest"):
        artifacts.open(ref)
    manifest = commit(attempt, counts={"rows": 1}, summary={"when": datetime(2026, 1, 1, tzinfo=UTC)})
    assert manifest.run_id == "run-1"
    assert manifest.summary == {"when": "2026-01-01T00:00:00+00:00"}
    for address in (ref, str(ref), f"s3://{artifacts.store.bucket}/{ref}", artifacts.store.uri(f"{ref}/")):
        assert artifacts.open(address) == manifest
    assert artifacts.find(ref) == manifest
    assert list(artifacts.list(team=ref.team)) == [manifest]
    assert artifacts.read(manifest, "data/rows.txt") == b"rows"
    assert artifacts.store.get(artifacts.store.key(artifacts.uri(manifest, "data/rows.txt"))) == b"rows"


def test_a_run_again_finds_the_first_and_a_later_commit_gets_the_winner(artifacts, ref, commit):
    first, second = artifacts.attempt(ref, "run-1"), artifacts.attempt(ref, "run-2")
    first.write("x", b"first")
    second.write("x", b"second")
    winner = commit(first)
    assert commit(second) == winner
    assert commit(first) == winner
    assert artifacts.read(artifacts.open(ref), "x") == b"first"


def test_a_resumed_attempt_finds_and_commits_its_own_files(artifacts, ref, commit):
    artifacts.attempt(ref, "run-1").write("step-1", b"one")
    resumed = artifacts.attempt(ref, "run-1")
    assert [item.key.removeprefix(resumed.prefix) for item in resumed.files()] == ["step-1"]
    resumed.write("step-2", b"two")
    assert [entry.path for entry in commit(resumed).files] == ["step-1", "step-2"]


def test_clear_removes_a_file_a_folder_or_everything(artifacts, ref, commit):
    attempt = artifacts.attempt(ref, "run-1")
    for path in ("a/1", "a/2", "ab", "b"):
        attempt.write(path, b"x")
    attempt.clear("a")
    assert [item.key.removeprefix(attempt.prefix) for item in attempt.files()] == ["ab", "b"]
    attempt.clear("b")
    assert [entry.path for entry in commit(attempt).files] == ["ab"]
    other = artifacts.attempt(ref, "run-2")
    other.write("x", b"")
    other.clear()
    with pytest.raises(RefusedError, match="Nothing was written under s3://"):
        commit(other)


def test_checksums_of_written_uploaded_and_foreign_files(artifacts, ref, commit, tmp_path):
    attempt = artifacts.attempt(ref, "run-1")
    (tmp_path / "dir").mkdir()
    large = bytes(range(256)) * 100_000
    (tmp_path / "dir" / "large.bin").write_bytes(large)
    (tmp_path / "single").write_bytes(b"single")
    attempt.write("written", b"written")
    attempt.upload(tmp_path / "single")
    attempt.upload(tmp_path / "single", "renamed/as")
    attempt.upload(tmp_path / "dir", "folder")
    # As Ray Data does: by pyarrow, which leaves empty directory objects behind.
    table = pa.table({"row_id": ["a", "b"]})
    filesystem = artifacts.store.filesystem()
    filesystem.create_dir(f"{artifacts.store.bucket}/{attempt.prefix}rows")
    ds.write_dataset(
        table, f"{artifacts.store.bucket}/{attempt.prefix}rows", format="parquet", filesystem=filesystem
    )
    manifest = commit(attempt)
    entries = {entry.path: entry for entry in manifest.files}
    assert set(entries) == {"written", "single", "renamed/as", "folder/large.bin", "rows/part-0.parquet"}
    for path, content in (("written", b"written"), ("renamed/as", b"single"), ("folder/large.bin", large)):
        assert entries[path].sha256 == hashlib.sha256(content).hexdigest()
        assert entries[path].bytes == len(content)
    artifacts.verify(manifest)
    (uri,) = artifacts.uris(manifest, "rows", ".parquet")
    assert pq.read_table(uri) == table
    assert artifacts.uris(manifest, "row") == []


def test_data_digest_is_the_callers_or_follows_the_files(artifacts, ref, commit):
    refs = [ref.model_copy(update={"fingerprint": f"{n:016x}"}) for n in range(4)]
    made = []
    for one, content, given in zip(refs, (b"x", b"x", b"y", b"x"), (None, None, None, "d" * 64), strict=True):
        attempt = artifacts.attempt(one, "run")
        attempt.write("f", content)
        made.append(commit(attempt, data_digest=given).data_digest)
    assert made[0] == made[1] != made[2]
    assert made[3] == "d" * 64


def test_verify_and_read_see_a_changed_byte_a_lost_file_and_a_cut_one(artifacts, ref, commit):
    attempt = artifacts.attempt(ref, "run-1")
    for path in ("good", "changed", "cut", "lost"):
        attempt.write(path, b"0123456789")
    manifest = commit(attempt)
    artifacts.verify(manifest)
    artifacts.store.put(f"{attempt.prefix}changed", b"0123456788")
    artifacts.store.put(f"{attempt.prefix}cut", b"01234")
    artifacts.store.delete([f"{attempt.prefix}lost"])
    with pytest.raises(
        RefusedError,
        match="is damaged: changed differs from its checksum; cut has 5 bytes instead of 10; lost is missing",
    ):
        artifacts.verify(manifest)
    with pytest.raises(RefusedError, match="changed differs"):
        artifacts.read(manifest, "changed")
    assert artifacts.read(manifest, "good") == b"0123456789"


def test_what_a_late_writer_adds_is_no_part_of_the_artifact(artifacts, ref, commit):
    attempt = artifacts.attempt(ref, "run-1")
    attempt.write("rows/a.parquet", b"a")
    manifest = commit(attempt)
    attempt.write("rows/late.parquet", b"late")
    assert artifacts.uris(manifest, "rows") == [artifacts.uri(manifest, "rows/a.parquet")]
    with pytest.raises(NotFoundError, match=r"has no file 'rows/late.parquet'"):
        artifacts.read(manifest, "rows/late.parquet")
    artifacts.verify(manifest)


def test_a_file_that_vanishes_before_the_commit_is_noticed(artifacts, ref, commit):
    attempt = artifacts.attempt(ref, "run-1")
    attempt.write("a", b"a")
    attempt.write("b", b"b")
    artifacts.store.delete([f"{attempt.prefix}a"])
    with pytest.raises(RefusedError, match="a vanished from s3://"):
        commit(attempt)
    assert artifacts.find(ref) is None


def test_erasure_leaves_a_tombstone_and_no_bytes(artifacts, ref, commit, owner):
    for run in ("run-1", "run-2"):
        attempt = artifacts.attempt(ref, run)
        attempt.write("f", b"personal")
        commit(attempt)
    manifest = artifacts.open(ref)
    tombstone = artifacts.erase(ref, owner, "Requested by the person.")
    assert [item.key for item in artifacts.store.list(f"{ref}/")] == [f"{ref}/manifest.json"]
    for act in (artifacts.find, artifacts.open):
        with pytest.raises(RefusedError, match=r"was erased by tester on .* \(Requested by the person\)"):
            act(ref)
    with pytest.raises(NotFoundError):
        artifacts.read(manifest, "f")
    assert list(artifacts.list(team=ref.team)) == []
    assert artifacts.erase(ref, owner, "again") == tombstone
    late = artifacts.attempt(ref, "run-3")
    late.write("f", b"personal")
    with pytest.raises(RefusedError, match="was erased"):
        commit(late)
    assert list(late.files()) == []


def test_erasing_nothing_is_told(artifacts, ref, owner):
    with pytest.raises(NotFoundError, match="nothing to erase"):
        artifacts.erase(ref, owner, "why")


def test_latest_is_the_newest_commit(artifacts, ref, commit):
    made = []
    for number in (7, 3, 5):
        attempt = artifacts.attempt(ref.model_copy(update={"fingerprint": f"{number:016x}"}), "run")
        attempt.write("f", b"x")
        made.append(commit(attempt))
    assert artifacts.latest(ref.team, ref.kind, ref.name) == made[-1]
    assert artifacts.latest(ref.team, ref.kind, "other") is None
    listed = list(artifacts.list(team=ref.team))
    assert listed == sorted(made, key=lambda manifest: str(manifest.ref))
    assert {m.ref for m in artifacts.list(kind="dataset")} >= {m.ref for m in made}
    assert list(artifacts.list(team=ref.team, kind="model")) == []


def test_lineage_walks_back_to_the_data(artifacts, ref, commit, owner):
    def make(kind, number, *parents):
        one = ref.model_copy(update={"kind": kind, "fingerprint": f"{number:016x}"})
        attempt = artifacts.attempt(one, "run")
        attempt.write("f", kind.encode())
        inputs = [ArtifactInput(address=p if isinstance(p, str) else str(p.ref), digest="d") for p in parents]
        return commit(attempt, inputs=inputs)

    data = make("dataset", 1, "s3://manta/raw/data.csv")
    base = make("model", 2, "hf://org/model")
    tuned = make("checkpoint", 3, data, base)
    judged = make("evaluation", 4, tuned, base, data)
    batch = make("batch-output", 5, judged, tuned)
    assert artifacts.lineage(batch.ref) == [batch, judged, tuned, base, data]
    assert artifacts.lineage(str(data.ref)) == [data]
    artifacts.erase(data.ref, owner, "gone")
    assert artifacts.lineage(batch.ref) == [batch, judged, tuned, base]


@pytest.mark.parametrize("address", ["", "a/b/c", "a/b/c/nothex", "A B/x/y/0123456789abcdef", "a/b/c/d/e"])
def test_what_is_no_address(artifacts, address):
    with pytest.raises(
        UsageError, match=r"no artifact address: write <team>/<kind>/<name>/<16 hex digits>\.$"
    ):
        artifacts.open(address)


@pytest.mark.parametrize("path", ["", "/x", "a/../b", "a//b", "..", "a/"])
def test_paths_do_not_leave_the_attempt(artifacts, ref, path):
    with pytest.raises(UsageError, match="no path inside an artifact"):
        artifacts.attempt(ref, "run").write(path, b"")


@pytest.mark.parametrize("run_id", ["", "a/b", "..", "a b"])
def test_run_ids_are_one_path_segment(artifacts, ref, run_id):
    with pytest.raises(UsageError, match="is no run id"):
        artifacts.attempt(ref, run_id)


def test_manifests_that_cannot_be_understood_are_refused(artifacts, ref, commit):
    key = f"{ref}/manifest.json"
    attempt = artifacts.attempt(ref, "run")
    attempt.write("f", b"x")
    good = commit(attempt)
    newer = json.loads(good.model_dump_json()) | {"schema_version": 2}
    for data in (b"", b"{", b"[]", b"{}", json.dumps(newer).encode()):
        artifacts.store.put(key, data)
        with pytest.raises(RefusedError, match=r"is not a manifest of schema 1"):
            artifacts.open(ref)
    copied = Manifest.model_validate(good.model_dump() | {"ref": ref.model_copy(update={"name": "other"})})
    artifacts.store.put(key, copied.model_dump_json().encode())
    with pytest.raises(RefusedError, match=f"belongs to {copied.ref}"):
        artifacts.open(ref)
