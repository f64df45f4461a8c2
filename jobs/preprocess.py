"""Make a dataset version: a declared pipeline from raw files to checked rows.

    ray job submit --address http://127.0.0.1:8265 --runtime-env runtime_env.yaml --working-dir . -- \
        python -m jobs.preprocess --config jobs/configs/demo/preprocess.yaml

One pass reads the files, joins labels and normalises, and looks at each row alone: contract -> augment ->
language -> quality -> personal data -> contamination -> shape -> length. Then exact and near duplicates are
found over all files, rows get their finished form, and the final suite judges them. A stage whose section is
in the configuration is on; jobs/configs/preprocess_text.yaml is the recipe for plain corpora.

The artifact (kind ``dataset``) holds ``train/*.parquet`` and ``test/*.parquet`` (row_id, messages or a
document's columns, and the columns in ``keep``), ``quarantine/*.parquet`` (row_id, source, line, stage,
reason, score, which row it repeats, and the row as it was then), ``checks.json`` (what suites and rules
said), ``profile.json``, the card (``card.md``, ``card.html``) and its suites' page (``docs.html``).
Every row that was read or made is kept or in quarantine. If a critical expectation fails, or more rows break
a rule than it allows, the job fails too: quarantine and checks then stand under its attempt, but no manifest.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.contracts import ArtifactInput, Manifest
from cluster.errors import UsageError
from cluster.job import JobConfig, JobResult, JobRun, command, start_run
from cluster.models import ensure_model
from cluster.nearest import meant
from cluster.storage import PARTS
from jobs.preprocessing.account import Tolerance
from jobs.preprocessing.cleaning import Normalise
from jobs.preprocessing.contamination import Against
from jobs.preprocessing.duplicates import EXACT, NEAR
from jobs.preprocessing.files import SourceFile, find_files, fingerprint_files, source_file
from jobs.preprocessing.finishing import Finishing
from jobs.preprocessing.labels import Labels
from jobs.preprocessing.lengths import Length
from jobs.preprocessing.marking import Marking, TextRule, refuse_unusable
from jobs.preprocessing.parts import Parts
from jobs.preprocessing.pipeline import Pipeline
from jobs.preprocessing.publishing import publish, tell_places, version_before
from jobs.preprocessing.rows import RESERVED, ROW_ID, ColumnType, RowFormat, contract_schema
from jobs.preprocessing.shaping import Shape, Split, Template
from validation.data import Suite, load_suite
from validation.data.card import CardLicense
from validation.data.gate import GatePlan, plan_gate, refuse_absent
from validation.data.language import Language
from validation.data.near_duplicates import NearDuplicates
from validation.data.personal import PersonalData
from validation.data.previous import Previous, compares
from validation.data.quality import C4Quality, FineWebQuality, GopherQuality, GopherRepetition
from validation.data.schema import SUMMARY_KEY as SCHEMA
from validation.data.tokens import FILE as TOKENIZER
from validation.data.verdict import Rule

CODE_EPOCH = 5
#: Columns that finished rows have beside those in ``keep``; the final suite may look at all of them.
FINISHED = frozenset({"row_id", "split", "messages", "prompt", "completion"})

_TEXT = ("string", "messages")
#: Fields that decide what becomes of a row by itself.
ROW_LOCAL = {
    *(
        "columns",
        "id_column",
        "text_rows",
        "broken_lines",
        "max_row_bytes",
        "text",
        "normalise",
        "augment",
        "labels",
    ),
    *("language", "quality", "personal_data", "contamination", "length", "template", "keep", "split"),
}


class License(BaseModel):
    """Under which terms the data may be used; recorded in the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="SPDX identifier, or the licence's name.")
    source: str = Field(description="Where the data comes from.")
    text: str | None = Field(None, description="Address of the licence's text.")


class Duplicates(BaseModel):
    """Rows that repeat others, in all files and splits: the first stays, test before train."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exact: Rule | None = Field(
        Rule(), description="Rows with the same text (or question) after normalising; null to keep them."
    )
    near: NearDuplicates | None = Field(
        None, description="Rows whose texts share most of their word n-grams, by MinHash."
    )

    @property
    def tolerances(self) -> list[Tolerance]:
        """Those of the stages that are on."""
        stages = {EXACT: self.exact, NEAR: self.near}
        return [Tolerance.of(stage, stage, rule) for stage, rule in stages.items() if rule is not None]


class Quality(BaseModel):
    """Rules on the form of text, by the names of the corpora that they were made for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gopher_repetition: GopherRepetition | None = Field(None, description="Repeated lines and n-grams.")
    gopher_quality: GopherQuality | None = Field(None, description="What ordinary prose looks like.")
    c4_quality: C4Quality | None = Field(None, description="Boilerplate, and too few sentences.")
    fineweb_quality: FineWebQuality | None = Field(None, description="Lists, and lines without an end.")


class PreprocessConfig(JobConfig):
    """Raw files, what they must hold, and what becomes of their rows."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"num_cpus", "incremental"})

    train: list[str] = Field(
        min_length=1,
        description="CSV, JSON Lines, Parquet, Arrow or text files: local paths, s3:// addresses, folders "
        "(also of Hugging Face datasets saved to disk) or globs; compressed ones too.",
    )
    test: list[str] = Field(default_factory=list, description="Files whose rows are all held out for tests.")
    columns: dict[str, ColumnType] = Field(min_length=1, description="Columns to read, and their types.")
    id_column: str | None = Field(
        None,
        description="Column with a unique id; else a hash of file and line. Ids are never masked, since a "
        "row is found by them: let no column with personal data be one.",
    )
    labels: Labels | None = Field(None, description="Labels or feedback to join by row id.")
    text_rows: Literal["line", "file"] = Field(
        "line", description="Whether a text file holds a document a line or is one; its column is 'text'."
    )
    broken_lines: Literal["fail", "quarantine"] = Field(
        "fail", description="What a line that cannot be read leads to."
    )
    max_row_bytes: int = Field(
        16 * 2**20, gt=0, description="A row of more bytes goes to quarantine, whatever it holds."
    )
    text: list[str] = Field(
        default_factory=list,
        description="Columns that rules on text look at, together; else all of text but id and group.",
    )
    normalise: Normalise = Field(default_factory=Normalise, description="How text is brought to one form.")
    augment: str | None = Field(
        None,
        description="Hook 'package.module:function' that gets a row of train as a mapping and gives a list "
        "of more rows, which all stages after the contract look at; their ids are <row id>#1 and so on.",
    )
    contract: str | None = Field(
        None,
        description="Suite for the normalised rows as they came in: a shipped one's name, or a file. Its "
        "parameters may compare with the latest version of this name: {$PARAMETER: previous_input_rows * "
        "0.9}.",
    )
    language: Language | None = Field(None, description="Languages to keep.")
    quality: Quality = Field(default_factory=Quality, description="Rules on the form of text.")
    duplicates: Duplicates = Field(default_factory=Duplicates, description="What repeats other rows.")
    personal_data: PersonalData | None = Field(
        None, description="Personal data to mask, or to refuse; quarantine and checks are masked too."
    )
    contamination: Against | None = Field(None, description="Evaluation sets to keep out of the data.")
    length: Length | None = Field(None, description="Limits on a row's length, in a model's tokens.")
    template: Template | None = Field(
        None, description="How a row becomes messages; without it a row is a document and keeps its columns."
    )
    keep: list[str] = Field(
        default_factory=list, description="Columns to keep beside the messages, values mapped."
    )
    split: Split | None = Field(None, description="Without test files: which rows are held out.")
    final: str | None = Field(
        None,
        description="Suite for the finished rows; 'messages' or 'documents' if absent. Its parameters may "
        "compare with the latest version, as the contract's may.",
    )
    license: License = Field(description="Terms of the data.")
    description: str = Field("", description="What the data is and what it is for, on its card.")
    incremental: bool = Field(
        False,
        description="Keep what becomes of each file's rows as an artifact (kind dataset-part), so that a "
        "later run with more files, or a killed run's second try, looks at new files only.",
    )
    num_cpus: float = Field(0.5, gt=0, description="Logical CPUs of each task.")

    @model_validator(mode="after")
    def _columns_known(self) -> Self:
        if self.test and self.split is not None:
            raise ValueError("give either test files or a split")
        # A column row_id may be read if it is the id.
        taken = RESERVED - {self.id_column} if self.id_column == ROW_ID else RESERVED
        reserved = sorted(taken & set(self.columns))
        if reserved:
            raise ValueError(f"columns must not be called {', '.join(reserved)}: the job uses these names")
        template, group = self.template, self.split.group if self.split else None
        used = (template.prompt_columns, template.completion_columns, template.values) if template else ()
        named = {
            "id_column": [self.id_column] if self.id_column else [],
            "keep": self.keep,
            "text": self.text,
            "template": [column for columns in used for column in columns],
            "split.group": [group] if group else [],
            "labels": list(self.labels.columns) if self.labels else [],
        }
        for where, names in named.items():
            unknown = [name for name in names if name not in self.columns]
            if unknown:
                told = ", ".join(name + meant(name, self.columns) for name in unknown)
                raise ValueError(f"{where} names {told}, not among the columns")
        made = sorted(FINISHED & set(self.kept))
        if made:
            raise ValueError(f"keep names {', '.join(made)}, which finished rows have anyway")
        wrong = [name for name in self.text if self.columns[name] not in _TEXT]
        if wrong or not self.texts:
            raise ValueError(f"text: {', '.join(wrong) or 'no column'} holds text (string, messages)")
        return self

    @property
    def kept(self) -> list[str]:
        """Columns of finished rows beside the messages; those of a document are all, if none is named."""
        if self.keep or self.template:
            return self.keep
        return [name for name in self.columns if name != ROW_ID]

    @property
    def texts(self) -> list[str]:
        """Columns that hold the text that is judged."""
        apart = {self.id_column, self.split.group if self.split else None}
        return self.text or [n for n, kind in self.columns.items() if kind in _TEXT and n not in apart]

    @property
    def rules(self) -> list[TextRule]:
        """The rules on text that are on, in order."""
        found: list[tuple[str, str, Rule | None]] = [("language", "language", self.language)]
        found += [("quality", name, getattr(self.quality, name)) for name in Quality.model_fields]
        found += [("personal_data", "personal_data", self.personal_data)]
        found += [("contamination", "contamination", self.contamination)]
        return [TextRule(stage, name, rule) for stage, name, rule in found if rule is not None]

    @property
    def shape(self) -> Shape:
        """The form of finished rows."""
        return Shape(self.template, tuple(self.kept), tuple(self.texts), self.split or Split())

    @property
    def row_format(self) -> RowFormat:
        """How files are read."""
        return RowFormat(
            self.columns,
            self.id_column,
            keep_broken=self.broken_lines == "quarantine",
            max_row_bytes=self.max_row_bytes,
            text_rows=self.text_rows,
            joined=frozenset(self.labels.columns if self.labels else ()),
        )


def run(config: PreprocessConfig) -> JobResult:
    """Make the dataset, or find it made.

    Raises NotFoundError, AccessError or RefusedError with one sentence about the file, the line or the failed
    expectations; nothing is visible then.
    """
    contract = load_suite(config.contract) if config.contract else None
    final = load_suite(config.final or ("messages" if config.template else "documents"))
    files = fingerprint_files(_files(config))
    inputs = [file.as_input for file in files]
    inputs += [ArtifactInput(address=f"suite:{s.name}", digest=s.digest) for s in (final, contract) if s]
    evaluation = fingerprint_files(config.contamination.files()) if config.contamination else []
    labels = fingerprint_files(config.labels.files()) if config.labels else []
    inputs += [file.as_input for file in [*evaluation, *labels]]
    model = ensure_model(config.length.model) if config.length else None
    inputs += [ArtifactInput(address=str(model.ref), digest=model.data_digest)] if model else []
    with start_run("preprocess", "dataset", config, inputs=inputs, code_epoch=CODE_EPOCH) as job:
        if job.done:
            tell_places(job, job.done)
            return job.result(job.done)
        refuse_unusable(config.augment, config.rules)
        before = version_before(job, needed=any(compares(s) for s in (final, contract) if s))
        first, last = _plans(config, contract, final, before)
        pipeline = Pipeline(job, files, num_cpus=config.num_cpus)
        marking = _marking(config, pipeline, first, evaluation, labels, model)
        parts = _parts(config, job, files, inputs, marking) if config.incremental else None
        pipeline.mark(marking, last, parts)
        pipeline.check_rows()
        pipeline.remove_duplicates(config.duplicates.tolerances)
        pipeline.check_final()
        digest = pipeline.write()
        counts, facts = pipeline.counts, pipeline.facts()
        told = publish(job, facts, inputs[: len(files)], _about(config), config.personal_data, before)
        told |= {SCHEMA: facts.columns}
        if parts:
            job.attempt.write(PARTS, json.dumps([str(parts.ref(n)) for n in range(len(files))]).encode())
        made = job.commit(
            counts=counts, summary=_summary(config, counts, pipeline) | told, data_digest=digest
        )
        tell_places(job, made)
        return job.result(made)


def _files(config: PreprocessConfig) -> list[SourceFile]:
    """Each file once, however many patterns name it. Raises UsageError for one that is train and test."""
    split = "train" if config.test else None
    found: dict[str, SourceFile] = {}
    for sources, named in ((config.train, split), (config.test, "test")):
        for address in (address for source in sources for address in find_files(source)):
            file = source_file(address, len(found), named)
            known = found.setdefault(file.place, file)
            if known.split != named:
                raise UsageError(f"{address} is among the files of train and of test: name it in one.")
    return list(found.values())


def _plans(
    config: PreprocessConfig, contract: Suite | None, final: Suite, before: Previous | None
) -> tuple[GatePlan | None, GatePlan]:
    """What both suites need of rows. Raises UsageError that names an expectation which cannot be judged."""
    form, first = config.row_format, None
    finished = Finishing(form, config.shape).suite_schema()
    if contract is not None:
        first = plan_gate(contract, contract_schema(form), ROW_ID, previous=before)
        refuse_absent(first, dict.fromkeys(finished.names, " (finished rows have it: name it in final)"))
    last = plan_gate(final, finished, ROW_ID, previous=before)
    refuse_absent(last, dict.fromkeys(form.columns, " (finished rows have it if keep names it)"))
    return first, last


def _marking(
    config: PreprocessConfig,
    pipeline: Pipeline,
    contract: GatePlan | None,
    evaluation: list[SourceFile],
    labels: list[SourceFile],
    model: Manifest | None,
) -> Marking:
    """The pass that looks at each row alone, with what it needs in Ray's object store."""
    rule = config.contamination
    return Marking(
        config.row_format,
        config.normalise,
        config.shape,
        config.augment,
        contract,
        config.rules,
        config.duplicates.near,
        config.length,
        tokenizer=pipeline.share(pipeline.job.artifacts.read(model, TOKENIZER)) if model else None,
        evaluation=rule.read_index(evaluation, config.num_cpus, pipeline.job.progress) if rule else None,
        labels=config.labels.read(labels, config.columns, config.num_cpus) if config.labels else None,
    )


def _parts(
    config: PreprocessConfig,
    job: JobRun,
    files: list[SourceFile],
    inputs: list[ArtifactInput],
    marking: Marking,
) -> Parts:
    """Where the rows of each file are kept. The final suite and duplicates are no matter of single rows."""
    meaning = config.model_dump(mode="json", include=ROW_LOCAL)
    near = config.duplicates.near
    meaning["near"] = near.model_dump(mode="json", exclude=set(Rule.model_fields)) if near else None
    meaning["inputs"] = [item.digest for item in inputs[len(files) + 1 :]]
    contract = marking.contract.suite.digest if marking.contract else None
    if contract not in (None, *meaning["inputs"]):
        # It compares with the version before, and what a part tells of it with that version only.
        meaning["contract"] = contract
    return Parts(
        store=job.store,
        owner=job.settings.principal,
        code=job.code,
        run_id=job.run_id,
        name=config.name,
        meaning=meaning,
        files=files,
        inputs=inputs[: len(files)],
    )


def _about(config: PreprocessConfig) -> dict[str, Any]:
    """What the configuration tells the card."""
    return {
        "license": CardLicense(**config.license.model_dump()),
        "description": config.description,
        "languages": list(config.language.keep) if config.language else [],
    }


def _summary(config: PreprocessConfig, counts: dict[str, int], pipeline: Pipeline) -> dict[str, Any]:
    reports = pipeline.suites.values()
    return {
        **counts,
        "expectations": sum(len(r.expectations) for r in reports),
        # The pipeline has masked what reports quote, as far as personal_data says.
        "warnings": [w.describe() for r in reports for w in r.warnings],
        "contaminated": pipeline.contaminated,
        **({"labelled": pipeline.tally.rows["labelled"]} if config.labels else {}),
        "license": config.license.model_dump(mode="json"),
        "sources": [*config.train, *config.test],
    }


if __name__ == "__main__":
    raise SystemExit(command(PreprocessConfig, run))
