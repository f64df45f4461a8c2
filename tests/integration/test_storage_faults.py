"""Storage that goes away, is busy, or breaks off: what boto3 and pyarrow do behind the fault proxy."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.errors import UnavailableError
from cluster.settings import StorageSettings
from cluster.storage import ObjectStore
from tests.conftest import S3
from tests.fault_proxy import FaultProxy, Request, Trap
from tests.ports import free_ports

pytestmark = pytest.mark.integration


@pytest.fixture
def proxy(s3: S3) -> Iterator[FaultProxy]:
    with FaultProxy(s3.endpoint, free_ports()) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: FaultProxy, s3: S3, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The session's bucket as it is seen through the proxy."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    return ObjectStore(s3.bucket, StorageSettings())


def nothing() -> None:
    """The proxy breaks the connection; nobody is killed."""


def test_signed_requests_of_both_clients_pass(store: ObjectStore, team: str, tmp_path) -> None:
    (tmp_path / "large").write_bytes(b"0123456789" * 3_400_000)
    store.upload_file(tmp_path / "large", f"{team}/large")
    store.put(f"{team}/a b+c=ü", b"x")
    assert [item.key for item in store.list(f"{team}/")] == [f"{team}/a b+c=ü", f"{team}/large"]
    assert store.sha256(f"{team}/large")[1] == 34_000_000
    assert store.put_if_absent(f"{team}/once", b"1")
    assert not store.put_if_absent(f"{team}/once", b"2")
    files = store.filesystem()
    with files.open_output_stream(f"{store.bucket}/{team}/arrow") as stream:
        stream.write(b"by pyarrow" * 1_000_000)
    assert files.get_file_info(f"{store.bucket}/{team}/arrow").size == 10_000_000
    with files.open_input_file(f"{store.bucket}/{team}/arrow") as stream:
        assert stream.read_at(7, 3) == b"pyarrow"
    store.delete([f"{team}/arrow"])
    assert not store.exists(f"{team}/arrow")


@pytest.mark.parametrize("stage", ["before", "midway", "after"])
def test_a_put_whose_connection_breaks_is_repeated(
    proxy: FaultProxy, store: ObjectStore, team: str, stage
) -> None:
    def to(name: str) -> Trap:
        return Trap(lambda request: request.writes and request.key.endswith(name), stage, nothing)

    plain, once, arrow = (proxy.trap(to(name)) for name in ("plain", "once", "arrow"))
    store.put(f"{team}/plain", b"p" * 100_000)
    # The repetition meets what the first try may have written, and knows it for its own.
    assert store.put_if_absent(f"{team}/once", b"o" * 100_000)
    with store.filesystem().open_output_stream(f"{store.bucket}/{team}/arrow") as stream:
        stream.write(b"a" * 100_000)
    assert all(trap.sprung for trap in (plain, once, arrow))
    assert {item.bytes for item in store.list(f"{team}/")} == {100_000}
    assert store.get(f"{team}/once") == b"o" * 100_000


def test_a_busy_server_is_asked_again(proxy: FaultProxy, store: ObjectStore, team: str) -> None:
    proxy.slow_down(requests=3)
    store.put(f"{team}/x", b"1")
    assert proxy.slowed == 3
    assert store.get(f"{team}/x") == b"1"
    proxy.slow_down(requests=3)
    with store.filesystem().open_output_stream(f"{store.bucket}/{team}/y") as stream:
        stream.write(b"2")
    assert proxy.slowed == 6
    assert store.get(f"{team}/y") == b"2"


def test_a_server_that_stays_busy_is_one_sentence(
    proxy: FaultProxy, s3: S3, team: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    store = ObjectStore(s3.bucket, StorageSettings(max_attempts=2))
    proxy.be_busy(3600)
    with pytest.raises(UnavailableError, match="status 503, SlowDown"):
        store.put(f"{team}/x", b"1")
    with pytest.raises(UnavailableError, match="status 503"):
        store.get(f"{team}/x")


@pytest.mark.slow
def test_some_time_without_storage_is_waited_out(proxy: FaultProxy, store: ObjectStore, team: str) -> None:
    """By boto3 and by pyarrow, in mid-write, and by many threads: each has tries of its own."""

    def first(request: Request) -> bool:
        return request.writes

    def by_arrow() -> None:
        with store.filesystem().open_output_stream(f"{store.bucket}/{team}/arrow") as stream:
            stream.write(b"a" * 1000)

    away = proxy.trap(Trap(first, "midway", lambda: proxy.go_away(12)))
    with ThreadPoolExecutor(17) as pool:
        puts = [pool.submit(store.put, f"{team}/plain-{number}", b"p" * 1000) for number in range(16)]
        for one in [*puts, pool.submit(by_arrow)]:
            one.result()
    assert away.sprung is not None
    assert [item.bytes for item in store.list(f"{team}/")] == [1000] * 17


def test_a_file_system_in_another_process_tries_as_often(proxy: FaultProxy, s3: S3, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    # Not three, which is what pyarrow's own falls back to when it is pickled.
    here = ObjectStore(s3.bucket, StorageSettings(max_attempts=5)).filesystem()
    proxy.be_busy(3600)
    tries = []
    for files in (here, pickle.loads(pickle.dumps(here))):
        before = proxy.slowed
        with pytest.raises(OSError, match="503"):
            files.open_input_stream(f"{s3.bucket}/absent")
        tries.append(proxy.slowed - before)
    assert tries == [5, 5]
