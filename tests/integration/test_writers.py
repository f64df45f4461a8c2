"""Writers that race, and writers that are killed, each a real process against the real S3 server."""

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.contracts import ArtifactRef, Manifest
from cluster.errors import NotFoundError
from tests import writer
from tests.fault_proxy import FaultProxy, Trap
from tests.ports import free_ports

pytestmark = pytest.mark.integration


@pytest.fixture
def ref(team):
    return ArtifactRef(team=team, kind="dataset", name="contested", fingerprint="0123456789abcdef")


@pytest.fixture
def start():
    """Start writers; whatever a test leaves running is killed."""
    started = []

    def act(*arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.writer", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        started.append(process)
        return process

    yield act
    for process in started:
        process.kill()
        process.communicate()


def told(process):
    return process.stdout.readline().strip()


def go(process):
    process.stdin.write("go\n")
    process.stdin.flush()


def kill(process):
    process.kill()
    process.wait()


def assert_nothing_visible(artifacts, ref):
    assert artifacts.find(ref) is None
    assert list(artifacts.list(team=ref.team)) == []
    assert artifacts.latest(ref.team, ref.kind, ref.name) is None
    with pytest.raises(NotFoundError):
        artifacts.open(ref)


@pytest.mark.slow
def test_of_sixteen_racing_processes_one_wins_and_all_get_its_manifest(artifacts, ref, start):
    racers = [start("race", ref, f"run-{number}") for number in range(16)]
    for racer in racers:
        assert told(racer) == "ready"
    for racer in racers:
        go(racer)
    manifests = [Manifest.model_validate_json(told(racer)) for racer in racers]
    assert len({manifest.run_id for manifest in manifests}) == 1
    assert all(manifest == manifests[0] for manifest in manifests)
    assert artifacts.open(ref) == manifests[0]
    assert artifacts.read(manifests[0], "data.txt") == manifests[0].run_id.encode()
    artifacts.verify(manifests[0])


def test_of_sixteen_racing_threads_one_wins_again_and_again(artifacts, ref):
    for turn in range(5):
        one = ref.model_copy(update={"fingerprint": f"{turn:016x}"})
        attempts = [artifacts.attempt(one, f"run-{number}") for number in range(16)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda attempt: attempt.write("f", attempt.run_id.encode()), attempts))
            manifests = list(pool.map(writer.commit, attempts))
        assert all(manifest == manifests[0] for manifest in manifests)
        assert artifacts.read(manifests[0], "f") == manifests[0].run_id.encode()


def test_a_writer_killed_between_data_and_manifest_leaves_nothing_visible(artifacts, ref, start):
    victim = start("no-manifest", ref, "run-1")
    assert told(victim) == "written"
    kill(victim)
    assert len(list(artifacts.attempt(ref, "run-1").files())) == 2
    assert_nothing_visible(artifacts, ref)
    again = artifacts.attempt(ref, "run-2")
    again.write("data.txt", b"second")
    winner = writer.commit(again)
    assert artifacts.open(ref) == winner
    assert [entry.path for entry in winner.files] == ["data.txt"]
    assert artifacts.read(winner, "data.txt") == b"second"


def test_a_writer_killed_in_the_middle_of_a_file_leaves_nothing_visible(s3, artifacts, ref, start, tmp_path):
    size = 256 * 1024 * 1024
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    with FaultProxy(s3.endpoint, free_ports()) as proxy:
        victim = start("large", ref, "run-1", tmp_path / "large", AWS_ENDPOINT_URL=proxy.endpoint)
        proxy.trap(Trap(lambda request: "partNumber" in request.query, "after", victim.kill, nth=3))
        assert told(victim) == "writing"
        victim.wait()
    assert parts_of_uploads(artifacts.store._client, artifacts.store.bucket, f"{ref}/")
    names = [item.key for item in artifacts.store.list(f"{ref}/")]
    assert names == [f"{ref}/attempts/run-1/first.txt"], "half a file must not show"
    assert_nothing_visible(artifacts, ref)
    resumed = artifacts.attempt(ref, "run-1")
    resumed.write("large.bin", b"whole now")
    assert [entry.path for entry in writer.commit(resumed).files] == ["first.txt", "large.bin"]
    artifacts.verify(artifacts.open(ref))


def parts_of_uploads(client, bucket, prefix):
    """How many parts unfinished uploads have stored."""
    uploads = client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", [])
    return sum(
        len(client.list_parts(Bucket=bucket, Key=one["Key"], UploadId=one["UploadId"]).get("Parts", []))
        for one in uploads
    )


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_all_or_nothing(s3, artifacts, ref, start):
    """At any of its 20 files or the manifest; by the clock, what it sent last may arrive after its end."""
    seen = set()
    chance = random.Random(7)
    moments = [(21, "midway"), (21, "after")]
    moments += [(chance.randint(1, 21), chance.choice(["before", "midway", "after"])) for _ in range(8)]
    with FaultProxy(s3.endpoint, free_ports()) as proxy:
        for turn, (nth, stage) in enumerate(moments):
            one = ref.model_copy(update={"fingerprint": f"{turn:016x}"})
            victim = start("whole", one, "run-1", AWS_ENDPOINT_URL=proxy.endpoint)
            proxy.trap(Trap(lambda request: request.method == "PUT", stage, victim.kill, nth=nth))
            assert told(victim) == "writing"
            victim.wait()
            found = artifacts.find(one)
            assert (found is not None) is ((nth, stage) == (21, "after"))
            seen.add(found is not None)
            if found is not None:
                assert len(found.files) == 20
                artifacts.verify(found)
                continue
            again = artifacts.attempt(one, "run-2")
            again.write("f", b"again")
            assert writer.commit(again).run_id == "run-2"
    assert seen == {False, True}


@pytest.mark.slow
def test_racing_publishers_lose_no_change(store, start, team):
    from cluster import snapshots

    before = snapshots.newest()
    publishers = [start("publish", "-", f"{team}-{number}", 4) for number in range(4)]
    for publisher in publishers:
        assert told(publisher) == "ready"
    for publisher in publishers:
        go(publisher)
    for publisher in publishers:
        assert publisher.wait(600) == 0
    after = snapshots.newest()
    names = {f"{team}-{number}-{turn}@1" for number in range(4) for turn in range(4)}
    assert names <= after.prompts.keys()
    assert after.number == (before.number if before else 0) + 16
    numbers = [
        int(item.key.rpartition("/")[2].removesuffix(".json")) for item in store.list(snapshots.PREFIX)
    ]
    assert numbers == list(range(1, after.number + 1))


def test_a_child_after_fork_has_connections_of_its_own(store, team):
    store.put(f"{team}/forked", b"x" * 1000)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        ok = all(store.get(f"{team}/forked") == b"x" * 1000 for _ in range(20))
        os.write(write, b"1" if ok else b"0")
        os._exit(0)
    assert all(store.get(f"{team}/forked") == b"x" * 1000 for _ in range(20))
    assert os.read(read, 1) == b"1"
    os.waitpid(pid, 0)
