"""What a directory of weights must hold, and which of its files are taken."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cluster.errors import NotFoundError, RefusedError
from cluster.storage.paths import files_below

#: Never taken: version control, caches, and other frameworks' copies of the weights.
ALWAYS_LEFT = (".*", "*/.*", "original/*", "*.gguf", "*.onnx", "onnx/*", "*.h5", "*.msgpack", "*.tflite")
#: Left where safetensors are: the same weights again, and pickles, which run code when they are read.
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")
_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model that was found whole."""

    root: Path
    #: Sorted, relative to the root, with ``/``.
    paths: tuple[str, ...]
    architecture: str
    #: Elements in all tensors; None for weights that are not safetensors.
    parameters: int | None
    #: Texts of licence, by path.
    licences: tuple[str, ...]

    def digest(self) -> str:
        """SHA-256 over the files' paths and checksums. Reads everything."""
        total = hashlib.sha256()
        for path in self.paths:
            with (self.root / path).open("rb") as stream:
                total.update(f"{path}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()


def taken(paths: Iterable[str]) -> list[str]:
    """Those of the relative paths that belong to the model, sorted."""
    kept = [path for path in paths if not _fits(path, ALWAYS_LEFT)]
    if any(path.endswith(".safetensors") for path in kept):
        kept = [path for path in kept if not _fits(path, PICKLES)]
    return sorted(kept)


def check_model(root: Path, source: str) -> ModelFiles:
    """Look through a directory in Hugging Face's layout.

    :param source: what the user called it, for messages.

    Raises NotFoundError if there is no such directory or it holds no model, RefusedError if something of the
    model is damaged or missing.
    """
    if not root.is_dir():
        raise NotFoundError(f"Model {source!r}: there is no directory {root}.")
    paths = taken(file.relative_to(root).as_posix() for file in files_below(root))
    require(paths, source)
    config = _read_json(root / "config.json", source)
    shards = _weights(root, paths, source)
    tensors = [_parameters(root / shard, source) for shard in shards if shard.endswith(".safetensors")]
    return ModelFiles(
        root=root,
        paths=tuple(paths),
        architecture=str((config.get("architectures") or [config.get("model_type", "unknown")])[0]),
        parameters=sum(tensors) if tensors else None,
        licences=tuple(path for path in paths if _fits(path, _LICENCES)),
    )


def require(paths: Iterable[str], source: str) -> None:
    """Raise NotFoundError unless the paths hold a configuration, weights and a tokenizer."""
    names = list(paths)
    missing = []
    if "config.json" not in names:
        missing.append("config.json")
    if not any(_fits(name, ("*.safetensors", *PICKLES)) for name in names):
        missing.append("weights (*.safetensors)")
    if not any(_fits(name, _TOKENIZERS) for name in names):
        missing.append("a tokenizer (tokenizer.json)")
    if missing:
        raise NotFoundError(
            f"Model {source!r} has no {', no '.join(missing)}: it must be a directory in Hugging Face's"
            " layout."
        )


def _weights(root: Path, paths: list[str], source: str) -> list[str]:
    """Files with weights; every shard that an index names must be there."""
    for index in (path for path in paths if path.endswith(".index.json")):
        named = set(_read_json(root / index, source).get("weight_map", {}).values())
        absent = sorted(named - set(paths)) if index.startswith("model.safetensors") else []
        if absent:
            raise RefusedError(
                f"Model {source!r} is incomplete: {index} names {absent[0]}, which is missing."
            )
    return [path for path in paths if _fits(path, ("*.safetensors", *PICKLES))]


def _parameters(path: Path, source: str) -> int:
    """Elements in a safetensors file, from its header; the header also tells whether the file is whole."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > size:
                raise ValueError("cut off")
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if 8 + length + end != size:
            raise ValueError("cut off")
        return sum(math.prod(tensor["shape"]) for tensor in header.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RefusedError(
            f"Model {source!r} is damaged: {path.name} ({size} bytes) is no whole safetensors"
            " file; fetch it again."
        ) from None


def _read_json(path: Path, source: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RefusedError(f"Model {source!r} is damaged: {path.name} is no JSON object.")
    return found


def _fits(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)
