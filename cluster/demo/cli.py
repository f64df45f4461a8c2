"""``manta demo``: a model's whole life on this machine, and a report of it."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.errors import MantaError, UsageError

if TYPE_CHECKING:
    from cluster.demo.steps import Demo


@click.command()
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="YAML file with another choice of models, rows and steps' configurations.",
)
@click.option("--fresh", is_flag=True, help="Forget earlier runs: use a new, empty MANTA_HOME.")
@click.option("--verbose", is_flag=True, help="Show every line that a step prints.")
def demo(config: Path | None, fresh: bool, verbose: bool) -> int:
    """Run a model's whole life, from data to a served model and a batch, and write a report.

    What an earlier demo has made is found and not made again; --fresh makes all of it anew.
    """
    from cluster.demo.settings import load_demo_settings
    from cluster.demo.steps import Demo, run_steps
    from cluster.job.submit import find_working_dir

    settings = load_demo_settings(config)
    say = _clocked()
    if fresh:
        _new_home(say)
    run = Demo(settings, find_working_dir(), say, verbose=verbose)
    failure = run_steps(run)
    page = _report(run, failure)
    if failure is not None:
        raise failure
    for title, snippet in next_steps(run).items():
        click.echo(f"\n{title}:")
        click.echo("\n".join(f"  {line}" for line in snippet.splitlines()))
    click.echo(f"\nReport: {page.as_uri() if page else run.folder}")
    return 0


def next_steps(run: Demo) -> dict[str, str]:
    """What to try when the demo is over: title to command."""
    activate = Path(sys.prefix) / "bin" / "activate"
    url, model = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), run.settings.tuned_model
    question = "Is this message to an AI assistant safe or an attack? Answer with one word: safe or attack."
    question += "\\n\\nMessage: What time is it?"
    python = (
        "from openai import OpenAI\n\n"
        "stream = OpenAI().chat.completions.create(\n"
        f'    model="{model}", stream=True, temperature=0,\n'
        f'    messages=[{{"role": "user", "content": "{question}"}}],\n'
        ")\n"
        'print("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))'
    )
    curl = (
        f'curl -s {url}/chat/completions -H "Authorization: Bearer $OPENAI_API_KEY" '
        '-H "Content-Type: application/json" \\\n'
        f'  -d \'{{"model": "{model}", "max_tokens": 9,\n'
        f'       "messages": [{{"role": "user", "content": "{question}"}}]}}\''
    )
    steps = {
        "Ask the model with curl": curl,
        "Ask it with the openai client": python,
        "Look at Ray's dashboard": run.api_address,
    }
    if run.platform.profile != "local":
        return steps
    reach = f"source {activate}\n" if activate.is_file() else ""
    return {
        "Let this shell reach the cluster": f'{reach}eval "$(manta env)"',
        **steps,
        "Stop everything; the data stays": "manta down",
    }


def _report(run: Demo, failure: MantaError | None) -> Path | None:
    """Write the page, after a failure as well as it goes."""
    from cluster.demo import report

    try:
        page = report.publish(run.record, run.folder, next_steps(run) if failure is None else {})
    except MantaError as error:
        if failure is None:
            raise
        run.say(f"There is no report: {error}")
        return None
    run.say(f"report {page} ({report.report_key(run.record, page.name)} in the bucket)")
    return page


def _new_home(say: object) -> None:
    """Stop the cluster and go on in an empty directory beside the old one, which stays."""
    from cluster.demo import process
    from cluster.local.environment import export_environment
    from cluster.settings import load_settings

    assert callable(say)
    if load_settings().profile != "local":
        raise UsageError("--fresh is for the local cluster: on another, set MANTA_TEAM to a new team's name.")
    old = load_settings().state_dir
    log = old / "logs" / "down.log"
    words = [process.executable("manta"), "down"]
    process.check(process.run(words, log, say, cwd=Path.cwd(), everything=True), "`manta down`", log)
    for name in ("AWS_", "RAY_", "OPENAI_", "MLFLOW_"):
        # They lead to the cluster that was just stopped.
        for variable in [variable for variable in os.environ if variable.startswith(name)]:
            del os.environ[variable]
    os.environ["MANTA_HOME"] = str(old.with_name(f"{old.name}-{datetime.now(UTC):%m%d%H%M}"))
    load_settings.cache_clear()
    export_environment()
    say(f"a new home: export MANTA_HOME={os.environ['MANTA_HOME']} to go on in it afterwards")


class _Clock:
    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        text = line if line.startswith(("---", "    ")) else f"      {line}"
        click.echo(f"[{minutes:2d}:{seconds:02d}] {text[:200]}")


def _clocked() -> _Clock:
    return _Clock()
