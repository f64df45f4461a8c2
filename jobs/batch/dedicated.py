"""The dedicated engine: Ray Data LLM starts vLLM for this batch and spreads it over the cluster.

Worth its start (a minute or two) for large batches. Requests are read from storage by the workers, guards
run in their own stage before and after the engine, and finished rows stream back to the job, which writes
them: a result row is small beside the work that made it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.contracts import PolicyDocument, Principal
from cluster.errors import UsageError
from cluster.job.preflight import preflight
from cluster.lora_on_cpu import WORKER_EXTENSION
from jobs.batch.guarding import BatchGuards, judged_answer, refused
from jobs.batch.lives import lives
from jobs.batch.rows import Answer, BatchRequest, request_of
from jobs.batch.sampling import engine_parameters, unsupported

if TYPE_CHECKING:
    from ray.data import Dataset


#: On CPUs vLLM would else take most of the machine's memory for its cache.
CPU_VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB


class DedicatedConfig(BaseModel):
    """Ray Data LLM's own settings, under their own names (``vLLMEngineProcessorConfig``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine_kwargs: dict[str, Any] = Field(default_factory=dict, description="vLLM's engine arguments.")
    concurrency: int = Field(1, ge=1, description="Engine replicas.")
    batch_size: int = Field(64, ge=1, description="Rows that go to an engine together.")
    accelerator_type: str | None = Field(None, description="Ray's accelerator type; none on CPU.")
    placement_group_config: dict[str, Any] = Field(
        default_factory=lambda: {"bundles": [{"CPU": 1}]},
        description="Ray's placement group of one replica; Ray's own default asks for a GPU.",
    )
    runtime_env: dict[str, Any] = Field(
        default_factory=dict,
        description="Ray's runtime environment of the engine, e.g. env_vars with VLLM_*.",
    )
    guard_concurrency: int = Field(
        1, ge=1, description="Workers for the guards, before and after the engine."
    )
    guard_num_cpus: float = Field(0.5, gt=0, description="Logical CPUs of one such worker.")
    start_timeout_s: float = Field(900.0, gt=0, description="Seconds to the first row: the engine's start.")
    stall_timeout_s: float = Field(
        300.0, gt=0, description="Seconds without a row after which the engine is killed and started anew."
    )
    restarts: int = Field(2, ge=0, description="So often; then the run ends, and answered rows are kept.")


@dataclass(frozen=True)
class Weights:
    """What the engine loads."""

    model_source: str
    adapter: str | None = None
    adapters_uri: str | None = None
    max_lora_rank: int = 16


def check_supported(request: BatchRequest) -> None:
    """Refuse what plain generation cannot honour. Raises UsageError."""
    if keys := unsupported(request.body):
        raise UsageError(
            f"Row {request.custom_id} asks for {', '.join(keys)}, which the dedicated engine does not have:"
            " use engine: warm; nothing was run."
        )


def check_schedulable(config: DedicatedConfig) -> None:
    """Refuse a plan that the cluster could never place. Raises RefusedError."""
    bundles = list(config.placement_group_config.get("bundles") or []) * config.concurrency
    guards = [{"CPU": config.guard_num_cpus}] * (2 * config.guard_concurrency)
    # Ray Data's own tasks take what is left, one CPU at least.
    preflight([*bundles, *guards, {"CPU": 1}], asker="The batch", remedy="lower dedicated.concurrency")


class DedicatedEngine:
    """Runs the guards and the engine over request files."""

    def __init__(
        self,
        config: DedicatedConfig,
        weights: Weights,
        policy: PolicyDocument,
        principal: Principal,
        *,
        chat: bool,
        seed: bool,
        stop: bool,
        say: Callable[[str], None],
    ) -> None:
        self._config, self._weights, self._policy, self._principal = config, weights, policy, principal
        self._chat, self._seed, self._stop, self._say = chat, seed, stop, say

    def answers(self, requests: Dataset) -> Iterator[dict[str, Any]]:
        """Stored rows as they finish. Raises UnavailableError when the engine stalls time and again."""
        from ray.data import DataContext
        from ray.data.expressions import col
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        # The job has a progress line of its own; Ray Data's would bury it.
        DataContext.get_current().enable_progress_bars = False
        guards = {
            "fn_constructor_args": (self._policy, self._principal),
            "concurrency": self._config.guard_concurrency,
            "num_cpus": self._config.guard_num_cpus,
            "batch_size": self._config.batch_size,
            "batch_format": "pyarrow",
        }
        # Without small blocks a row is out only when the last one of its file is: nothing would be durable.
        blocks = requests.repartition(target_num_rows_per_block=self._config.batch_size)
        guarded = blocks.map_batches(_GuardRequests, **guards).materialize()
        yield from _rows(guarded.filter(expr=col("blocked")), "answer")
        clear = guarded.filter(expr=~col("blocked"))
        if clear.count() == 0:
            return

        def answer(rows: Dataset) -> Dataset:
            processor = build_processor(
                vLLMEngineProcessorConfig(**self._processor_settings()),
                preprocess=_Preprocess(self._weights.adapter, self._chat, self._seed, self._stop),
                postprocess=_postprocess,
            )
            return processor(rows).map_batches(_GuardAnswers, **guards)

        yield from lives(
            answer,
            clear,
            restarts=self._config.restarts,
            start_s=self._config.start_timeout_s,
            stall_s=self._config.stall_timeout_s,
            say=self._say,
        )

    def _processor_settings(self) -> dict[str, Any]:
        engine = dict(self._config.engine_kwargs)
        if self._weights.adapter is not None:
            engine = {
                "enable_lora": True,
                "max_loras": 1,
                "max_lora_rank": self._weights.max_lora_rank,
                **({"worker_extension_cls": WORKER_EXTENSION} if self._on_cpu else {}),
                **engine,
            }
        return {
            "model_source": self._weights.model_source,
            "dynamic_lora_loading_path": self._weights.adapters_uri,
            "engine_kwargs": engine,
            "concurrency": self._config.concurrency,
            "batch_size": self._config.batch_size,
            "accelerator_type": self._config.accelerator_type,
            "placement_group_config": self._config.placement_group_config,
            "runtime_env": self._runtime_env(),
            "chat_template_stage": {"enabled": self._chat, "num_cpus": 0.25},
            "tokenize_stage": {"enabled": True, "num_cpus": 0.25},
            "detokenize_stage": {"enabled": False},
            # One row that the engine cannot take must not cost the others.
            "should_continue_on_error": True,
        }

    @property
    def _on_cpu(self) -> bool:
        bundles = self._config.placement_group_config.get("bundles") or []
        return bool(bundles) and not any(bundle.get("GPU") for bundle in bundles)

    def _runtime_env(self) -> dict[str, Any]:
        given = self._config.runtime_env
        usual = (
            {name: os.environ.get(name, value) for name, value in CPU_VARIABLES.items()}
            if self._on_cpu
            else {}
        )
        variables = {**usual, **(given.get("env_vars") or {})}
        return {**given, "env_vars": variables} if variables else given


class _GuardRequests:
    """Ray Data stage: the policy over prompts. A blocked row carries its answer already."""

    def __init__(self, policy: PolicyDocument, principal: Principal) -> None:
        self._guards = BatchGuards(policy, principal)

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        return _as_columns(asyncio.run(self._all(batch.to_pylist())))

    async def _all(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(self._one(row) for row in rows)))

    async def _one(self, row: dict[str, Any]) -> dict[str, Any]:
        request = request_of(row)
        asked = await self._guards.request(request)
        return {
            **row,
            "body": json.dumps(asked.body),
            "asked": asked.model_dump_json(exclude={"body"}),
            "blocked": asked.blocked,
            "answer": json.dumps(refused(request, asked).columns()) if asked.blocked else "",
        }


class _GuardAnswers:
    """Ray Data stage: the policy over what the engine made, and the row as it is stored."""

    def __init__(self, policy: PolicyDocument, principal: Principal) -> None:
        self._guards = BatchGuards(policy, principal)

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        return {"answer": asyncio.run(self._all(batch.to_pylist()))}

    async def _all(self, rows: list[dict[str, Any]]) -> list[str]:
        answers = await asyncio.gather(*(self._one(row) for row in rows))
        return [json.dumps(answer.columns()) for answer in answers]

    async def _one(self, row: dict[str, Any]) -> Answer:
        from validation.guards import BodyVerdict

        request = request_of(row)
        asked = BodyVerdict.model_validate({**json.loads(row["asked"]), "body": request.body})
        if error := row.get("__inference_error__"):
            return Answer(
                request,
                "failed",
                input_findings=asked.findings,
                error_code="engine_error",
                error_message=" ".join(str(error).split())[:500],
            )
        made = await self._guards.answer(request, _openai_body(request, row))
        return judged_answer(request, asked, made, float(row["time_taken_llm"]))


class _Preprocess:
    """A stored request as Ray Data LLM wants it: messages or prompt, and sampling parameters."""

    def __init__(self, adapter: str | None, chat: bool, seed: bool, stop: bool) -> None:
        self._adapter, self._chat, self._seed, self._stop = adapter, chat, seed, stop

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        body = json.loads(row["body"])
        key = "messages" if self._chat else "prompt"
        wanted = {
            key: body[key],
            "sampling_params": engine_parameters(body, row["row_id"], seed=self._seed, stop=self._stop),
        }
        return {**wanted, "model": self._adapter} if self._adapter is not None else wanted


_KEPT = ("row_id", "custom_id", "endpoint", "body", "number", "asked")


def _postprocess(row: dict[str, Any]) -> dict[str, Any]:
    figures = ("generated_text", "num_input_tokens", "num_generated_tokens", "time_taken_llm")
    return {key: row[key] for key in (*_KEPT, *figures)}


def _openai_body(request: BatchRequest, row: dict[str, Any]) -> dict[str, Any]:
    """The engine's row as an OpenAI answer, so that both engines store the same."""
    made, asked = int(row["num_generated_tokens"]), int(row["num_input_tokens"])
    # Ray Data LLM does not pass vLLM's finish_reason on; a text cut at its limit is the one other ending.
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "length" if made >= request.body["max_tokens"] else "stop",
    }
    if request.endpoint == "completions":
        choice["text"] = row["generated_text"]
    else:
        choice["message"] = {"role": "assistant", "content": row["generated_text"]}
    return {
        "object": "text_completion" if request.endpoint == "completions" else "chat.completion",
        "choices": [choice],
        "usage": {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made},
    }


def _as_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def _rows(dataset: Dataset, column: str) -> Iterator[dict[str, Any]]:
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for text in batch.column(column).to_pylist():
            yield json.loads(text)
