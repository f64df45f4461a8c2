"""``manta compare``: the regression gate as a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.errors import NotFoundError, RefusedError, UsageError
from cluster.settings import describe_validation_error, load_settings

if TYPE_CHECKING:
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
