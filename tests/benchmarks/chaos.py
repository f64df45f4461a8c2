"""Batches while parts of the cluster are killed at random: is each row there once, at both doors?

    python -m tests.benchmarks.chaos [--rows 2000] [--engine stub|vllm] [--seconds-between 20 40] [--seed 0]

A fresh `manta up` with a second raylet beside it, the gateway, and an engine: the paced one, or real vLLM
with a tiny model (then ``--rows 300`` is plenty). The same rows go in twice at a time: over ``/v1/batches``
with the official client, and with ``jobs.batch_inference`` (warm), submitted to Ray. Meanwhile, drawn from
the seed, a SIGKILL falls on one of: the job's driver (the same command is then submitted again), the batches'
worker, the engine, the gateway, the S3 server (`manta up` starts it again some seconds later), the second
raylet (a new one joins). Each round has every victim once, in another order. Whenever vLLM died, twice its
start-up passes until the next kill.

One row in a hundred holds a secret, which the guards refuse: these, and no others, may fail. The last line is
JSON; ``errors`` are the rows in the error file, of which ``may_fail`` have to be there. The exit status is 1
if a row is missing, twice there, failed or cut without need, if more can be seen than the two results, or if
they were there before each victim was killed once, which proves nothing of it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.benchmarks.chaos_victims import ENGINE, NODE, S3, VICTIMS, SecondNode, Victims
from tests.integration.conftest import ROOT, LocalCluster, local_cluster

if TYPE_CHECKING:
    from openai import OpenAI

#: Of the model's application, its route, and the job.
NAME = "chaos"
SOURCE = "chaos/prompts.jsonl"
#: Of nobody, which the guards cannot know.
SECRET = "AKIAQ3EGRPLS5XJ7WKZD"
#: Rows that each door asks at once, and tokens of an answer: so that all of them last for several kills of
#: each victim. An answer of the paced engine takes 3.2 s.
CONCURRENCY = {"stub": 16, "vllm": 2}
TOKENS = {"stub": 16, "vllm": 400}
PACE_MS = 200
_AWAY_S = (2.0, 8.0)
_ENDED = ("completed", "failed", "cancelled", "expired")
Say = Callable[[str], None]


@dataclass
class Found:
    """What a door's result holds: each answered row with its tokens, and the failed ones with their codes."""

    answered: list[tuple[str, int]]
    failed: list[tuple[str, str]]
    #: What can be seen besides.
    stray: list[str]

    def figures(self, expected: set[str]) -> dict[str, int]:
        """For the JSON line."""
        times = Counter([name for name, _ in self.answered] + [name for name, _ in self.failed])
        return {
            "rows_found": len(times.keys() & expected),
            "duplicates": sum(count > 1 for count in times.values()),
            "missing": len(expected - times.keys()),
            "errors": len(self.failed),
        }

    def faults(self, expected: set[str], may_fail: set[str], tokens: int) -> list[str]:
        """What should not be, in words."""
        figures, told = self.figures(expected), [f"{what} can be seen" for what in self.stray]
        told += [f"{figures[kind]} rows are {kind}" for kind in ("duplicates", "missing") if figures[kind]]
        if unasked := {name for name, _ in self.answered + self.failed} - expected:
            told.append(f"{len(unasked)} rows that nobody asked")
        if cut := [name for name, made in self.answered if made != tokens]:
            told.append(f"{len(cut)} answers are cut ({cut[0]})")
        if needless := Counter(code for name, code in self.failed if name not in may_fail):
            told.append(f"rows failed without need: {dict(needless)}")
        if passed := may_fail & {name for name, _ in self.answered}:
            told.append(f"{len(passed)} rows with a secret were answered")
        return told


def spared(kills: Counter[str]) -> list[str]:
    """Of which victims nothing was proved, in words."""
    return [f"{victim} was never killed: more rows take longer" for victim in VICTIMS if not kills[victim]]


def lines(rows: int, engine: str) -> list[dict[str, Any]]:
    """OpenAI's batch lines."""
    body = {"model": NAME, "max_tokens": TOKENS[engine], "temperature": 0}
    body |= {"ignore_eos": True} if engine == "vllm" else {}

    def text(number: int) -> str:
        return f"My key is {SECRET}, number {number}" if number % 100 == 50 else f"Say something of {number}."

    return [
        {
            "custom_id": f"row-{number:06d}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body | {"messages": [{"role": "user", "content": text(number)}]},
        }
        for number in range(rows)
    ]


# The two doors


def over_the_api(
    client: OpenAI, content: bytes, begun: threading.Event, over: threading.Event, say: Say
) -> Found:
    """Upload, batch, results."""
    from openai import APIError

    file = client.files.create(file=("rows.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    begun.set()
    told = 0.0
    while batch.status not in _ENDED:
        if over.wait(1):
            raise SystemExit(f"the batch is {batch.status!r} when time is over")
        try:
            batch = client.batches.retrieve(batch.id)
        except APIError:
            continue  # The gateway is away.
        if time.monotonic() > told + 30:
            told, counts = time.monotonic(), batch.request_counts
            say(f"api: {batch.status}, {counts and counts.completed} answered")
    say(f"api: {batch.status}")
    found = Found([], [], [] if batch.status == "completed" else [f"the state {batch.status!r}"])
    made = [name for name in (batch.output_file_id, batch.error_file_id) if name]
    for line in (json.loads(text) for name in made for text in client.files.content(name).text.splitlines()):
        body = (line["response"] or {}).get("body") or {}
        if "usage" in body:
            found.answered.append((line["custom_id"], body["usage"]["completion_tokens"]))
        else:
            error = body.get("error") or line["error"] or {}
            found.failed.append((line["custom_id"], str(error.get("code"))))
    others = {item.id for item in client.files.list()} - {file.id, *made}
    found.stray += [f"the file {name}" for name in others]
    return found


def over_ray(engine: str, begun: threading.Event, over: threading.Event, say: Say) -> Found:
    """The verb as a Ray job, submitted until it succeeds."""
    from cluster.errors import MantaError
    from cluster.job import submit as jobs
    from cluster.storage import object_store

    words = ["--name", NAME, "--source.path", object_store().uri(SOURCE), "--model", NAME]
    words += ["--concurrency", str(CONCURRENCY[engine]), "--progress_s", "30"]
    while not over.is_set():
        try:
            made = jobs.submit("batch_inference", overrides=words, as_json=True, working_dir=ROOT)
            begun.set()
            while (ended := jobs.outcome(made)).status not in jobs.ENDED and not over.wait(1):
                pass
        except MantaError as error:
            say(f"job: {error}")
            time.sleep(2)
            continue
        if ended.status == "SUCCEEDED" and ended.result is not None:
            say(f"job: succeeded, {ended.result['summary']['resumed']} rows were answered before")
            return stored(ended.result["artifact"])
        say(f"job: {ended.message}")
    raise SystemExit("the job has not succeeded when time is over")


def stored(address: str) -> Found:
    """What the artifact holds, which must be the only one."""
    from cluster.settings import load_settings
    from cluster.storage import ArtifactStore, object_store
    from jobs.batch.rows import read_parts

    artifacts = ArtifactStore(object_store())
    manifest = artifacts.open(address)
    artifacts.verify(manifest)
    prefix = artifacts.prefix(manifest)
    keys = [prefix + file.path for file in manifest.files if file.path.endswith(".parquet")]
    found = Found([], [], [])
    for row in read_parts(artifacts.store, keys, ["row_id", "status", "completion_tokens", "error_code"]):
        if row["status"] == "succeeded":
            found.answered.append((row["row_id"], row["completion_tokens"]))
        else:
            found.failed.append((row["row_id"], row["error_code"]))
    seen = artifacts.list(load_settings().team, "batch-output")
    found.stray += [f"the artifact {other.ref}" for other in seen if other.ref != manifest.ref]
    return found


# What goes on meanwhile


def strike(
    victims: Victims,
    chance: random.Random,
    between: Sequence[float],
    start_s: float,
    over: threading.Event,
    say: Say,
) -> Counter[str]:
    """Kill one after the other until it is over; how often each was.

    :param start_s: what the engine takes to start: twice that is left to it after its death.
    """
    kills, order = Counter[str](), list[str]()
    wait_s = chance.uniform(*between)
    while not over.wait(wait_s):
        order = order or chance.sample(VICTIMS, len(VICTIMS))
        engines, at = {process.pid for process in victims.find(ENGINE)}, time.monotonic()
        victim = next((name for name in order if victims.kill(name, chance)), None)
        if victim is None:  # None of them runs now: the next round has all again.
            order.clear()
            wait_s = 1.0
            continue
        order.remove(victim)
        kills[victim] += 1
        say(f"killed {victim}")
        if victim in (S3, NODE):
            over.wait(chance.uniform(*_AWAY_S))
            victims.start_again(victim)
            say(f"{victim} is back")
        time.sleep(1)
        died = not engines or engines - {process.pid for process in victims.find(ENGINE)}
        apart = max(chance.uniform(*between), 2 * start_s if died else 0.0)
        wait_s = max(0.0, at + apart - time.monotonic())
    return kills


@contextmanager
def fresh() -> Iterator[LocalCluster]:
    """`manta up` on free ports; this process's environment leads to it. At the end nothing is left."""
    from cluster.local.credentials import Credentials
    from cluster.local.environment import adopt
    from cluster.local.home import Home
    from cluster.settings import load_settings
    from tests.conftest import forget_settings

    cluster = local_cluster()
    try:
        cluster.must("up", timeout=600)
        os.environ.update({name: value for name, value in cluster.environment.items() if "MANTA_" in name})
        forget_settings()
        credentials = Credentials.load(Home(cluster.home))
        assert credentials is not None, "manta up makes them"
        adopt(load_settings(), credentials)
        yield cluster
    finally:
        cluster.remove()


def deploy(cluster: LocalCluster, engine: str, work: Path) -> float:
    """Gateway and engine by `manta deploy`; the seconds that it took."""
    from tests.integration.serving import tiny_configuration
    from tests.tiny_model import make_tiny_llama

    if engine == "vllm":
        content = tiny_configuration(make_tiny_llama(work / "tiny"), [])
        application = content["applications"][1]
        application["name"] = application["args"]["llm_config"]["model_loading_config"]["model_id"] = NAME
        content["applications"][0]["args"] = {}
    else:
        gateway = {"name": "gateway", "route_prefix": "/", "import_path": "deployments.gateway:build"}
        content = {"applications": [gateway | {"args": {}}, paced()]}
    content["applications"][0]["args"]["batches"] = {"concurrency": CONCURRENCY[engine]}
    file = work / "serve.yaml"
    file.write_text(yaml.safe_dump(content))
    began = time.monotonic()
    cluster.must("deploy", str(file), timeout=1200)
    if engine == "stub":
        publish_route()
    return time.monotonic() - began


def paced() -> dict[str, Any]:
    """The stub's application. It is among the tests, which deployed code does not hold."""
    from cluster.job.submit import read_runtime_env
    from cluster.storage import object_store
    from deployments.package import upload_code

    excludes = [pattern for pattern in read_runtime_env(ROOT)["excludes"] if pattern != "tests/"]
    return {
        "name": NAME,
        "route_prefix": None,
        "import_path": "tests.paced_engine:build",
        "args": {"pace_ms": PACE_MS},
        "runtime_env": {"working_dir": upload_code(ROOT, excludes, object_store())},
    }


def publish_route() -> None:
    """A route to the stub, which `manta deploy` makes for models alone."""
    from cluster import snapshots
    from cluster.contracts import Route, Target

    target = Target(application=NAME, deployment="model", model=NAME, digest="5" * 64)
    route = Route(model=NAME, targets=[target], created_at=datetime.now(UTC))
    snapshots.publish(lambda s: s.model_copy(update={"routes": [*s.routes, route]}), by="chaos")


def under_fire(
    options: argparse.Namespace, victims: Victims, content: bytes, start_s: float, say: Say
) -> tuple[list[Found], Counter[str]]:
    """Both doors at work while parts are killed."""
    from openai import OpenAI

    over, doors = threading.Event(), (threading.Event(), threading.Event())
    chance, rest_s = random.Random(options.seed), start_s if options.engine == "vllm" else 0.0
    with ThreadPoolExecutor(3) as pool, OpenAI(max_retries=20) as client:
        ends = [
            pool.submit(over_the_api, client, content, doors[0], over, say),
            pool.submit(over_ray, options.engine, doors[1], over, say),
        ]
        try:
            while not all(door.wait(1) for door in doors) and not any(end.done() for end in ends):
                pass
            between = options.seconds_between
            killing = pool.submit(strike, victims, chance, between, rest_s, over, say)
            killing.add_done_callback(lambda _: over.set())  # Who cannot kill any more proves nothing.
            done, _ = wait(ends, options.limit_s, FIRST_EXCEPTION)
            if killing.done():
                killing.result()
            for end in done:  # The one that failed, before the other, which is told to give up.
                end.result()
        finally:
            over.set()
        return [end.result() for end in ends], killing.result()


def run(options: argparse.Namespace, say: Say) -> tuple[dict[str, Any], list[str]]:
    """The figures, and what should not be."""
    asked = lines(options.rows, options.engine)
    content = b"".join(json.dumps(line).encode() + b"\n" for line in asked)
    may_fail = {line["custom_id"] for line in asked if SECRET in line["body"]["messages"][0]["content"]}
    expected = {line["custom_id"] for line in asked}
    with fresh() as cluster, tempfile.TemporaryDirectory(prefix="chaos-") as work:
        from cluster.storage import object_store

        object_store().put(SOURCE, content)
        node = SecondNode(cluster)
        try:
            node.start()
            say("two nodes")
            start_s = deploy(cluster, options.engine, Path(work))
            say(f"deployed in {start_s:.0f} s")
            began = time.monotonic()
            found, kills = under_fire(options, Victims(cluster, node, NAME), content, start_s, say)
            seconds = time.monotonic() - began
        finally:
            node.stop()
    faults = [
        f"{name}: {fault}"
        for name, end in zip(("api", "job"), found, strict=True)
        for fault in end.faults(expected, may_fail, TOKENS[options.engine])
    ]
    faults += spared(kills)
    figures = {
        "rows": options.rows,
        "may_fail": len(may_fail),
        "kills": {victim: kills[victim] for victim in VICTIMS},
        "api": found[0].figures(expected),
        "job": found[1].figures(expected),
        "seconds": round(seconds),
    }
    return figures, faults


def main() -> int:
    """Run it, print a table, end with the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--engine", choices=("stub", "vllm"), default="stub")
    parser.add_argument("--seconds-between", type=float, nargs=2, default=(20.0, 40.0))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=float, default=5400.0, help="Longest wait for both results.")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # Ray's client tells of every file that it packs, or does not.
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:7.1f} s] {text}", flush=True)

    figures, faults = run(options, say)
    print(f"\n{'':<8}{'found':>8}{'twice':>8}{'missing':>9}{'failed':>8}   of {options.rows} rows")
    for name in ("api", "job"):
        row = figures[name]
        print(f"{name:<8}{row['rows_found']:>8}{row['duplicates']:>8}{row['missing']:>9}{row['errors']:>8}")
    print("killed: " + ", ".join(f"{victim} {count} times" for victim, count in figures["kills"].items()))
    for fault in faults:
        print(f"wrong: {fault}")
    print(json.dumps(figures))
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
