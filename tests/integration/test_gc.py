"""What `manta gc` collects and what it must never touch, on the real S3 server."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster.cli import main
from cluster.contracts import ArtifactRef, Principal, RunState
from cluster.errors import RefusedError
from cluster.gc import Collected, Collector
from cluster.job import JobConfig, start_run
from cluster.reconcile import reconcile
from cluster.runs import RunRepository
from cluster.settings import load_settings
from cluster.storage import ArtifactStore
from tests import writer
from tests.conftest import forget_settings

pytestmark = pytest.mark.integration

WEEK = timedelta(days=7)
#: When what is written now is old enough.
LATER = timedelta(days=8)


@pytest.fixture
def runs(s3, tmp_path: Path) -> RunRepository:
    """Records of this test alone: leases must not be judged on another test's future."""
    return RunRepository(f"sqlite:///{tmp_path / 'runs.db'}")


@pytest.fixture
def ref(team: str) -> ArtifactRef:
    return ArtifactRef(team=team, kind="checkpoint", name="left", fingerprint=uuid.uuid4().hex[:16])


def start(runs: RunRepository, ref: ArtifactRef, lease_s: float = 0):
    owner = Principal(key_id="tester", team=ref.team)
    return runs.start("finetune", ref.fingerprint, owner, "host:1", lease_s, artifact=str(ref))


def collect(artifacts: ArtifactStore, runs: RunRepository, team: str, **options) -> list[Collected]:
    options = {"now": datetime.now(UTC) + LATER} | options
    return list(Collector(artifacts, runs, WEEK, **options).collect(team))


def keys(artifacts: ArtifactStore, ref: ArtifactRef) -> list[str]:
    return [item.key[len(f"{ref}/") :] for item in artifacts.store.list(f"{ref}/")]


def test_a_killed_run_is_collected_when_it_is_old(
    artifacts: ArtifactStore, runs: RunRepository, ref: ArtifactRef
) -> None:
    killed = start(runs, ref)
    artifacts.attempt(ref, killed.id).write("adapter/weights", b"half")
    artifacts.attempt(ref, f"{killed.id}.train").write("checkpoint_000001/state.json", b"{}")
    artifacts.attempt(ref, f"{killed.id}.rows").write("answers/part-000000.parquet", b"rows")
    assert collect(artifacts, runs, ref.team, now=datetime.now(UTC) + timedelta(days=6)) == []
    found = collect(artifacts, runs, ref.team, dry_run=True)
    assert [(one.path.rpartition("/")[2], one.why, one.files) for one in found] == [
        (killed.id, "an attempt without a manifest", 1),
        (f"{killed.id}.rows", "answered rows", 1),
        (f"{killed.id}.train", "training checkpoints", 1),
    ]
    assert len(keys(artifacts, ref)) == 3
    assert runs.get(killed.id).state is RunState.LOST
    assert collect(artifacts, runs, ref.team) == found
    assert keys(artifacts, ref) == []
    assert runs.get(killed.id).state is RunState.COLLECTED
    assert collect(artifacts, runs, ref.team) == []


def test_a_live_lease_keeps_every_attempt_at_its_artifact(
    artifacts: ArtifactStore, runs: RunRepository, ref: ArtifactRef
) -> None:
    killed = start(runs, ref)
    runs.reconcile()
    artifacts.attempt(ref, f"{killed.id}.train").write("checkpoint_000001/state.json", b"{}")
    resuming = start(runs, ref, lease_s=timedelta(days=30).total_seconds())
    artifacts.attempt(ref, resuming.id).write("adapter/weights", b"more")
    assert collect(artifacts, runs, ref.team) == []
    assert len(keys(artifacts, ref)) == 2


def test_of_a_won_artifact_the_winner_stays(
    artifacts: ArtifactStore, runs: RunRepository, ref: ArtifactRef
) -> None:
    for name in ("run-1", "run-2"):
        artifacts.attempt(ref, name).write("file", name.encode())
    artifacts.attempt(ref, "run-1.train").write("checkpoint_000001/state.json", b"{}")
    winner = writer.commit(artifacts.attempt(ref, "run-1"))
    artifacts.attempt(ref, "run-1").write("late", b"a late writer's")
    found = collect(artifacts, runs, ref.team)
    assert {one.path.rpartition("/")[2]: one.why for one in found} == {
        "run-2": "beaten by run-1",
        "run-1.train": "training checkpoints of a finished artifact",
    }
    assert keys(artifacts, ref) == ["attempts/run-1/file", "attempts/run-1/late", "manifest.json"]
    artifacts.verify(winner)


def test_what_an_erasure_left_is_collected_and_the_tombstone_stays(
    artifacts: ArtifactStore, runs: RunRepository, ref: ArtifactRef, owner: Principal
) -> None:
    artifacts.attempt(ref, "run-1").write("file", b"x")
    writer.commit(artifacts.attempt(ref, "run-1"))
    artifacts.erase(ref, owner, "asked for")
    artifacts.attempt(ref, "run-2").write("file", b"written later")
    assert [one.path for one in collect(artifacts, runs, ref.team)] == [f"{ref}/attempts/run-2"]
    assert keys(artifacts, ref) == ["manifest.json"]


def test_parts_go_once_nothing_refers_to_them(
    artifacts: ArtifactStore, runs: RunRepository, team: str
) -> None:
    def made(kind: str, files: dict[str, bytes]) -> ArtifactRef:
        ref = ArtifactRef(team=team, kind=kind, name="corpus", fingerprint=uuid.uuid4().hex[:16])
        attempt = artifacts.attempt(ref, "run-1")
        for path, data in files.items():
            attempt.write(path, data)
        writer.commit(attempt)
        return ref

    used, unused = (made("dataset-part", {"rows/000000.parquet": b"rows"}) for _ in range(2))
    dataset = made("dataset", {"parts.json": json.dumps([str(used)]).encode()})
    assert collect(artifacts, runs, team, now=datetime.now(UTC) + timedelta(days=6)) == []
    busy = start(runs, dataset, lease_s=30 * 86_400)  # It may have found any of them.
    assert collect(artifacts, runs, team) == []
    runs.finish(busy.id, busy.lease.token, RunState.FAILED)
    found = collect(artifacts, runs, team, dry_run=True)
    assert [(one.path, one.why, one.files) for one in found] == [
        (str(unused), "a part that nothing refers to", 1)
    ]
    assert collect(artifacts, runs, team) == found
    assert list(artifacts.list(team, "dataset-part")) == [artifacts.open(used)]
    assert keys(artifacts, unused) == []
    artifacts.erase(dataset, Principal(key_id="tester", team=team), "asked for")
    assert [one.path for one in collect(artifacts, runs, team)] == [str(used)]


def test_a_manifest_that_is_not_understood_protects_everything(
    artifacts: ArtifactStore, runs: RunRepository, ref: ArtifactRef
) -> None:
    artifacts.attempt(ref, "run-1").write("file", b"x")
    artifacts.store.put(f"{ref}/manifest.json", b'{"schema_version": 2}')
    assert collect(artifacts, runs, ref.team) == []
    assert len(keys(artifacts, ref)) == 2


def test_unfinished_uploads_are_given_up(
    artifacts: ArtifactStore, runs: RunRepository, ref: ArtifactRef
) -> None:
    store = artifacts.store
    held = ref.model_copy(update={"fingerprint": uuid.uuid4().hex[:16]})
    start(runs, held, lease_s=timedelta(days=30).total_seconds())
    foreign = f"{ref.team}/of-another-tool.bin"
    for key in (f"{ref}/attempts/run-1/large.bin", f"{held}/attempts/run-1/large.bin", foreign):
        begun = store._client.create_multipart_upload(Bucket=store.bucket, Key=key)
        store._client.upload_part(
            Bucket=store.bucket, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=b"x" * 1000
        )
    assert collect(artifacts, runs, ref.team, now=datetime.now(UTC)) == []
    assert [one.path for one in collect(artifacts, runs, ref.team)] == [f"{ref}/attempts/run-1/large.bin"]
    left = list(store.uploads(f"{ref.team}/"))
    assert {upload.key for upload in left} == {f"{held}/attempts/run-1/large.bin", foreign}
    for upload in left:
        store.abort(upload)
    store.abort(left[0])  # Given up already.
    assert list(store.uploads(f"{ref.team}/")) == []


def test_other_teams_and_what_is_no_artifact_stay(
    artifacts: ArtifactStore, runs: RunRepository, ref: ArtifactRef
) -> None:
    others = ref.model_copy(update={"team": f"{ref.team}-b"})
    artifacts.attempt(others, "run-1").write("file", b"x")
    artifacts.store.put(f"{ref.team}/adapters/shield-v1/adapter_config.json", b"{}")
    assert collect(artifacts, runs, ref.team) == []
    assert len(keys(artifacts, others)) == 1
    assert artifacts.store.exists(f"{ref.team}/adapters/shield-v1/adapter_config.json")


def test_a_run_that_comes_back_after_its_collection_cannot_commit(
    s3, artifacts: ArtifactStore, team: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own_records(monkeypatch, tmp_path, team)
    runs = RunRepository(load_settings().database_url)

    def make() -> None:
        with start_run("make", "thing", JobConfig(name="slept"), inputs=[], code_epoch=1) as job:
            job.attempt.write("thing.txt", b"made")
            assert [one.path for one in collect(artifacts, runs, team)] == [job.attempt.prefix.rstrip("/")]
            job.attempt.write("more.txt", b"made later")
            job.commit(counts={}, summary={})

    with pytest.raises(RefusedError, match="`manta gc` has deleted its files: run it again"):
        make()
    assert list(artifacts.list(team)) == []


@pytest.mark.slow
def test_collecting_meanwhile_harms_no_writer(
    s3, artifacts: ArtifactStore, team: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever is not protected by a lease or a manifest goes at once: the age protects nobody here."""
    own_records(monkeypatch, tmp_path, team)
    runs, stop, rounds = RunRepository(load_settings().database_url), threading.Event(), [0]

    def collect_always() -> None:
        while not stop.is_set():
            list(Collector(artifacts, runs, timedelta(seconds=-60)).collect(team))
            rounds[0] += 1

    def make(number: int) -> None:
        for turn in range(8):
            # Each pair of writers races for one artifact.
            config = JobConfig(name=f"raced-{number // 2}-{turn}")
            with start_run("make", "thing", config, inputs=[], code_epoch=1) as job:
                if job.done is None:
                    for file in range(5):
                        job.attempt.write(f"{file}.txt", f"{number}-{turn}-{file}".encode())
                    before = rounds[0]  # That all of it is looked at meanwhile is not left to chance.
                    while rounds[0] == before and not collecting.done():
                        time.sleep(0.001)
                    job.commit(counts={}, summary={})

    with ThreadPoolExecutor(1) as collector:
        collecting = collector.submit(collect_always)
        try:
            together(make, 4)
        finally:
            stop.set()
        collecting.result()
    made = list(artifacts.list(team))
    assert len(made) == 16
    for manifest in made:
        artifacts.verify(manifest)
    assert rounds[0] >= 8
    list(Collector(artifacts, runs, timedelta(seconds=-60)).collect(team))
    assert len(list(artifacts.store.list(f"{team}/"))) == 16 * 6


def test_the_command_says_what_it_deletes(
    s3,
    artifacts: ArtifactStore,
    ref: ArtifactRef,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own_records(monkeypatch, tmp_path, ref.team)
    artifacts.attempt(ref, "run-1").write("file", b"x")
    assert manta("gc", "--team", ref.team) == 0
    assert capsys.readouterr().out == "0 deleted: 0 files, 0.0 MB\n"
    monkeypatch.setattr("cluster.gc.datetime", _Later)
    assert manta("gc", "--team", ref.team, "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"{ref}/attempts/run-1: an attempt without a manifest (1 files, 0.0 MB; last written" in said
    assert "1 would be deleted: 1 files" in said
    assert manta("gc", "--team", ref.team, "--json", "--older-than", "24h") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["dry_run"], told["files"], told["bytes"]) == (False, 1, 1)
    assert [one["path"] for one in told["collected"]] == [f"{ref}/attempts/run-1"]
    assert keys(artifacts, ref) == []
    assert manta("gc", "--older-than", "5m") == 2
    assert "at least 1h" in capsys.readouterr().err
    assert manta("gc", "--older-than", "soon") == 2
    assert "is no age" in capsys.readouterr().err


def test_runs_are_listed_as_they_are(
    s3,
    artifacts: ArtifactStore,
    ref: ArtifactRef,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own_records(monkeypatch, tmp_path, ref.team)
    runs = RunRepository(load_settings().database_url)
    finished, lost, held = start(runs, ref), start(runs, ref), start(runs, ref, lease_s=3600)
    attempt = artifacts.attempt(ref, finished.id)
    attempt.write("file", b"x")
    writer.commit(attempt)
    assert manta("runs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["running", "lost", "succeeded"]
    assert "held by host:1" in lines[0]
    assert "Lost: its process ended" in lines[1]
    assert str(ref) in lines[2]
    assert manta("runs", "--state", "lost", "--json") == 0
    assert [run["id"] for run in json.loads(capsys.readouterr().out)] == [lost.id]
    assert manta("runs", held.id) == 0
    assert "holder       host:1 until" in capsys.readouterr().out
    assert manta("runs", "nonsense") == 1
    assert "no run 'nonsense'" in capsys.readouterr().err
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget_settings()
    assert manta("runs", "--limit", "1") == 0
    told = capsys.readouterr()
    assert told.out.startswith("running")
    assert "manifests were not looked at" in told.err


def test_a_run_whose_artifact_was_erased_stays_lost(
    artifacts: ArtifactStore, runs: RunRepository, ref: ArtifactRef, owner: Principal
) -> None:
    run = start(runs, ref)
    artifacts.attempt(ref, run.id).write("file", b"x")
    writer.commit(artifacts.attempt(ref, run.id))
    artifacts.erase(ref, owner, "asked for")
    found = reconcile(runs, artifacts, datetime.now(UTC))
    assert ([one.id for one in found.lost], found.settled) == ([run.id], [])


class _Later(datetime):
    """A clock that goes ahead."""

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + LATER


def manta(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(ended.value.code or 0)


def own_records(monkeypatch: pytest.MonkeyPatch, folder: Path, team: str) -> None:
    """Settings with a database and a team of their own."""
    monkeypatch.setenv("MANTA_DATABASE__URL", f"sqlite:///{folder / 'runs.db'}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # Away: it costs seconds.
    monkeypatch.setenv("MANTA_TEAM", team)
    forget_settings()


def together(work: Callable[[int], None], count: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))


@pytest.fixture(autouse=True)
def _settings_of_the_session() -> None:
    yield
    forget_settings()
