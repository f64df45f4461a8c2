"""What runs in a model replica: the engine, where its weights come from, and the handle protocol."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray.llm._internal.common.callbacks.base import CallbackBase, CallbackCtx
from ray.llm._internal.common.models import global_id_manager
from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.llm._internal.serve.utils.lora_serve_utils import LoraModelLoader
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import sse
from cluster.contracts import UpstreamRequest
from cluster.errors import NotFoundError, UsageError
from cluster.lora_on_cpu import WORKER_EXTENSION
from cluster.models import local_copy
from cluster.settings import load_settings
from cluster.storage import ArtifactStore, object_store
from deployments.engine_errors import from_engine, from_exception
from deployments.gather import Pace, gather
from deployments.own_address import listen_on_own_address


class ModelServer(LLMServer):
    """``LLMServer`` that speaks :mod:`cluster.contracts.handle`."""

    async def __init__(self, llm_config: LLMConfig, *, gather_s: float, **options: Any) -> None:  # type: ignore[misc]
        self._pace = Pace(gather_s)
        listen_on_own_address()
        await super().__init__(llm_config, **options)

    async def stream(self, request: dict[str, Any]) -> AsyncIterator[bytes]:
        """Generate: see :class:`cluster.contracts.ModelReplica`."""
        try:
            events = self._events(UpstreamRequest.model_validate(request))
            with self._pace.stream() as interval_s:
                async for item in gather(events, interval_s):
                    yield item
        except Exception as error:
            yield sse.encode_error(from_exception(error, str(request.get("request_id", ""))))

    async def _events(self, request: UpstreamRequest) -> AsyncGenerator[bytes, None]:
        from ray.serve.llm.openai_api_models import CompletionRequest

        if request.endpoint == "embeddings":
            raise UsageError("This model generates text; it makes no embeddings.")
        body = request.body | {"stream": True, "request_id": request.request_id}
        if ":" in body["model"]:
            await self.engine.resolve_lora(await self._load_model(body["model"]))
        if request.endpoint == "chat":
            answers = await self.chat(chat_request(body, request.output_bound))
        else:
            answers = await self.completions(CompletionRequest(**body))
        async for answer in answers:
            for item in answer if isinstance(answer, list) else [answer]:
                if not isinstance(item, str):
                    yield sse.encode_error(from_engine(item.error.model_dump()))
                    return
                if item.startswith('data: {"error"'):  # vLLM's way of failing once a stream has begun.
                    yield sse.encode_error(from_engine(sse.decode(item)["error"]))
                    return
                yield item.encode()


def chat_request(body: dict[str, Any], bound: int | None) -> Any:
    """vLLM's request, whose answer has at most ``bound`` tokens if it names no number itself.

    vLLM refuses a request that names more tokens than its context has room for. A bound is none that the
    client named: it only ends the answer, so its tokens are not counted into the context.
    """
    from ray.serve.llm.openai_api_models import ChatCompletionRequest

    if bound is None:
        return ChatCompletionRequest(**body)
    return _bounded_type()(**body | {"max_completion_tokens": bound})


@cache
def _bounded_type() -> Any:
    from ray.serve.llm.openai_api_models import ChatCompletionRequest

    class Bounded(ChatCompletionRequest):
        def build_tok_params(self, model_config: Any) -> Any:
            unbounded = self.model_copy(update={"max_completion_tokens": None})
            return ChatCompletionRequest.build_tok_params(unbounded, model_config)

    return Bounded


class Engine(VLLMEngine):
    """``VLLMEngine`` that on a CPU has its one worker in its own process.

    A second process costs another import of everything and passes every step's data between the two. vLLM
    insists on it because threads are bound by variables that must be set before a process starts; here they
    are set before the engine's process starts.
    """

    def _prepare_engine_config(self, callback_ctx: CallbackCtx) -> tuple[Any, Any, Any]:
        engine_args, frontend_args, config = super()._prepare_engine_config(callback_ctx)
        if self.llm_config.accelerator_config.kind != "cpu":
            return engine_args, frontend_args, config
        config.parallel_config.worker_extension_cls = (
            config.parallel_config.worker_extension_cls or WORKER_EXTENSION
        )
        if config.parallel_config.world_size == 1:
            config.parallel_config.distributed_executor_backend = "uni"
            own = (self.llm_config.runtime_env or {}).get("env_vars") or {}
            if "OMP_NUM_THREADS" not in own:  # Ray sets it to the replica's logical CPUs.
                os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
        return engine_args, frontend_args, config


class WeightsFromArtifact(CallbackBase):
    """Brings the weights to every node of the replica, in place of Ray's node initialisation.

    That one downloads from a hub, and takes 17 seconds even when there is nothing to download.
    """

    async def on_before_node_init(self) -> None:
        """Copy the artifact to the disk of this node, and of the placement group's other ones."""
        self.ctx.run_init_node = False
        address = self.kwargs["model"]
        nodes = set(ray.util.placement_group_table(self.ctx.placement_group)["bundles_to_node_id"].values())
        elsewhere = [
            ray.remote(local_weights)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False))
            .remote(address)
            for node in nodes - {ray.get_runtime_context().get_node_id()}
        ]
        path = await asyncio.to_thread(local_weights, address)
        for other in await asyncio.gather(*elsewhere):
            if other != path:
                raise UsageError(
                    f"Nodes keep weights in {path} and {other}: set one MANTA_HOME for all of them."
                )
        self.llm_config.get_engine_config().hf_model_id = path


def local_weights(address: str) -> str:
    """Directory on this node that holds the files of the model artifact at ``address``."""
    return str(local_copy(ArtifactStore(object_store()).open(address)))


class AdapterLoader(LoraModelLoader):
    """Fetches adapters from object storage to this node.

    Ray's own loader answers "not found" when storage is down, and keeps every adapter of the machine in one
    directory of /tmp by its short name.
    """

    async def load_model_from_config(self, lora_model_id: str, llm_config: LLMConfig) -> DiskMultiplexConfig:
        """The adapter ``base:adapter-v7`` on this node's disk. Raises NotFoundError."""
        path = await asyncio.to_thread(
            fetch_adapter, lora_model_id, llm_config.lora_config.dynamic_lora_loading_path
        )
        return DiskMultiplexConfig(
            model_id=lora_model_id,
            max_total_tokens=None,
            local_path=str(path),
            lora_assigned_int_id=global_id_manager.next(),
        )


def fetch_adapter(engine_model: str, folder: str) -> Path:
    """Directory on this node with adapter ``engine_model`` (``base:adapter-v7``) from ``folder`` (s3://).

    Names of adapters are immutable, so what is there once stays. Raises NotFoundError if there is none.
    """
    store = object_store()
    prefix = f"{store.key(folder).rstrip('/')}/{engine_model.partition(':')[2]}/"
    cache = load_settings().state_dir / "cache" / "adapters"
    target = cache / hashlib.sha256(store.uri(prefix).encode()).hexdigest()[:16]
    if target.is_dir():
        return target
    if not store.exists(f"{prefix}adapter_config.json"):
        raise NotFoundError(f"The model `{engine_model}` does not exist.")
    partial = target.with_suffix(f".{os.getpid()}.{os.urandom(4).hex()}")
    try:
        store.download_dir(prefix, partial)
        try:
            partial.rename(target)  # Atomic; of two that race the second finds a full directory and loses.
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
