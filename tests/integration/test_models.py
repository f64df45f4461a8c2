"""Model sources and node-local copies against the real S3 server, with the tiny model."""

import http.server
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from cluster.errors import AccessError, NotFoundError, RefusedError, UnavailableError, UsageError
from cluster.models import ensure_model, local_copy
from cluster.models.cache import models_cache
from cluster.storage import ArtifactStore, ObjectStore
from tests.conftest import forget_settings
from tests.tiny_model import make_tiny_llama

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "Tiny Llama")


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    """A copy that the test may change, of a content that no other test has."""
    directory = tmp_path / "Tiny Llama"
    shutil.copytree(pristine, directory)
    (directory / "LICENSE").write_text(f"for {uuid.uuid4()}")
    return directory


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in directory.rglob("*") if f.is_file()}


# Sources


def test_a_directory_becomes_an_artifact_once(model: Path, artifacts: ArtifactStore) -> None:
    told: list[str] = []
    (model / ".cache").mkdir()
    (model / ".cache" / "junk").write_text("x")
    (model / "pytorch_model.bin").write_bytes(b"the same weights as a pickle")
    made = ensure_model(str(model), progress=told.append)
    assert (made.ref.kind, made.ref.name) == ("model", "tiny-llama")
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        f.path for f in made.files
    }
    assert not {".cache/junk", "pytorch_model.bin"} & {f.path for f in made.files}
    assert made.summary["architecture"] == "LlamaForCausalLM"
    assert made.summary["licence_files"] == ["LICENSE"]
    assert made.counts["parameters"] > 100_000
    assert any("uploading" in line for line in told)
    artifacts.verify(made)
    told.clear()
    assert ensure_model(str(model), progress=told.append) == made
    assert told == []
    # The same content elsewhere is the same artifact; its address is a source as well.
    elsewhere = model.parent / "elsewhere"
    shutil.copytree(model, elsewhere)
    assert ensure_model(f"file://{elsewhere}", name="tiny-llama") == made
    assert ensure_model(str(made.ref)) == made
    (elsewhere / "generation_config.json").write_text("{}")
    assert ensure_model(str(elsewhere), name="tiny-llama").ref != made.ref


def test_an_s3_address(model: Path, store: ObjectStore, artifacts: ArtifactStore) -> None:
    prefix = f"incoming/{uuid.uuid4().hex}/My_Model"
    store.upload_dir(model, prefix)
    made = ensure_model(store.uri(prefix))
    assert made.ref.name == "my_model"
    assert ensure_model(store.uri(prefix) + "/") == made
    assert artifacts.read(made, "config.json") == (model / "config.json").read_bytes()
    with pytest.raises(NotFoundError, match="nothing below"):
        ensure_model(store.uri("incoming/nothing"))
    with pytest.raises(NotFoundError, match="no-such-bucket"):
        ensure_model("s3://no-such-bucket/model")
    with pytest.raises(UsageError, match="no bucket"):
        ensure_model("s3://")
    store.delete([f"{prefix}/config.json"])
    with pytest.raises(NotFoundError, match=r"has no config\.json"):
        ensure_model(store.uri(prefix))


def test_what_is_no_whole_model_is_refused_before_anything_is_written(
    model: Path, artifacts: ArtifactStore, store: ObjectStore
) -> None:
    weights = (model / "model.safetensors").read_bytes()
    index = model / "model.safetensors.index.json"

    def refused(kind: type[Exception], match: str) -> None:
        with pytest.raises(kind, match=match) as told:
            ensure_model(str(model), name="refused")
        assert "\n" not in str(told.value)

    (model / "model.safetensors").write_bytes(weights[:-10])
    refused(RefusedError, "no whole safetensors")
    (model / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    refused(RefusedError, "no whole safetensors")
    (model / "model.safetensors").unlink()
    refused(NotFoundError, "no weights")
    (model / "model.safetensors").write_bytes(weights)
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    refused(RefusedError, r"names model-2\.safetensors, which is missing")
    index.unlink()
    (model / "config.json").write_text("{broken")
    refused(RefusedError, r"config\.json is no JSON")
    (model / "config.json").unlink()
    (model / "tokenizer.json").unlink()
    refused(NotFoundError, r"no config\.json, no a tokenizer|no config\.json.*tokenizer")
    shutil.rmtree(model)
    refused(NotFoundError, "there is no directory")
    assert list(artifacts.list("default", "model", "refused")) == []
    assert list(store.list("default/model/refused/")) == []


def test_what_is_no_source(artifacts: ArtifactStore) -> None:
    for nonsense in ("", "a b c", "https://x/y", "a/b/c/d/e"):
        with pytest.raises(UsageError, match="is no model source"):
            ensure_model(nonsense)
    with pytest.raises(NotFoundError, match="no artifact"):
        ensure_model("default/model/x/0123456789abcdef")


# The hub


class _Hub(http.server.BaseHTTPRequestHandler):
    """Enough of the hub's HTTP interface to serve directories as repositories, under one commit."""

    repositories: dict[str, Path]
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def _answer(self, with_body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[4:5] == ["tree"]:
            return self._tree(self.repositories["/".join(parts[2:4])], with_body)
        if parts[:2] == ["api", "models"]:
            return self._info("/".join(parts[2:4]), with_body)
        directory = self.repositories.get("/".join(parts[:2]))
        file = directory / "/".join(parts[4:]) if directory and parts[2:3] == ["resolve"] else None
        if file is None or not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
        return self._send(
            200, file.read_bytes(), {"ETag": f'"{file.name}"', "X-Repo-Commit": self.commit}, with_body
        )

    def _tree(self, directory: Path, with_body: bool) -> None:
        files = [
            {"type": "file", "path": str(f.relative_to(directory)), "size": f.stat().st_size, "oid": f.name}
            for f in directory.rglob("*")
            if f.is_file()
        ]
        self._send(200, json.dumps(files).encode(), {"Content-Type": "application/json"}, with_body)

    def _info(self, repository: str, with_body: bool) -> None:
        if repository == "org/gated":
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, with_body)
        directory = self.repositories.get(repository)
        if directory is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
        names = [str(f.relative_to(directory)) for f in directory.rglob("*") if f.is_file()]
        body = {
            "id": repository,
            "modelId": repository,
            "sha": self.commit,
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "cardData": {"license": "mit"},
            "siblings": [{"rfilename": name} for name in names],
        }
        return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"}, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def hub_url(model: Path) -> Iterator[str]:
    (model / "pytorch_model.bin").write_bytes(b"a pickle")
    handler = type("Hub", (_Hub,), {"repositories": {"org/Tiny": model}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


#: The hub is this process, which may stand still for a while.
_PATIENT = {"HF_HUB_ETAG_TIMEOUT": "600", "HF_HUB_DOWNLOAD_TIMEOUT": "600"}


def in_new_process(source: str, home: Path, **environment: str) -> dict[str, str]:
    """``ensure_model`` where HF_* is read anew: huggingface_hub reads it when it is imported."""
    code = """
import json, sys
from cluster.errors import MantaError
from cluster.models import ensure_model
try:
    made = ensure_model(sys.argv[1])
    found = {"ref": str(made.ref), "input": made.inputs[0].address, "licence": made.summary["licence"]}
    print(json.dumps(found | {"files": [file.path for file in made.files]}))
except MantaError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **_PATIENT, **environment}
    done = subprocess.run([sys.executable, "-c", code, source], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_a_hugging_face_id(hub_url: str, tmp_path: Path, artifacts: ArtifactStore) -> None:
    home = tmp_path / "hf"
    made = in_new_process("org/Tiny", home, HF_ENDPOINT=hub_url)
    assert made["input"] == f"hf://org/Tiny@{_Hub.commit}"
    assert made["licence"] == "mit"
    assert made["ref"].startswith("default/model/tiny/")
    assert "pytorch_model.bin" not in made["files"]
    # Offline, and with the hub gone: the cache knows the commit, so that it is the same artifact.
    assert in_new_process("org/Tiny", home, HF_HUB_OFFLINE="1")["ref"] == made["ref"]
    assert in_new_process("org/Tiny", home, HF_ENDPOINT="http://127.0.0.1:9")["ref"] == made["ref"]
    # Without the cache either: what was imported from this source before.
    assert in_new_process("org/Tiny", tmp_path / "no", HF_HUB_OFFLINE="1")["ref"] == made["ref"]
    absent = in_new_process("org/absent", home, HF_ENDPOINT=hub_url)
    assert absent["error"] == NotFoundError.__name__
    assert "There is no model 'org/absent'" in absent["message"]
    gated = in_new_process("org/gated", home, HF_ENDPOINT=hub_url)
    assert (gated["error"], "HF_TOKEN" in gated["message"]) == (AccessError.__name__, True)
    away = in_new_process("org/absent", home, HF_ENDPOINT="http://127.0.0.1:9")
    assert away["error"] == UnavailableError.__name__
    assert "\n" not in away["message"]


# Copies on a node


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3: object) -> Iterator[Path]:
    """A node with an empty cache."""
    monkeypatch.setenv("MANTA_HOME", str(tmp_path / "node"))
    forget_settings()
    yield tmp_path / "node"
    forget_settings()


def test_a_copy_is_whole_and_made_once(model: Path, node: Path) -> None:
    made = ensure_model(str(model))
    copy = local_copy(made)
    assert copy.is_relative_to(node)
    assert files_of(copy) == files_of(model)
    stamp = (copy / "config.json").stat().st_mtime_ns
    assert local_copy(made) == copy
    assert (copy / "config.json").stat().st_mtime_ns == stamp
    # Damage is noticed and repaired.
    (copy / "model.safetensors").write_bytes(b"short")
    (copy / "config.json").unlink()
    assert local_copy(made) == copy
    assert files_of(copy) == files_of(model)


def test_damage_in_storage_is_noticed(
    model: Path, node: Path, store: ObjectStore, artifacts: ArtifactStore
) -> None:
    made = ensure_model(str(model))
    store.put(artifacts.prefix(made) + "LICENSE", b"other")
    with pytest.raises(RefusedError, match="LICENSE differs from its checksum"):
        local_copy(made)
    assert not [path for path in models_cache().iterdir() if path.is_dir()]


def _copy(address: str) -> tuple[str, float]:
    from cluster.storage import object_store

    copy = local_copy(ArtifactStore(object_store()).open(address))
    return str(copy), (copy / "model.safetensors").stat().st_mtime


def test_processes_that_ask_at_once_share_one_download(model: Path, node: Path) -> None:
    made = ensure_model(str(model))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        answers = set(pool.map(_copy, [str(made.ref)] * 6))
    assert len(answers) == 1
    assert files_of(Path(answers.pop()[0])) == files_of(model)


def test_a_killed_download_leaves_nothing_and_is_done_again(model: Path, node: Path) -> None:
    made = ensure_model(str(model))
    code = """
import sys, time
from cluster.models import cache
from cluster.storage import ArtifactStore, object_store
whole = cache._download_file
def slow(*arguments):
    whole(*arguments)
    print("one", flush=True)
    time.sleep(600)
cache._download_file = slow
cache.local_copy(ArtifactStore(object_store()).open(sys.argv[1]))
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(made.ref)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "one\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert files_of(local_copy(made)) == files_of(model)  # The dead process's lock does not hold us up.
    assert [path.suffix for path in models_cache().iterdir() if path.is_dir()] == [""]


@pytest.mark.slow
def test_the_packaged_demo_model(artifacts: ArtifactStore) -> None:
    made = ensure_model("demo")
    assert made.ref.name == "gemma-3-270m"
    assert made.summary["licence"] == "gemma"
    assert made.counts["parameters"] == 268_098_176
    assert b"Gemma Terms of Use" in artifacts.read(made, "NOTICE")
    ends = json.loads(artifacts.read(made, "generation_config.json"))["eos_token_id"]
    assert ends == [1, 106]
    assert ensure_model("demo") == made
