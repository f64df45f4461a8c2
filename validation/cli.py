"""``manta compare``, the regression gate, and ``manta guard test``, a policy on trial, as commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.errors import NotFoundError, RefusedError, UsageError
from cluster.settings import describe_validation_error, load_settings

if TYPE_CHECKING:
    from validation.guards.trial import Trial
    from validation.models.scoring import Scorecard

_FILE = "scorecard.json"


@click.command()
@click.argument("baseline")
@click.argument("newer")
@click.option("--max-drop", type=float, default=0.03, show_default=True, help="Most accuracy or gain lost.")
@click.option(
    "--max-valid-drop", type=float, default=0.02, show_default=True, help="Most valid answers lost."
)
@click.option(
    "--max-recall-drop", type=float, default=0.06, show_default=True, help="Most recall of a label lost."
)
@click.option("--json", "as_json", is_flag=True, help="The decision as one JSON document.")
def compare(
    baseline: str, newer: str, max_drop: float, max_valid_drop: float, max_recall_drop: float, as_json: bool
) -> int:
    """Hold an evaluation against an accepted one, and fail if it is worse.

    BASELINE and NEWER are each a scorecard.json, an evaluation's address, or latest:NAME.
    """
    from pydantic import ValidationError

    from validation.models.regression import RegressionLimits, decide_regression

    try:
        limits = RegressionLimits(
            max_drop=max_drop, max_valid_drop=max_valid_drop, max_recall_drop=max_recall_drop
        )
    except ValidationError as error:
        raise UsageError(describe_validation_error(error, "limits")) from None
    decision = decide_regression(read_scorecard(baseline), read_scorecard(newer), limits)
    if as_json:  # One document, whatever it says.
        click.echo(decision.model_dump_json())
        return 0 if decision.passed else 1
    for check in decision.checks:
        click.echo(f"{'kept' if check.passed else 'WORSE'}: {check.says}")
    if not decision.passed:
        raise RefusedError(f"{newer} is worse than {baseline}: {'; '.join(decision.reasons)}.")
    return 0


def read_scorecard(where: str) -> Scorecard:
    """The scorecard in a file, or of an evaluation artifact.

    Raises UsageError for what is no scorecard, NotFoundError when there is nothing.
    """
    from pydantic import ValidationError

    from validation.models.scoring import Scorecard

    path = Path(where)
    try:
        text = path.read_bytes() if path.suffix == ".json" else _from_artifact(where)
        return Scorecard.model_validate_json(text)
    except FileNotFoundError:
        raise NotFoundError(f"The file {where} does not exist.") from None
    except OSError as error:
        raise UsageError(f"The file {where} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        raise UsageError(describe_validation_error(error, f"{where} is no scorecard")) from None


def _from_artifact(where: str) -> bytes:
    from cluster.storage import ArtifactStore, object_store

    artifacts = ArtifactStore(object_store())
    if where.startswith("latest:"):
        name = where.removeprefix("latest:")
        manifest = artifacts.latest(load_settings().team, "evaluation", name)
        if manifest is None:
            raise NotFoundError(
                f"Team {load_settings().team} has no evaluation named {name!r}: evaluate first."
            )
    else:
        manifest = artifacts.open(where)
    return artifacts.read(manifest, _FILE)


@click.group()
def guard() -> None:
    """Guard policies: try one before it judges anybody."""


@guard.command("test")
@click.argument("policy")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--benign",
    "benign",
    multiple=True,
    default=("benign",),
    show_default=True,
    help="A label of harmless texts: what is found in them is a false positive. May be given again.",
)
@click.option("--min-recall", type=click.FloatRange(0, 1), help="Fail if less of the others is found.")
@click.option("--max-false-positives", type=click.FloatRange(0, 1), help="Fail if more of these is found.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON document.")
def guard_test(
    policy: str,
    file: Path,
    benign: tuple[str, ...],
    min_recall: float | None,
    max_false_positives: float | None,
    as_json: bool,
) -> int:
    """Run a guard policy over a file, and print recall and false positives by guard and label.

    POLICY is a shipped policy's name or a YAML file. FILE holds one JSON object a line: {"text", "label"},
    with "direction": "output" (and "system") for answers, or an OpenAI request as {"messages", "label"} or
    {"body", "label"}. What shadow guards find counts, too.
    """
    import asyncio

    from validation.guards.engine import GuardEngine
    from validation.guards.packaged import PackagedGuards
    from validation.guards.policy import load_policy
    from validation.guards.trial import read_lines, run_trial, table

    loaded = load_policy(policy)
    remote = PackagedGuards(loaded)
    try:
        remote.load()
        trial = asyncio.run(run_trial(GuardEngine(loaded, remote), read_lines(file), benign))
    finally:
        remote.close()
    click.echo(trial.model_dump_json() if as_json else table(trial))
    failures = _failures(trial, min_recall, max_false_positives)
    if failures and not as_json:
        raise RefusedError(f"Guard policy {loaded.name} falls short: {'; '.join(failures)}.")
    return 1 if failures else 0


def _failures(trial: Trial, min_recall: float | None, max_false_positives: float | None) -> list[str]:
    """Why a policy does not pass its trial. Raises UsageError if a limit has nothing to be held against."""
    if (min_recall is not None and trial.recall is None) or (
        max_false_positives is not None and trial.false_positive_rate is None
    ):
        raise UsageError("The file has no texts with the labels that the limit is about.")
    failures = [f"a guard failed on {trial.failed} texts"] if trial.failed else []
    if min_recall is not None and trial.recall is not None and trial.recall < min_recall:
        failures.append(f"its recall is {trial.recall:.4f}, below {min_recall}")
    rate = trial.false_positive_rate
    if max_false_positives is not None and rate is not None and rate > max_false_positives:
        failures.append(f"{rate:.4f} of the benign texts are found, above {max_false_positives}")
    return failures
