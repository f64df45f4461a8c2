"""One offline vLLM engine that answers as the base model and, by its adapter, as the tuned one.

It lives in a Ray actor, so that it runs where the resources are and its resources are stated. Start-up is
most of an evaluation of a few hundred rows on a CPU: the engine's core and worker run inside the actor's own
process (two spawned processes, each with its imports, are saved), and nothing is compiled.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.contracts import Manifest
from cluster.errors import UsageError
from cluster.lora_on_cpu import WORKER_EXTENSION
from cluster.models import local_copy

Messages = Sequence[dict[str, str]]

#: What vLLM allows as max_lora_rank.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # The actor shares its cores with others.
}


class Engine:
    """The class of the actor; make it with ``ray.remote(Engine).options(num_cpus=...)``."""

    def __init__(
        self, base: Manifest, checkpoint: Manifest, engine_kwargs: dict[str, Any], *, on_cpu: bool
    ) -> None:
        started = time.monotonic()
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        if on_cpu:
            for name, value in _CPU_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            # Ray set it to the logical CPUs; read when torch is loaded, which is below.
            os.environ["OMP_NUM_THREADS"] = str(os.cpu_count() or 1)
        model, self._adapter = local_copy(base), local_copy(checkpoint) / "adapter"
        arguments = {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": _allowed_rank(self._adapter),
            **({"worker_extension_cls": WORKER_EXTENSION} if on_cpu else {}),
            **engine_kwargs,
        }
        self._engine = _start(model, arguments)
        self.seconds = time.monotonic() - started

    def start_seconds(self) -> float:
        """How long it took to be ready, imports and downloads included."""
        return self.seconds

    def answer(self, conversations: Sequence[Messages], *, tuned: bool, max_tokens: int) -> list[str]:
        """Greedy answers, in order; by the adapter if ``tuned``."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        outputs = self._engine.chat(
            list(conversations),
            SamplingParams(temperature=0.0, max_tokens=max_tokens),
            lora_request=LoRARequest("tuned", 1, str(self._adapter)) if tuned else None,
            use_tqdm=False,
        )
        return [output.outputs[0].text for output in outputs]


def _start(model: Path, arguments: dict[str, Any]) -> Any:
    from vllm import LLM

    try:
        return LLM(model=str(model), **arguments)
    except (TypeError, ValueError) as error:  # Wrong arguments; pydantic's error is a ValueError.
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"vLLM does not accept the model or engine_kwargs: {reason}.") from error


def _allowed_rank(adapter: Path) -> int:
    rank = int(json.loads((adapter / "adapter_config.json").read_text())["r"])
    allowed = next((allowed for allowed in _RANKS if allowed >= rank), None)
    if allowed is None:
        raise UsageError(f"The adapter's rank {rank} is above vLLM's greatest, {_RANKS[-1]}: lower lora.r.")
    return allowed
