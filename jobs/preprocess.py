"""Make a dataset version: read, check, clean, deduplicate, shape, split, check again, write.

    ray job submit --address http://127.0.0.1:8265 --runtime-env runtime_env.yaml --working-dir . -- \
        python -m jobs.preprocess --config jobs/configs/demo/preprocess.yaml

The artifact (kind ``dataset``) holds ``train/*.parquet`` and ``test/*.parquet`` (row_id, messages, and the
columns in ``keep``), ``quarantine/*.parquet`` (row_id, source, line, stage, reason, raw) and ``checks.json``
(what Great Expectations said). Every input row is kept, in quarantine, or a duplicate. If a critical
expectation fails, the job does too: quarantine and checks then stand under its attempt, but no manifest.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.contracts import ArtifactInput
from cluster.job import JobConfig, JobResult, command, start_run
from jobs.preprocessing.cleaning import Normalise
from jobs.preprocessing.files import find_files, fingerprint_files, source_file
from jobs.preprocessing.pipeline import Pipeline
from jobs.preprocessing.reading import RESERVED, ColumnType, RowFormat
from jobs.preprocessing.shaping import Template
from validation.data import load_suite

CODE_EPOCH = 1
#: Columns that shaped rows have beside those in ``keep``; the final suite may look at all of them.
SHAPED = frozenset({"row_id", "split", "messages", "prompt", "completion"})


class License(BaseModel):
    """Under which terms the data may be used; recorded in the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="SPDX identifier, or the licence's name.")
    source: str = Field(description="Where the data comes from.")
    text: str | None = Field(None, description="Address of the licence's text.")


class PreprocessConfig(JobConfig):
    """Raw files, what they must hold, and what becomes of their rows."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"num_cpus"})

    train: list[str] = Field(
        min_length=1,
        description="CSV, JSON Lines or Parquet files: local paths, s3:// addresses, folders or globs.",
    )
    test: list[str] = Field(default_factory=list, description="Files whose rows are all held out for tests.")
    test_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Without test files: share of rows held out, by a hash of their content; 0.1.",
    )
    columns: dict[str, ColumnType] = Field(min_length=1, description="Columns to read, and their types.")
    id_column: str | None = Field(None, description="Column with a unique id; else a hash of file and line.")
    broken_lines: Literal["fail", "quarantine"] = Field(
        "fail", description="What a line that cannot be read leads to."
    )
    contract: str = Field(description="Suite for the raw rows: a shipped one's name, or a file.")
    final: str = Field(
        "messages", description="Suite for the finished rows: a shipped one's name, or a file."
    )
    normalise: Normalise = Field(default_factory=Normalise, description="How text is brought to one form.")
    template: Template = Field(description="How a row becomes messages.")
    keep: list[str] = Field(
        default_factory=list, description="Columns to keep beside the messages, values mapped."
    )
    license: License = Field(description="Terms of the data.")
    num_cpus: float = Field(0.5, gt=0, description="Logical CPUs of each task.")

    @model_validator(mode="after")
    def _columns_known(self) -> Self:
        if self.test and self.test_fraction is not None:
            raise ValueError("give either test files or a test_fraction")
        # A column row_id may be read if it is the id.
        taken = RESERVED - {self.id_column} if self.id_column == "row_id" else RESERVED
        reserved = sorted(taken & set(self.columns))
        if reserved:
            raise ValueError(f"columns must not be called {', '.join(reserved)}: the job uses these names")
        template = self.template
        named = {
            "id_column": [self.id_column] if self.id_column else [],
            "keep": self.keep,
            "template": [*template.prompt_columns, *template.completion_columns, *template.values],
        }
        for where, names in named.items():
            unknown = [name for name in names if name not in self.columns]
            if unknown:
                raise ValueError(f"{where} names {', '.join(unknown)}, not among the columns")
        made = sorted(SHAPED & set(self.keep))
        if made:
            raise ValueError(f"keep names {', '.join(made)}, which finished rows have anyway")
        return self


def run(config: PreprocessConfig) -> JobResult:
    """Make the dataset, or find it made.

    Raises NotFoundError, AccessError or RefusedError with one sentence about the file, the line or the failed
    expectations; nothing is visible then.
    """
    contract, final = load_suite(config.contract), load_suite(config.final)
    split = "train" if config.test else None
    found = [(address, split) for source in config.train for address in find_files(source)]
    found += [(address, "test") for source in config.test for address in find_files(source)]
    files = [source_file(address, number, split) for number, (address, split) in enumerate(found)]
    inputs = fingerprint_files([file.address for file in files])
    suites = [ArtifactInput(address=f"suite:{s.name}", digest=s.digest) for s in (contract, final)]
    with start_run("preprocess", "dataset", config, inputs=[*inputs, *suites], code_epoch=CODE_EPOCH) as job:
        if job.done:
            return job.result(job.done)
        form = RowFormat(config.columns, config.id_column, keep_broken=config.broken_lines == "quarantine")
        pipeline = Pipeline(job, num_cpus=config.num_cpus)
        pipeline.read(files, form)
        pipeline.check_contract(contract)
        pipeline.shape(config.normalise, config.template, config.keep, config.test_fraction or 0.1)
        pipeline.remove_duplicates()
        pipeline.check_final(final)
        counts, digest = pipeline.write()
        return job.result(
            job.commit(counts=counts, summary=_summary(config, counts, pipeline), data_digest=digest)
        )


def _summary(config: PreprocessConfig, counts: dict[str, int], pipeline: Pipeline) -> dict[str, Any]:
    reports = (pipeline.contract, pipeline.final)
    return {
        **counts,
        "expectations": sum(len(r.expectations) for r in reports if r),
        "warnings": [w.describe() for r in reports if r for w in r.warnings],
        "contaminated": pipeline.contaminated,
        "license": config.license.model_dump(mode="json"),
        "sources": [*config.train, *config.test],
    }


if __name__ == "__main__":
    raise SystemExit(command(PreprocessConfig, run))
