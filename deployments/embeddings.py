"""The embeddings application: vectors of texts, from a small encoder behind a deployment handle.

    applications:
    - name: minilm
      route_prefix: null
      import_path: deployments.embeddings:build
      args: {model: <artifact address>, model_id: all-minilm-l6-v2}

It needs transformers and torch, and no engine: an encoder reads a text once. What comes from all requests in
a few milliseconds goes through the model together. Pooling and normalisation are what the model's own files
say (``modules.json`` and ``1_Pooling/config.json``, as Sentence Transformers writes them); a model without
these files gets the mean of its tokens, normalised. The replica speaks :mod:`cluster.contracts.handle`.
"""

# No postponed annotations here: Serve reads the type of build's argument.

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from cluster import sse
from cluster.contracts import UpstreamError, UpstreamRequest
from cluster.contracts.request import EmbeddingBody
from cluster.errors import UsageError
from deployments.engine_errors import from_exception
from deployments.own_address import listen_on_own_address

if TYPE_CHECKING:
    import numpy as np
    from ray.serve import Application

logger = logging.getLogger("ray.serve")
DEPLOYMENT = "embeddings"
_POOLING = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


class EmbeddingsApplicationArgs(BaseModel):
    """``args`` of an embeddings application in a Serve configuration file."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(
        description="Address of the encoder's artifact. `manta deploy` also takes s3://, a local directory "
        "or a Hugging Face id here, and puts the address in its place."
    )
    model_id: str = Field(min_length=1, pattern=r"^[^:]+$", description="The name that clients send.")
    max_batch_size: int = Field(32, ge=1, description="Most texts that go through the model together.")
    batch_wait_ms: float = Field(
        5.0, ge=0, description="How long a text waits for others to come with it, in milliseconds."
    )


def build(args: EmbeddingsApplicationArgs) -> "Application":
    """The application that Serve runs."""
    from ray import serve

    options = {
        "name": DEPLOYMENT,
        "max_ongoing_requests": 64,
        "max_queued_requests": 256,  # More are refused as overload.
        "ray_actor_options": {"num_cpus": 1},
    }
    return serve.deployment(EmbeddingsReplica, **options).bind(args.model_dump())


class Encoder:
    """A model that turns texts into vectors.

    Raises UsageError for a directory that asks for a pooling which is not to be had here.
    """

    def __init__(self, directory: Path) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._pooling, self._normalise, longest = _modules(directory)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model = AutoModel.from_pretrained(directory).to(self._device).eval()
        self.dimensions = int(self._model.config.hidden_size)
        places = getattr(self._model.config, "max_position_embeddings", None)
        #: Most tokens of one text.
        self.longest = min(n for n in (longest, places, self._tokenizer.model_max_length) if n)

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text. Raises UsageError for a text that is longer than the model reads."""
        found: list[list[int]] = self._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        for index, ids in enumerate(found):
            if len(ids) > self.longest:
                raise UsageError(
                    f"This model's maximum context length is {self.longest} tokens, and input {index} "
                    f"has {len(ids)}: send it in parts."
                )
        return found

    def vectors(self, tokens: list[list[int]]) -> "np.ndarray[Any, Any]":
        """One row of 32-bit floats for each text."""
        import torch

        padded = self._tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            hidden = self._model(**padded).last_hidden_state.float()
            if self._pooling == "cls":
                pooled = hidden[:, 0]
            else:
                weights = padded["attention_mask"].unsqueeze(-1)
                pooled = (hidden * weights).sum(1) / weights.sum(1)
            if self._normalise:
                pooled = torch.nn.functional.normalize(pooled, dim=1)
        rows: np.ndarray[Any, Any] = pooled.cpu().numpy()
        return rows


def _modules(directory: Path) -> tuple[str, bool, int | None]:
    """Pooling, whether to normalise, and most tokens of a text as far as Sentence Transformers' files say."""
    if not (directory / "modules.json").exists():
        return "mean", True, None
    modules = json.loads((directory / "modules.json").read_text())
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UsageError(
            f"The encoder consists of {', '.join(kinds)}; only pooling and normalising are known."
        )
    pooling = json.loads((directory / modules[1]["path"] / "config.json").read_text())
    asked = [name for name, value in pooling.items() if name.startswith("pooling_mode_") and value is True]
    if len(asked) != 1 or asked[0] not in _POOLING:
        raise UsageError(
            f"The encoder pools by {', '.join(asked) or 'nothing'}; only mean and cls are known."
        )
    limits = directory / "sentence_bert_config.json"
    longest = json.loads(limits.read_text()).get("max_seq_length") if limits.exists() else None
    return _POOLING[asked[0]], "Normalize" in kinds, longest


class EmbeddingsReplica:
    """One process with the encoder; loaded before it is ready."""

    def __init__(self, args: dict[str, Any]) -> None:
        from ray import serve

        from cluster.models import local_copy
        from cluster.storage import ArtifactStore, object_store

        listen_on_own_address()
        settings = EmbeddingsApplicationArgs.model_validate(args)
        self._encoder = Encoder(local_copy(ArtifactStore(object_store()).open(settings.model)))
        self._encoder.vectors(self._encoder.tokens(["ready"]))
        self._vector = serve.batch(
            max_batch_size=settings.max_batch_size, batch_wait_timeout_s=settings.batch_wait_ms / 1000
        )(self._batch)

    async def stream(self, request: dict[str, Any]) -> AsyncIterator[bytes]:
        """See :class:`cluster.contracts.ModelReplica`: one event, with OpenAI's answer in it."""
        try:
            yield sse.encode(await self._answer(UpstreamRequest.model_validate(request)))
        except Exception as error:
            yield sse.encode_error(_told(error, str(request.get("request_id", ""))))

    async def _answer(self, request: UpstreamRequest) -> dict[str, Any]:
        if request.endpoint != "embeddings":
            raise UsageError("This model makes embeddings; it generates no text.")
        body = EmbeddingBody.model_validate(request.body)
        if body.dimensions not in (None, self._encoder.dimensions):
            raise UsageError(
                f"This model's vectors have {self._encoder.dimensions} dimensions, and no other number is "
                "to be had: leave 'dimensions' out."
            )
        tokens = await asyncio.to_thread(self._encoder.tokens, body.inputs)
        vectors = await asyncio.gather(*(self._vector(ids) for ids in tokens))
        used = sum(map(len, tokens))
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
                for index, vector in enumerate(vectors)
            ],
            "model": body.model,
            "usage": {"prompt_tokens": used, "total_tokens": used},
        }

    async def _batch(self, tokens: list[list[int]]) -> list[Any]:
        return list(await asyncio.to_thread(self._encoder.vectors, tokens))


def _encoded(vector: "np.ndarray[Any, Any]", encoding: str) -> str | list[float]:
    if encoding == "base64":  # Of little-endian 32-bit floats, as OpenAI's.
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers


def _told(error: Exception, request_id: str) -> UpstreamError:
    told = from_exception(error, request_id)
    if "maximum context length" in told.message:
        return told.model_copy(update={"code": "context_length_exceeded", "param": "input"})
    return told
