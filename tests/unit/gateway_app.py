"""The gateway's whole ASGI application over a scripted model: what no small real model can be made to say."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
from starlette.types import ASGIApp

from cluster.contracts import ApiKey, PolicyDocument, Route, Snapshot, Target, UpstreamRequest
from deployments.gateway.app import make_app
from deployments.gateway.args import GatewayArgs
from deployments.gateway.assembly import Assembled, record_observers
from deployments.gateway.batches import Workers
from deployments.gateway.budget import Budgets, Ledger
from deployments.gateway.limits import Limiter, ReplicaCount
from deployments.gateway.pipeline import Pipeline
from deployments.gateway.record import Observer
from deployments.gateway.report import Report
from deployments.gateway.sink import RecordSink
from deployments.gateway.upstream import Upstreams
from deployments.gateway.view import EngineFactory, Poller
from validation.guards import GuardEngine, parse_policy

KEY = "sk-test"
Chunk = dict[str, Any]


def key(secret: str = KEY, **more: Any) -> ApiKey:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return ApiKey(**{"id": "tester", "sha256": digest, "team": "default"} | more)


def route(model: str = "m", **more: Any) -> Route:
    targets = [Target(application="app", deployment="model", model=f"engine-{model}")]
    return Route(**{"model": model, "targets": targets, "created_at": datetime.now(UTC)} | more)


def policy(name: str, *guards: dict[str, Any]) -> PolicyDocument:
    return parse_policy({"name": name, "version": 1, "guards": list(guards)}).document()


def snapshot(**more: Any) -> Snapshot:
    content = {"number": 1, "created_at": datetime.now(UTC), "created_by": "test", "keys": [key()]}
    return Snapshot(**content | {"routes": [route()]} | more)


def chat(
    content: str | None = None,
    *,
    index: int = 0,
    finish: str | None = None,
    logprobs: Any = None,
    **delta: Any,
) -> Chunk:
    body = {"index": index, "delta": ({"content": content} if content is not None else {}) | delta}
    return {"choices": [body | {"logprobs": logprobs, "finish_reason": finish}]}


def usage(prompt: int, completion: int) -> Chunk:
    tokens = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"choices": [], "usage": tokens}


class NoWorkers:
    """No batch worker hears it."""

    def wake(self) -> None: ...

    def step_back(self) -> None: ...


class Script(Upstreams):
    """An upstream that says what it is told to."""

    def __init__(self) -> None:
        super().__init__(600.0, {})
        self.says: list[Chunk | Exception] = []
        #: What it says to the first requests, one each, before ``says``.
        self.first: list[list[Chunk | Exception]] = []
        self.requests: list[UpstreamRequest] = []
        self.targets: list[Target] = []
        self.closed = 0
        self.pause_s = 0.0
        self.begun = asyncio.Event()
        #: Nothing is said while it is not set.
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def chunks(self, target: Target, request: UpstreamRequest) -> AsyncGenerator[list[Chunk], None]:
        self.requests.append(request)
        self.targets.append(target)
        self.begun.set()
        try:
            for item in self.first.pop(0) if self.first else self.says:
                await asyncio.sleep(self.pause_s)
                await self.go_on.wait()
                if isinstance(item, Exception):
                    raise item
                yield [item]
        finally:
            self.closed += 1


class Fixture:
    """A running gateway and what stands around it."""

    def __init__(
        self,
        app: ASGIApp,
        script: Script,
        http: httpx.AsyncClient,
        snapshots: list[Snapshot],
        poller: Poller,
        sink: RecordSink,
        pipeline: Pipeline,
    ) -> None:
        self.app = app
        self.script = script
        self.http = http
        self.snapshots = snapshots
        self.poller = poller
        self.sink = sink
        self.pipeline = pipeline
        self.client = openai.AsyncOpenAI(
            api_key=KEY, base_url="http://gateway/v1", http_client=http, max_retries=0
        )

    async def publish(self, new: Snapshot) -> None:
        self.snapshots.append(new)
        await self.poller.look()


def no_ledger() -> Ledger:
    raise AssertionError("no key has a budget")


@asynccontextmanager
async def gateway(
    first: Snapshot | None = None,
    limiter: Limiter | None = None,
    observers: Sequence[Observer] = (),
    engines: EngineFactory = GuardEngine,
    budgets: Budgets | None = None,
    spool: Path | None = None,
    workers: Workers | None = None,
    **args: Any,
) -> AsyncIterator[Fixture]:
    """The application, started as a server starts it, and an HTTP client that calls it in this process.

    :param spool: records go there, and to storage; without it none are made.
    """
    snapshots = [first or snapshot()]
    script = Script()
    settings = GatewayArgs(**args)
    poller = Poller(lambda after: snapshots[-1] if snapshots[-1].number > after else None, engines, 3600.0)
    replicas = ReplicaCount(lambda: 1, lambda: False, 3600.0)
    limiter = limiter or Limiter(lambda: replicas.value)
    budgets = budgets or Budgets(no_ledger, "test", share=1.0, interval_s=3600.0)
    folder = spool or Path(tempfile.mkdtemp(prefix="spool"))
    # However slow the machine is, what was put into the spool is in storage at the end.
    sink = RecordSink(settings.records.model_copy(update={"stop_timeout_s": 600.0}), folder)
    traffic, recorders = record_observers(settings.records, sink)
    beside = [Report(), *observers, *(recorders if spool else [])]
    pipeline = Pipeline(settings, poller, script, limiter, budgets, beside, traffic.keeps_answer)
    assembled = Assembled(pipeline, script, replicas, limiter, sink)
    app = make_app(assembled, workers or NoWorkers(), behind_proxy=False)
    started = asyncio.Event()
    stop = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not started.is_set():
            started.set()
            return {"type": "lifespan.startup"}
        await stop.wait()
        return {"type": "lifespan.shutdown"}

    up = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        assert "failed" not in message["type"], message
        up.set()

    life = asyncio.create_task(app({"type": "lifespan", "state": {}}, receive, send))
    await up.wait()
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            yield Fixture(app, script, http, snapshots, poller, sink, pipeline)
    finally:
        stop.set()
        await life
        if spool is None:
            shutil.rmtree(folder)
