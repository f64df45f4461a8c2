"""The pass that looks at each row alone: it changes text, marks what is refused, and makes keys.

Rows stay in their blocks, marked: they really leave when splits and quarantine are written.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cluster.errors import UsageError
from jobs.preprocessing.account import Tally, Tolerance, name
from jobs.preprocessing.cleaning import Normalise, mapped, normalised
from jobs.preprocessing.contamination import Against
from jobs.preprocessing.labels import joined
from jobs.preprocessing.lengths import Length, counter
from jobs.preprocessing.masking import mask_of, mask_refused
from jobs.preprocessing.rows import (
    ANSWER,
    BANDS,
    GATE,
    KEY,
    ORDINAL,
    REASON,
    ROW_ID,
    SCORE,
    SPLIT,
    STAGE,
    SUMMARY,
    RowFormat,
    contract_schema,
    marked_schema,
)
from jobs.preprocessing.shaping import Shape
from jobs.preprocessing.values import BrokenLine, convert
from validation.data.language import Language
from validation.data.personal import PersonalData

if TYPE_CHECKING:
    import pyarrow as pa

    from validation.data.documents import Document
    from validation.data.gate import GatePlan
    from validation.data.near_duplicates import NearDuplicates
    from validation.data.verdict import Judge, Verdict

Row = dict[str, Any]


@dataclass(frozen=True)
class TextRule:
    """A rule on text at its place in the pipeline."""

    stage: str
    #: Its name in the configuration.
    name: str
    #: Its configuration, which builds a judge.
    rule: Any

    @property
    def tolerance(self) -> Tolerance:
        """What follows when rows break it."""
        return Tolerance.of(self.stage, self.name, self.rule)

    def judge(self, evaluation: Any) -> Judge:
        """The judge, built once in a process."""
        judge: Judge = built(self.rule, evaluation if isinstance(self.rule, Against) else None)
        return judge


def fetched(reference: Any) -> Any:
    """What a reference stands for."""
    import ray

    return ray.get(reference)


def built(rule: Any, evaluation: Any = None) -> Any:
    """What a rule's configuration builds, once in a process."""
    kind: Any = type(rule)
    return _built(kind, rule.model_dump_json(), evaluation)


@cache
def _built(kind: Any, rule: str, evaluation: Any) -> Any:
    parsed = kind.model_validate_json(rule)
    return parsed.build() if evaluation is None else parsed.build(fetched(evaluation))


#: Copies of one row that an ordinal has room for.
MAX_COPIES = 255
CONTRACT, AUGMENT, SHAPE, LENGTH = "contract", "augment", "shape", "length"


@dataclass(frozen=True)
class Marking:
    """Everything that decides what becomes of a row by itself. It is pickled, and called in workers."""

    form: RowFormat
    normalise: Normalise
    shape: Shape
    #: ``package.module:function`` that makes more rows of one.
    augment: str | None = None
    #: Plan of the suite that judges rows first.
    contract: GatePlan | None = None
    #: Rules on text, in order; the first that refuses a row is its stage.
    rules: Sequence[TextRule] = ()
    near: NearDuplicates | None = None
    length: Length | None = None
    #: References to the bytes of the tokenizer that lengths are counted by, and to the evaluation sets.
    tokenizer: Any = None
    evaluation: Any = None
    #: Reference to a table of labels.
    labels: Any = None

    @property
    def tolerances(self) -> list[Tolerance]:
        """What follows when rows break the rules, in order."""
        found = [rule.tolerance for rule in self.rules]
        return [*found, Tolerance.of(LENGTH, LENGTH, self.length)] if self.length else found

    def __call__(self, block: pa.Table) -> pa.Table:
        """A block of raw rows as marked rows."""

        rows = block.to_pylist()
        tally = Tally()
        tally.rows["read"] = len(rows)
        if self.labels is not None:
            tally.rows["labelled"] = joined(list(self._open(rows)), fetched(self.labels))
        text = self._text_columns()
        for number, row in enumerate(rows):
            if row[STAGE] is None:
                rows[number] = normalised(row, text, self.normalise)
        for row in self._open(rows):
            self._assign(row)
        # A contract is about what came in: copies are made of the rows that keep it.
        partial = self._check(rows)
        if self.augment:
            rows += self._augmented(rows, text, tally)
        judges = [(rule, rule.judge(self.evaluation)) for rule in self.rules]
        documents = {id(row): self._judge(row, judges, tally) for row in self._open(rows)}
        finished = {id(row): self._finish(row) for row in self._open(rows)}
        if self.length:
            self._measure([(row, finished[id(row)]) for row in self._open(rows)], self.length, tally)
        if self.near:
            self._compare([(row, documents[id(row)]) for row in self._open(rows)], self.near)
        if self.personal_data:
            for row in rows:
                if row[STAGE] is not None:
                    mask_refused(row, text, mask_of(self.personal_data))
        return self._table(rows, tally, partial)

    @property
    def personal_data(self) -> PersonalData | None:
        """What is taken for personal data, if anything."""
        return next((rule.rule for rule in self.rules if isinstance(rule.rule, PersonalData)), None)

    @property
    def masked_columns(self) -> list[str]:
        """Columns whose text is another after the pass than what the contract saw."""
        return self._text_columns() if self.personal_data else []

    def _text_columns(self) -> list[str]:
        kinds = self.form.columns.items()
        return [n for n, kind in kinds if kind in ("string", "messages") and n != self.form.id_column]

    @staticmethod
    def _open(rows: list[Row]) -> Iterator[Row]:
        return (row for row in rows if row[STAGE] is None)

    def _assign(self, row: Row) -> None:
        """Give the row its split, before copies are made of it."""
        if row[SPLIT] is None:
            try:
                key = self.shape.key(self.shape.finish(row), row)
            except LookupError:
                key = row[ROW_ID]  # It will be refused, unless a later stage mends it.
            row[SPLIT] = self.shape.assigned(key, row)

    def _augmented(self, rows: list[Row], text: list[str], tally: Tally) -> list[Row]:
        """What the hook makes of the rows of train; a test is made of nothing but what was there."""
        assert self.augment is not None
        function, declared = load_hook(self.augment), [n for n in self.form.columns if n != ROW_ID]
        made = []
        for row in self._open(rows):
            if row[SPLIT] != "train":
                continue
            copies = self._copies(function, row, declared)
            if len(copies) > MAX_COPIES:
                raise UsageError(f"augment {self.augment}: {len(copies)} rows of one; at most {MAX_COPIES}.")
            for copy, values in enumerate(copies, start=1):
                fixed = {**row, ROW_ID: f"{row[ROW_ID]}#{copy}", ORDINAL: row[ORDINAL] + copy}
                made.append(normalised({**fixed, **self._checked(values, row)}, text, self.normalise))
        tally.rows["augmented"] += len(made)
        return made

    def _copies(self, function: Callable[[Row], list[Row]], row: Row, declared: list[str]) -> list[Row]:
        """What the hook gives for a row. Raises UsageError that names both if it gives no rows."""
        try:
            copies = function({name: row[name] for name in declared})
        except Exception as problem:
            why = f"{type(problem).__name__}: {problem}"
            raise UsageError(f"augment {self.augment}: {why}, raised for row {row[ROW_ID]}.") from None
        if not isinstance(copies, list) or not all(isinstance(copy, dict) for copy in copies):
            raise UsageError(f"augment {self.augment}: no list of mappings for row {row[ROW_ID]}.")
        return copies

    def _checked(self, values: Row, row: Row) -> Row:
        kinds = self.form.columns
        try:
            return {n: convert(values[n], kinds[n], n, text=False) for n in values if n != ROW_ID}
        except (BrokenLine, KeyError, TypeError) as problem:
            raise UsageError(
                f"augment {self.augment}: {problem} in what it made of row {row[ROW_ID]}."
            ) from None

    def _check(self, rows: list[Row]) -> bytes | None:
        """Let the contract mark the rows that break it; give what the block adds to its verdict."""
        import pyarrow as pa

        if self.contract is None:
            return None
        judged = list(self._open(rows))
        table = pa.Table.from_pylist(judged, schema=contract_schema(self.form))
        verdict = self.contract.judge_block(table)
        for row, reason in zip(judged, verdict.reasons, strict=True):
            if reason is not None:
                mark(row, CONTRACT, reason)
        return verdict.partial

    def _judge(self, row: Row, judges: Sequence[tuple[TextRule, Judge]], tally: Tally) -> Document:
        """Ask each rule in turn, until one refuses the row; give its text with what was made of it."""
        from validation.data.documents import Document

        document = Document("\n\n".join(self.shape.texts(row)))
        if not document.text.strip():
            self._finish(row)  # It goes for being empty, not for the language that nothing is in.
            if row[STAGE] is not None:
                return document
        for rule, judge in judges:
            if isinstance(rule.rule, PersonalData):
                verdict = self._protect(row, judge, tally)
                document = Document("\n\n".join(self.shape.texts(row)))
            else:
                verdict = judge.judge(document)
            if apply(rule.tolerance, verdict, row, tally):
                break
        return document

    def _protect(self, row: Row, finder: Any, tally: Tally) -> Verdict | None:
        """Mask personal data in all texts of the row; what refuses the row is the verdict."""
        from validation.data.personal import masked

        refused: list[Verdict] = []
        found: Counter[str] = Counter()

        def clean(text: str) -> str:
            spans = finder.find(text)
            refused.extend(filter(None, [finder.verdict(spans)]))
            masks = [span for span in spans if span.action == "mask"]
            found.update(span.entity for span in masks)
            return masked(text, masks)

        changed = mapped(row, self._text_columns(), clean)
        if not refused or self._only_warns(PersonalData):
            row.update(changed)
            tally.rows["masked"] += bool(found)
            tally.entities.update(found)
        return refused[0] if refused else None

    def _only_warns(self, kind: type) -> bool:
        return any(isinstance(r.rule, kind) and r.tolerance.action == "warn" for r in self.rules)

    def _finish(self, row: Row) -> Row:
        try:
            finished = self.shape.finish(row)
        except LookupError as problem:
            mark(row, SHAPE, str(problem.args[0]))
            return {}
        row[KEY] = bytes.fromhex(self.shape.key(finished, row))
        row[ANSWER] = hash64(finished.get("completion", ""))
        return finished

    def _measure(self, rows: Sequence[tuple[Row, Row]], length: Length, tally: Tally) -> None:
        """Count tokens, of all rows at once."""
        texts = [self.shape.contents(row, finished) for row, finished in rows]
        numbers = iter(counter(self.tokenizer).count([text for some in texts for text in some]))
        tolerance = Tolerance.of(LENGTH, LENGTH, length)
        for (row, _), some in zip(rows, texts, strict=True):
            apply(tolerance, length.verdict(sum(next(numbers) for _ in some)), row, tally)

    @staticmethod
    def _compare(rows: Sequence[tuple[Row, Document]], near: NearDuplicates) -> None:
        """Give rows the bands of their MinHash, by which similar ones meet."""
        found = built(near).bands([document for _, document in rows])
        for (row, _), bands in zip(rows, found, strict=True):
            row[BANDS] = bands.tobytes()

    def _table(self, rows: list[Row], tally: Tally, partial: bytes | None) -> pa.Table:
        import pyarrow as pa

        if rows:
            rows[0] |= {SUMMARY: tally.to_bytes(), GATE: partial}
        return pa.Table.from_pylist(rows, schema=marked_schema(self.form))


def apply(rule: Tolerance, verdict: Verdict | None, row: Row, tally: Tally) -> bool:
    """Count what a rule says of a row, and mark the row; whether it is refused."""
    tally.judged[rule.key] += 1
    if verdict is None:
        return False
    tally.broken[rule.key] += 1
    if rule.action == "warn":
        tally.warned[name(rule.stage, verdict.reason)] += 1
        return False
    mark(row, rule.stage, verdict.reason, verdict.score)
    return True


def mark(row: Row, stage: str, reason: str, score: float | None = None) -> None:
    """Refuse a row."""
    row[STAGE], row[REASON], row[SCORE] = stage, reason, score


def hash64(text: str) -> int:
    """8 bytes of a text's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def refuse_unusable(augment: str | None, rules: Sequence[TextRule]) -> None:
    """Raise here, before a row is read, what workers would: UsageError or NotFoundError.

    That is for a hook that is not there, and for names of languages, entities or models that nobody knows.
    """
    if augment:
        load_hook(augment)
    for rule in rules:
        if isinstance(rule.rule, PersonalData):
            mask_of(rule.rule)  # What is told of the rows is masked here too: it is needed anyway.
        elif isinstance(rule.rule, Language):
            built(rule.rule)


@cache
def load_hook(address: str) -> Callable[[Row], list[Row]]:
    """The function ``package.module:function``. Raises UsageError if there is none."""
    module, _, function = address.partition(":")
    try:
        found = getattr(import_module(module), function)
    except Exception as problem:  # Whatever its module does when it is imported.
        raise UsageError(f"augment {address}: {problem}; write package.module:function.") from None
    if not callable(found):
        raise UsageError(f"augment {address} is no function.")
    return found  # type: ignore[no-any-return]
