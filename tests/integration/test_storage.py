"""The object store against the real S3 server."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import AccessError, MantaError, NotFoundError, RefusedError, UnavailableError
from cluster.settings import StorageSettings
from cluster.storage import ObjectStore
from tests.ports import free_ports

pytestmark = pytest.mark.integration


@pytest.fixture
def prefix(team):
    return f"{team}/store"


def test_objects(store, prefix):
    key = f"{prefix}/a"
    assert not store.exists(key)
    store.put(key, b"one")
    store.put(key, b"two")
    assert store.exists(key)
    assert store.get(key) == b"two"
    store.delete([key, f"{prefix}/never-there"])
    assert not store.exists(key)
    with pytest.raises(NotFoundError, match=f"has no object s3://manta/{key}: check the address"):
        store.get(key)


def test_listing_is_in_order_across_pages_and_without_directory_markers(store, prefix):
    names = [f"{prefix}/{n:04d}" for n in range(1200)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.put(name, b"x"), names))
    store.put(f"{prefix}/folder/", b"")
    found = list(store.list(f"{prefix}/"))
    assert [item.key for item in found] == names
    assert {item.bytes for item in found} == {1}
    assert [item.key for item in store.list(f"{prefix}/", after=names[-3])] == names[-2:]
    store.delete(names)
    assert list(store.list(f"{prefix}/")) == []


def test_folders(store, prefix):
    for name in ("a/1", "a/2", "b/c/3", "file"):
        store.put(f"{prefix}/{name}", b"")
    assert list(store.folders(f"{prefix}/")) == ["a", "b"]


def test_put_if_absent_has_one_winner_among_threads(store, prefix):
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda n: store.put_if_absent(f"{prefix}/lock", str(n).encode()), range(16)))
    assert won.count(True) == 1
    assert store.get(f"{prefix}/lock") == str(won.index(True)).encode()


def test_put_if_absent_knows_its_own_success_when_the_answer_got_lost(store, prefix):
    """boto3 repeats a put whose answer is lost; here the first answer is lost after the server has acted."""
    from botocore.exceptions import ConnectionClosedError

    twin = ObjectStore(store.bucket, StorageSettings())
    lost = []
    send = twin._client._endpoint.http_session.send

    def lossy(request):
        response = send(request)
        if not lost:
            lost.append(True)
            raise ConnectionClosedError(endpoint_url="http://lost")
        return response

    twin._client._endpoint.http_session.send = lossy
    assert twin.put_if_absent(f"{prefix}/once", b"mine") is True
    assert lost
    assert twin.put_if_absent(f"{prefix}/once", b"other") is False
    assert store.get(f"{prefix}/once") == b"mine"


def test_directories_go_up_and_down(store, prefix, tmp_path):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "small.txt").write_bytes(b"small")
    (source / "empty").write_bytes(b"")
    (source / "deep" / "large.bin").write_bytes(bytes(range(256)) * 150_000)  # 38 MB: three parts
    store.upload_dir(source, prefix)
    store.download_dir(prefix, tmp_path / "target")
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    assert len(files) == 3
    for path in files:
        assert (tmp_path / "target" / path).read_bytes() == (source / path).read_bytes()
    assert store.sha256(f"{prefix}/small.txt")[1] == 5


def test_files_that_are_not_there(store, prefix, tmp_path):
    with pytest.raises(NotFoundError, match="is no file"):
        store.upload_file(tmp_path / "absent", f"{prefix}/x")
    with pytest.raises(NotFoundError, match="is no directory"):
        store.upload_dir(tmp_path / "absent", prefix)
    with pytest.raises(NotFoundError, match=f"has no object s3://manta/{prefix}/absent"):
        store.download_file(f"{prefix}/absent", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFoundError, match="has nothing below"):
        store.download_dir(f"{prefix}/absent", tmp_path)


def test_pyarrow_sees_the_same_bucket_and_its_plan_carries_no_keys(store, prefix, s3):
    table = pa.table({"n": [1, 2, 3]})
    filesystem = store.filesystem()
    pq.write_table(table, f"{store.bucket}/{prefix}/t.parquet", filesystem=filesystem)
    assert (
        pq.read_table(f"{store.bucket}/{prefix}/t.parquet", filesystem=pickle.loads(pickle.dumps(filesystem)))
        == table
    )
    assert store.exists(f"{prefix}/t.parquet")
    assert s3.credentials.secret_key.encode() not in pickle.dumps(filesystem)


def test_pyarrow_finds_a_bare_address_by_the_environment(store, prefix):
    from pyarrow import fs

    store.put(f"{prefix}/bare", b"found")
    filesystem, path = fs.FileSystem.from_uri(store.uri(f"{prefix}/bare"))
    assert filesystem.open_input_stream(path).read() == b"found"


# What users get wrong


def told(error: pytest.ExceptionInfo[MantaError], *secrets: str) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert not any(secret in text for secret in secrets)
    assert error.value.__suppress_context__, "a bare traceback would show boto3's own error too"
    return text


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys(s3, monkeypatch, variable, tmp_path):
    monkeypatch.setenv(variable, "wrong-and-secret")
    store = ObjectStore(s3.bucket, StorageSettings())
    (tmp_path / "file").write_bytes(b"x")
    for act in (
        store.check,
        lambda: store.get("x"),
        lambda: store.exists("x"),
        lambda: store.put("x", b""),
        lambda: store.put_if_absent("x", b""),
        lambda: list(store.list("")),
        lambda: store.delete(["x"]),
        lambda: store.upload_file(tmp_path / "file", "x"),
        lambda: store.download_file("x", tmp_path / "y"),
    ):
        with pytest.raises(AccessError) as error:
            act()
        text = told(error, "wrong-and-secret", s3.credentials.secret_key)
        assert s3.endpoint in text
        assert "AWS_SECRET_ACCESS_KEY" in text


def test_no_keys(s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(AccessError) as error:
        ObjectStore(s3.bucket, StorageSettings()).check()
    assert "set AWS_ACCESS_KEY_ID" in told(error)


def test_no_such_bucket(s3):
    store = ObjectStore("no-such-bucket", StorageSettings())
    for act in (
        store.check,
        lambda: store.put("x", b""),
        lambda: store.get("x"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(NotFoundError) as error:
            act()
        assert "no bucket 'no-such-bucket'" in told(error)
        assert "MANTA_STORAGE__BUCKET" in told(error)


def test_nobody_answers(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports()}")
    store = ObjectStore(s3.bucket, StorageSettings(max_attempts=2))
    for act in (store.check, lambda: store.put("x", b""), lambda: store.get("x")):
        with pytest.raises(UnavailableError) as error:
            act()
        assert "AWS_ENDPOINT_URL" in told(error)


def test_not_an_s3_server_at_all(s3, monkeypatch):
    monkeypatch.setenv(
        "AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3.internal_port_base + 2}"
    )  # the volume server
    with pytest.raises((RefusedError, AccessError, UnavailableError, NotFoundError)) as error:
        ObjectStore(s3.bucket, StorageSettings(max_attempts=1)).check()
    told(error)
