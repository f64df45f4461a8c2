"""The demo, step by step: everything as a user would do it, with the same commands."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.demo import chats, process
from cluster.demo.record import DemoRecord, StepRecord
from cluster.demo.settings import DemoSettings
from cluster.errors import MantaError
from cluster.ray_api import RayApi
from cluster.settings import Settings, load_settings

if TYPE_CHECKING:
    from cluster.demo.data import DemoData

#: Which field of a verb takes which earlier step's artifact.
INPUTS = {
    "finetune": ("dataset", "preprocess"),
    "evaluate": ("checkpoint", "finetune"),
    "promote": ("evaluation", "evaluate"),
    "batch_inference": ("source.dataset", "preprocess"),
}

#: What a verb's summary says to a reader.
OUTCOMES = {
    "preprocess": "{train:,} rows to train on, {test:,} to test with, {quarantined:,} in quarantine",
    "finetune": "{steps} steps, loss {first_loss:.3g} to {last_loss:.3g}",
    "evaluate": "accuracy {base_accuracy:.1%} (base), {tuned_accuracy:.1%} (tuned) on {rows} held-out rows",
    "promote": "{model} is {alias}",
    "batch_inference": "{rows} rows, {rows_per_s:.3g} rows/s, {tokens_per_s:.3g} tokens/s, {blocked} blocked",
}


class Demo:
    """One run: its record, its logs, and the commands that its steps use."""

    def __init__(
        self, settings: DemoSettings, root: Path, say: Callable[[str], None], *, verbose: bool
    ) -> None:
        now = datetime.now(UTC)
        self.settings, self.root = settings, root
        self.record = DemoRecord(id=f"{now:%Y%m%d-%H%M%S}", started_at=now, machine=machine())
        self.say, self._verbose = say, verbose
        #: The raw data, once it is in storage.
        self.data: DemoData | None = None

    @property
    def platform(self) -> Settings:
        """Manta's own settings, read anew: `manta up` changes what the environment says."""
        return load_settings()

    @property
    def api_address(self) -> str:
        """Of Ray's dashboard and job server."""
        return RayApi.from_environment(self.platform.ports.dashboard).address

    @property
    def folder(self) -> Path:
        """Where this demo's record, report and logs stand."""
        return self.platform.state_dir / "reports" / self.record.id

    def command(self, step: str, what: str, words: list[str]) -> process.Finished:
        """Run a command to its end. Raises MantaError with its last sentence and where its log is."""
        log = self.folder / "logs" / f"{step}.log"
        self.say(f"$ {_shown(words)}")
        done = process.run(
            words, log, self.say, cwd=self.root, everything=self._verbose or words[0].endswith("manta")
        )
        return process.check(done, what, log)

    def _inputs(self, verb: str) -> list[str]:
        """What the verb works on: what this demo has made, and not whatever is latest of that name."""
        if verb == "preprocess":
            return self._raw_data()
        field, step = INPUTS.get(verb, ("", ""))
        address = self.record.artifact(step) if step else None
        return [f"--{field}", address] if address else []

    def _raw_data(self) -> list[str]:
        """Where the raw data is: the shipped configuration names the bucket of a local cluster."""
        own = {"train", "test"} & self.settings.overrides.get("preprocess", {}).keys()
        if self.data is None or own or "preprocess" in self.settings.configs:
            return []
        train, test = json.dumps([self.data.train]), json.dumps([self.data.test])
        return ["--train", train, "--test", test, "--license.text", self.data.license]

    def job(self, verb: str) -> StepRecord:
        """Submit a verb as the README shows it, and read its result line."""
        words = [
            process.executable("ray"),
            "job",
            "submit",
            "--address",
            self.api_address,
            "--runtime-env",
            "runtime_env.yaml",
            "--working-dir",
            ".",
            "--",
            "python",
            "-m",
            f"jobs.{verb}",
            "--config",
            self.settings.config(verb),
            *self._inputs(verb),
            *self.settings.arguments(verb),
            "--json",
        ]
        result = self.command(verb, f"The job {verb}", words).result
        if result is None or "artifact" not in result:
            raise MantaError(
                f"The job {verb} printed no result; its whole log is {self.folder}/logs/{verb}.log."
            )
        summary = result.get("summary") or {}
        return StepRecord(
            name=verb,
            title="",
            seconds=0,
            state="found" if result.get("reused") else "done",
            outcome=_outcome(verb, summary),
            artifact=result["artifact"],
            summary=summary,
        )


@dataclass(frozen=True)
class Step:
    """One step: what it is called, what it shows, and what does it."""

    name: str
    title: str
    run: Callable[[Demo], StepRecord | str]


def up(demo: Demo) -> str:
    """Start the parts, and let this process reach them."""
    from cluster.local.environment import export_environment

    if demo.platform.profile != "local":
        return "the cluster of this profile is there already"
    demo.command("up", "`manta up`", [process.executable("manta"), "up"])
    export_environment()
    return "healthy"


def data(demo: Demo) -> str:
    """Put the raw rows into object storage."""
    from cluster.demo.data import put_demo_data
    from cluster.storage import object_store

    put = demo.data = put_demo_data(object_store())
    demo.say(f"{put.train} and {put.test}, licence {put.license}")
    return f"{put.train}, {put.test}"


def deploy(demo: Demo) -> str:
    """Deploy model and gateway, and wait until they serve."""
    demo.command("deploy", "`manta deploy`", [process.executable("manta"), "deploy", demo.settings.serve])
    return f"serving at {os.environ.get('OPENAI_BASE_URL', '')}"


def chat(demo: Demo) -> str:
    """Chat through the gateway; each chat is in the record as soon as it is over."""
    for record in chats.hold(demo.settings, demo.say):
        demo.record.chats.append(record)
    blocked = sum(record.error is not None for record in demo.record.chats)
    return f"{len(demo.record.chats)} chats, {blocked} blocked"


def _job(verb: str) -> Callable[[Demo], StepRecord]:
    return lambda demo: demo.job(verb)


#: The order of a model's life.
STEPS: tuple[Step, ...] = (
    Step("up", "Start Ray, the S3 server and the registry", up),
    Step("data", "Put raw data into S3", data),
    Step(
        "preprocess", "Check the data with Great Expectations and make a dataset version", _job("preprocess")
    ),
    Step("finetune", "Fine-tune the small model: Ray Train, two workers, LoRA", _job("finetune")),
    Step("evaluate", "Ask base and tuned model the same held-out questions", _job("evaluate")),
    Step("promote", "Compare, register and move the alias, or refuse", _job("promote")),
    Step("deploy", "Deploy the model on Ray Serve with the guarded gateway in front", deploy),
    Step("chat", "Chat through the gateway with the openai client", chat),
    Step(
        "batch_inference", "Answer a few hundred prompts in a batch, Parquet in S3", _job("batch_inference")
    ),
)


def run_steps(demo: Demo, steps: tuple[Step, ...] = STEPS) -> MantaError | None:
    """Run the steps in order; the record is saved after each. Return the error of the one that failed."""
    for number, step in enumerate(steps, start=1):
        demo.say(f"--- {number}/{len(steps)} {step.name}: {step.title}")
        started, failure = time.monotonic(), None
        try:
            done = step.run(demo)
        except MantaError as error:
            done, failure = (
                StepRecord(name=step.name, title="", seconds=0, state="failed", outcome=str(error)),
                error,
            )
        if isinstance(done, str):
            done = StepRecord(name=step.name, title="", seconds=0, state="done", outcome=done)
        seconds = time.monotonic() - started
        log = demo.folder / "logs" / f"{step.name}.log"
        changes: dict[str, Any] = {
            "title": step.title,
            "seconds": seconds,
            "log": str(log) if log.exists() else None,
        }
        demo.record.steps.append(done.model_copy(update=changes))
        demo.record.ended_at = datetime.now(UTC)
        demo.record.save(demo.folder / "demo.json")
        if failure is not None:
            return failure
        found = " (found, not run again)" if done.state == "found" else ""
        demo.say(
            f"    {step.name} took {seconds:.1f} s{found}{': ' + done.artifact if done.artifact else ''}"
        )
    return None


def machine() -> dict[str, str]:
    """What this runs on."""
    import psutil

    return {
        "CPUs": str(psutil.cpu_count() or os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "platform": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
    }


def _shown(words: list[str]) -> str:
    first = Path(words[0]).name if words[0].startswith(str(Path(sys.executable).parent)) else words[0]
    return " ".join([first, *words[1:]])


def _outcome(verb: str, summary: dict[str, Any]) -> str:
    """A job's own figures in a few words; as they are if it has others than we know of."""
    try:
        return OUTCOMES[verb].format_map(summary)
    except (KeyError, ValueError):
        figures = {k: v for k, v in summary.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        return ", ".join(f"{k.replace('_', ' ')} {v:,.6g}" for k, v in list(figures.items())[:6])
