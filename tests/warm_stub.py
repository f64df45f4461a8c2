"""A batch's driver with an engine in its own process, in place of a model application on Ray Serve.

    python -m tests.warm_stub LOG <arguments of jobs.batch_inference>

What is tested with it is the driver, killed and started again in seconds. LOG gets a line for each row that
the engine is asked, and the next process counts on.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from cluster.job import JobResult

#: Seconds that an answer takes.
PACE_S = 0.02
_ANSWER = "A short answer of about a dozen words, as models give them."


class StubEngine:
    """In place of a Serve handle: whole answers in one item; instructions stand in the message itself.

    :param log: file that gets the id of each row asked.
    :param say: the answer, by the model's name and the prompt.
    """

    def __init__(
        self,
        log: Path | None = None,
        pace_s: float = PACE_S,
        say: Callable[[str, str], str] | None = None,
    ) -> None:
        self._say = say or (lambda model, text: _ANSWER)
        self._log = log.open("a") if log else None
        self._pace_s = pace_s
        self.asked = asked(log) if log else Counter[str]()

    def remote(self, request: dict[str, Any]) -> AsyncIterator[bytes]:
        """As a handle's, with ``stream=True``."""
        row = request["request_id"].removeprefix("batch-")
        if self._log:
            self.asked[row] += 1
            self._log.write(f"{row}\n")
            self._log.flush()
        body = request["body"]
        return self._answer(body["model"], body["messages"][-1]["content"], self.asked[row])

    async def _answer(self, model: str, text: str, time: int) -> AsyncIterator[bytes]:
        if self._pace_s:
            await asyncio.sleep(self._pace_s)
        if "BUSY-ONCE" in text and time == 1:
            yield b'event: error\ndata: {"status": 503, "message": "Busy."}\n\n'
            return
        if "TOO-LONG" in text:
            yield b'event: error\ndata: {"status": 400, "message": "The prompt is too long."}\n\n'
            return
        message = {"role": "assistant", "content": self._say(model, text)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 20, "completion_tokens": 12, "total_tokens": 32}
        body = {"object": "chat.completion", "choices": [choice], "usage": usage}
        yield f"data: {json.dumps(body)}\n\ndata: [DONE]\n\n".encode()


class StubBatches:
    """Batches of ``prompts.jsonl`` in a folder, in this process; ``asked`` beside it notes what was asked."""

    def __init__(
        self, patch: pytest.MonkeyPatch, folder: Path, say: Callable[[str, str], str] | None = None
    ) -> None:
        from jobs import batch_inference
        from jobs.batch import warm

        for module, name in ((warm, "_handle"), (batch_inference, "connect")):
            patch.setattr(module, name, getattr(module, name))  # Put back after the test.
        self.log = folder / "asked"
        self.source: dict[str, Any] = {"path": str(folder / "prompts.jsonl")}
        self._engine = StubEngine(self.log, 0, say)
        play(self._engine)

    def run(self, name: str, model: str, **fields: Any) -> JobResult:
        """One batch. Raises what the job raises."""
        from jobs.batch_inference import BatchInferenceConfig, run

        config = {"name": name, "source": self.source, "model": model, "attempts": 1, **fields}
        return run(BatchInferenceConfig.model_validate(config))


def asked(log: Path) -> Counter[str]:
    """How often each row was asked."""
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()


def play(engine: StubEngine) -> None:
    """From now on this process's warm batches ask that engine."""
    from jobs import batch_inference
    from jobs.batch import warm

    warm._handle = lambda target: engine  # type: ignore[assignment, return-value]
    batch_inference.connect = lambda: None  # Nothing here needs Ray's cluster.


def publish(model: str = "stub", digest: str = "4" * 64) -> str:
    """A route, which the job pins; another digest stands for other weights."""
    from cluster import snapshots
    from cluster.contracts import Route, Target

    target = Target(application="stub", deployment="model", model=model, digest=digest)
    route = Route(model=model, targets=[target], created_at=datetime.now(UTC))
    snapshots.publish(lambda s: s.model_copy(update={"routes": [*s.routes, route]}), by="test")
    return model


def write_prompts(path: Path, texts: Any) -> None:
    """OpenAI's batch lines, with ids in no order."""
    head = {"method": "POST", "url": "/v1/chat/completions"}
    with path.open("w") as out:
        for number, text in enumerate(texts):
            custom_id = f"row-{number * 7_368_787 % 10_000_019:08d}"
            body = {"messages": [{"role": "user", "content": text}]}
            out.write(json.dumps({"custom_id": custom_id, **head, "body": body}) + "\n")


def main() -> int:
    """The job's command."""
    from cluster.job import command
    from jobs import batch_inference

    log, *words = sys.argv[1:]
    play(StubEngine(Path(log)))
    return command(batch_inference.BatchInferenceConfig, batch_inference.run, words)


if __name__ == "__main__":
    raise SystemExit(main())
