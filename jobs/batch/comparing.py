"""Several models on the same prompts: a batch for each, and one artifact that holds them side by side.

Each model's batch is an ordinary one: found if it was made before, resumed if it was killed. The comparison
(kind ``comparison``) holds ``comparison.json`` and ``comparison.md`` and names the batches as its inputs. A
model that fails costs the others nothing; the command says so at its end, and does not succeed.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.contracts import ArtifactInput, ArtifactRef, Manifest
from cluster.errors import MantaError, RefusedError
from cluster.job import JobConfig, JobResult, JobRun, start_run
from cluster.runs import RunRepository
from cluster.settings import Settings, load_settings
from cluster.storage import ArtifactStore, object_store
from jobs.batch.estimate import PriceConfig
from jobs.batch.expectations import Expectations, read_expectations
from jobs.batch.figures import Answers, SideBySide, differing, measure, side_by_side, texts
from jobs.batch.formats import OutputConfig
from jobs.batch.source import resolve
from jobs.batch.tables import Shown, document, table

if TYPE_CHECKING:
    from jobs.batch_inference import BatchInferenceConfig

VERB, KIND = "batch-comparison", "comparison"
CODE_EPOCH = 1
REPORT, DOCUMENT = "comparison.json", "comparison.md"


class ComparisonConfig(BaseModel):
    """How compared models are judged; of no meaning for a single one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: list[str] = Field(
        default_factory=list,
        description="The right answers that there are, one word each: then answers are scored as by"
        " jobs.evaluate, against the last message of a dataset's rows or source.expected_column.",
    )
    prices: dict[str, PriceConfig] = Field(
        default_factory=dict,
        description="What tokens of a model cost, by its name; else price, else its route's.",
    )
    examples: int = Field(5, ge=0, description="Rows to show that the models answered differently.")

    @field_validator("labels")
    @classmethod
    def _readable(cls, labels: list[str]) -> list[str]:
        from validation.models import check_labels

        return check_labels(labels)


class ComparisonJob(JobConfig):
    """What makes one comparison, recorded in its manifest.

    The batches' addresses stand for all that was asked, and of whom. Their digests alone would not do: of
    equal answers to a source with other right ones, or of other engines, the first comparison would be found.
    """

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"failed"})

    models: list[str] = Field(description="The baseline, and those that are held against it.")
    batches: dict[str, str] = Field(description="Of them, those that have a batch, and its address.")
    expected_column: str | None = Field(description="Where right answers stand: no batch depends on it.")
    failed: dict[str, str] = Field(description="The others, and why.")
    price: PriceConfig | None = Field(description="The batch's, for models without one of their own.")
    comparison: ComparisonConfig = Field(description="How they are judged.")

    def price_of(self, model: str) -> PriceConfig | None:
        """What was said that its tokens cost; None if the batch's own run knows best."""
        return self.comparison.prices.get(model) or self.price


@dataclass
class _Batches:
    """What was asked: each model's result by name, and why others have none."""

    made: dict[str, JobResult] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def compare_models(
    config: BatchInferenceConfig, ask: Callable[[BatchInferenceConfig], JobResult]
) -> JobResult:
    """Ask every model, hold them side by side, and say so in a table.

    :param ask: runs one model's batch.

    Raises what the source raises before anything runs, and RefusedError if a model failed: with the address
    of the others' comparison, if there are others.
    """
    settings, store = load_settings(), object_store()
    source = resolve(config.source, store, settings.team)
    expected = read_expectations(source, config.request, config.comparison.labels)
    batches = _ask_all(config, ask)
    if not batches.made:
        raise RefusedError(f"No model could be asked: {_told(batches.failed)}")
    job_config = ComparisonJob(
        name=config.name,
        models=[config.model, *config.compare],
        batches={name: result.artifact for name, result in batches.made.items()},
        expected_column=config.source.expected_column,
        failed=batches.failed,
        price=config.price,
        comparison=config.comparison,
    )
    artifacts = ArtifactStore(store)
    manifests = {name: artifacts.open(result.artifact) for name, result in batches.made.items()}
    inputs = [ArtifactInput(address=str(m.ref), digest=m.data_digest) for m in manifests.values()]
    with start_run(VERB, KIND, job_config, inputs=inputs, code_epoch=CODE_EPOCH) as job:
        found = job.done or _commit(job, job_config, batches, manifests, expected)
        report = SideBySide.model_validate_json(artifacts.read(found, REPORT))
        print(f"\n{table(report)}\n", flush=True)
        result = job.result(found)
    if batches.failed:
        raise RefusedError(
            f"{len(batches.failed)} of {len(job_config.models)} models failed: {_told(batches.failed)}"
            f" The others are compared in {result.artifact}."
        )
    return result


def stored(what: str, settings: Settings, artifacts: ArtifactStore, *, as_json: bool) -> str | None:
    """The comparison at an address, or that a run made, as JSON or Markdown; None if what is named is none.

    Raises NotFoundError if the run has not made it.
    """
    try:
        ref = ArtifactRef.parse(artifacts.store.key(what))
    except ValueError:
        run = RunRepository(settings.database_url).find(what)
        if run is None or run.artifact is None:
            return None
        ref = ArtifactRef.parse(run.artifact)
    if ref.kind != KIND:
        return None
    return artifacts.read(artifacts.open(ref), REPORT if as_json else DOCUMENT).decode()


def _ask_all(config: BatchInferenceConfig, ask: Callable[[BatchInferenceConfig], JobResult]) -> _Batches:
    batches, models = _Batches(), [config.model, *config.compare]
    for number, model in enumerate(models, start=1):
        print(f"model {number} of {len(models)}: {model}", flush=True)
        changes: dict[str, Any] = {
            "model": model,
            "compare": [],
            "price": config.comparison.prices.get(model) or config.price,
            # It is the form with all the columns.
            "output": OutputConfig(formats=[*config.output.formats, "parquet"]),
        }
        try:
            batches.made[model] = ask(config.model_copy(update=changes))
        except MantaError as error:
            batches.failed[model] = str(error)
        except Exception as error:  # A bug, or Ray's own, that one model meets must not cost the others.
            traceback.print_exc()
            batches.failed[model] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if model in batches.failed:
            print(f"{model} failed: {batches.failed[model]}", file=sys.stderr, flush=True)
    return batches


def _commit(
    job: JobRun,
    config: ComparisonJob,
    batches: _Batches,
    manifests: Mapping[str, Manifest],
    expected: Expectations,
) -> Manifest:
    measured, labels = list[Answers](), config.comparison.labels
    for name, manifest in manifests.items():
        reused, price = batches.made[name].reused, config.price_of(name)
        try:
            answers = measure(job.artifacts, manifest, expected, labels, price, model=name, reused=reused)
        except ValueError as error:
            raise RefusedError(f"{manifest.ref} cannot be compared: {error}; run it again.") from None
        measured.append(answers)
    report = side_by_side(measured, expected, labels, config.models[0], batches.failed)
    shown = list(_shown(job.artifacts, manifests, measured, config.comparison.examples))
    job.attempt.write(REPORT, report.model_dump_json(indent=1).encode())
    job.attempt.write(DOCUMENT, document(config.name, report, shown).encode())
    counts = {"rows": report.rows, "models": len(report.models), "failed": len(batches.failed)}
    return job.commit(counts=counts, summary=_summary(report))


def _shown(
    artifacts: ArtifactStore, manifests: Mapping[str, Manifest], measured: list[Answers], most: int
) -> Iterator[Shown]:
    wanted = differing(measured, most)
    found = [texts(artifacts, manifest, wanted) for manifest in manifests.values()] if wanted else []
    for row in wanted:
        yield row, found[0][row][0], [answers[row][1] for answers in found]


def _summary(report: SideBySide) -> dict[str, Any]:
    keys = ("succeeded", "blocked", "failed", "p50_s", "p95_s", "tokens_per_s", "cost")
    return {
        "rows": report.rows,
        "baseline": report.baseline,
        "models": {
            model.model: {
                **{key: getattr(model, key) for key in keys},
                "accuracy": model.score.accuracy if model.score else None,
                "p_value": model.against_baseline.p_value if model.against_baseline else None,
                "batch": model.batch,
            }
            for model in report.models
        },
        "failed_models": report.failed,
    }


def _told(failed: Mapping[str, str]) -> str:
    return " ".join(f"{model}: {why.rstrip('.')}." for model, why in failed.items())
