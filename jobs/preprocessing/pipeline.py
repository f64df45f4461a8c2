"""The stages of ``jobs.preprocess`` over Ray, and the account that every input row is held in.

One pass of Ray Data reads and marks the rows, block by block. What needs more than one row (suites,
duplicates, the digest) moves keys, counts and references; the text stays in its blocks, in Ray's object
store, which spills to disk what memory does not hold.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster.errors import RefusedError, UsageError
from cluster.job import JobRun
from cluster.job.preflight import preflight
from jobs.preprocessing.account import Action, Tally, Tolerance, many, name, nested
from jobs.preprocessing.blocks import Told, partials_of, quiet, told_by, without
from jobs.preprocessing.digest import merged_digest
from jobs.preprocessing.duplicates import (
    CROSSED,
    DECISIONS,
    EXACT,
    NEAR,
    codes,
    find_exact,
    find_near,
    gathered,
    id_at,
    id_keys,
    keys_of,
)
from jobs.preprocessing.files import SourceFile
from jobs.preprocessing.finishing import FINAL, Finishing
from jobs.preprocessing.marking import AUGMENT, CONTRACT, LENGTH, SHAPE, Marking
from jobs.preprocessing.masking import mask_of, masked_report
from jobs.preprocessing.parts import Parts
from jobs.preprocessing.publishing import MAX_EXAMPLES, Facts, profile_spec
from jobs.preprocessing.reading import READ, SIZE, read_tables
from jobs.preprocessing.rows import (
    file_of,
    is_copy,
    line_of,
    quarantine_schema,
)
from jobs.preprocessing.writing import EXAMPLES, QUARANTINE, SPLITS, Writing, Written, kind_of, write_empty
from jobs.session import connect
from validation.data import GateReport
from validation.data.profile import Profile, combine_profiles, merge_profiles
from validation.data.schema import describe_schema

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

    from validation.data.gate import GatePlan


#: Partial profiles that are held before they become one.
MERGED_AT_ONCE = 64


class Pipeline:
    """One preprocessing run. The methods are its stages, to be called in the order in which they stand."""

    def __init__(self, job: JobRun, files: Sequence[SourceFile], *, num_cpus: float) -> None:
        """Join the cluster. Raises UnavailableError if there is none, RefusedError if it is too small."""
        self.job, self._files, self._cpus = job, files, num_cpus
        connect()
        preflight([{"CPU": self._cpus}], asker="Preprocessing", remedy="lower num_cpus")
        quiet()
        self.suites: dict[str, GateReport] = {}
        self.tally = Tally()
        self.counts: dict[str, int] = {}
        self.examples: list[Mapping[str, Any]] = []
        self.profile: Profile | None = None
        self._rules: list[Tolerance] = []
        #: References to blocks, in the order of files and lines.
        self._marked: list[Any] = []
        self._dataset: Any = None
        self._finished: list[Any] = []
        #: Rows that break a suite, as far as no block knew by itself: id to expectations.
        self._bad: dict[str, dict[str, str]] = {CONTRACT: {}, FINAL: {}}
        self._actions: dict[str, Action] = {}
        self._decisions: Any = None

    def share(self, value: Any) -> Any:
        """A reference to a value in Ray's object store."""
        import ray

        return ray.put(value)

    def mark(self, marking: Marking, final: GatePlan, parts: Parts | None = None) -> None:
        """Read all rows, and look at each alone.

        Raises RefusedError about the first file or line that cannot be read, or the first repeated id.
        """
        self._marking, self._final = marking, final
        if marking.contract:
            self._refuse_masked(marking.contract, marking.contract.read_again)
        self._keep(self._by_file(marking, parts) if parts else self._by_block(marking))
        self.job.progress(f"{self.tally.came_in}, of {many(len(self._files), 'file')}")

    def _by_block(self, marking: Marking) -> ray.data.Dataset:
        """Marked rows: a task reads a file, and others mark its blocks."""
        import ray.data

        files, form = self._files, marking.form

        def rows(batch: dict[str, Any]) -> Iterator[pa.Table]:
            for number in batch["id"]:
                yield from read_tables(files[number], form)

        numbers = ray.data.range(len(files), override_num_blocks=len(files))
        # Reading asks for less, so that Ray Data does not fuse it with what follows: the blocks of one large
        # file are then marked by many workers.
        read = numbers.map_batches(rows, batch_size=1, num_cpus=self._cpus / 2)
        return self._map(read, marking)

    def _by_file(self, marking: Marking, parts: Parts) -> ray.data.Dataset:
        """Marked rows: a task makes a whole file's part, or finds it made."""
        import ray.data

        found = parts.find()
        there = sum(part is not None for part in found)
        new = len(found) - there
        self.job.progress(f"{many(len(found), 'file')}: {there} marked by an earlier run, {new} to mark now")

        def rows(batch: dict[str, Any]) -> Iterator[pa.Table]:
            for number in batch["id"]:
                part = found[number]
                yield from parts.load(number, part) if part else parts.make(number, marking)

        numbers = ray.data.range(len(found), override_num_blocks=len(found))
        return numbers.map_batches(rows, batch_size=1, num_cpus=self._cpus)

    def _keep(self, marked: ray.data.Dataset) -> None:
        """Hold the marked blocks, and hear what they tell."""
        import ray

        self._dataset = marked.materialize()
        blocks = self._dataset.to_arrow_refs()
        told = list(zip(ray.get(self._each(told_by, blocks)), blocks, strict=True))
        told.sort(key=lambda item: item[0].first)
        self._marked = [block for _, block in told]
        for found, _ in told:
            self.tally.add(found.tally)
        self._refuse_broken([found for found, _ in told])

    def _refuse_broken(self, told: Sequence[Told]) -> None:
        form = self._marking.form
        files = [found.broken_file for found in told if found.broken_file]
        lines = [] if form.keep_broken else [found.broken for found in told if found.broken]
        if files or lines:
            raise RefusedError(min(files + lines)[1])
        if form.id_column is not None:
            self._refuse_repeated(form.id_column)

    def _refuse_repeated(self, id_column: str) -> None:
        """Refuse ids that are not unique; those of rows that augmentation made are among them."""
        import ray

        rows = self.tally.rows["read"] + self.tally.rows["augmented"]
        repeated = ray.get(find_exact(self._each(id_keys, self._marked), rows, self._cpus))
        if len(repeated):
            number = repeated["ordinal"][0].as_py()
            (row_id,) = filter(None, ray.get(self._each(id_at, self._marked, number)))
            place = f"line {line_of(number)} of {self._files[file_of(number)].address}"
            if is_copy(number) or is_copy(repeated["repeats"][0].as_py()):
                raise RefusedError(
                    f"augment {self._marking.augment}: a copy is called {row_id!r}, and so is another row "
                    f"({place}): copies get their row's id with #1 and so on; give the rows of {id_column} "
                    "other ids."
                )
            raise RefusedError(
                f"column {id_column} is no row id: {len(repeated)} rows repeat one, such as {row_id!r} at "
                f"{place}."
            )

    def _refuse_broken_rules(self, rules: Sequence[Tolerance]) -> None:
        self._rules += rules
        too_many = [why for rule in rules if (why := self.tally.too_many(rule))]
        if too_many:
            self._refuse(f"the rules refuse the {self.tally.came_in}: {', '.join(too_many)}")

    def check_rows(self) -> None:
        """The verdict of the contract, and of each rule. Raises RefusedError that names what failed."""
        import ray

        plan = self._marking.contract
        if plan is not None:
            told = self._each(partials_of, self._marked)
            partials = (partial for found in told for partial in ray.get(found))
            self._judge(plan, partials, self._dataset, CONTRACT, {READ, SIZE})
        rules = self._marking.tolerances
        for stage in dict.fromkeys(rule.stage for rule in rules):
            self.job.progress(self.tally.told_of(stage, rules))
        self._refuse_broken_rules(self._marking.tolerances)

    def remove_duplicates(self, rules: Sequence[Tolerance]) -> None:
        """Decide which of equal (and similar) rows stays, and that none does of those that contradict.

        Raises RefusedError if there are more of them than a rule allows.
        """
        import ray

        actions = self._actions = {rule.stage: rule.action for rule in rules}
        rows, near = self.tally.rows["read"] + self.tally.rows["augmented"], self._marking.near
        keys = self._each(keys_of, self._marked, ray.put(frozenset(self._bad[CONTRACT])))
        none = ray.put(gathered())
        exact = find_exact(keys, rows, self._cpus) if EXACT in actions else none
        found = {EXACT: exact}
        if near and NEAR in actions:
            before = exact if actions.get(EXACT) != "warn" else none
            found[NEAR] = find_near(keys, before, rows, near.num_buckets, self._cpus)
        refused = [table for stage, table in found.items() if actions.get(stage) != "warn"]
        self._decisions = ray.remote(num_cpus=self._cpus)(gathered).remote(*refused)
        compared = sum(ray.get(self._each(len, keys)))
        for stage, counts in zip(found, ray.get(self._each(codes, list(found.values()))), strict=True):
            self._count_duplicates(stage, counts, compared)
            if actions.get(stage) != "warn":  # What only warns leaves its rows to the next stage.
                compared -= sum(counts.values())
        self._refuse_broken_rules(rules)

    def _count_duplicates(self, stage: str, counts: Mapping[int, int], compared: int) -> None:
        """Take decisions into the account; those that only warn never become a mark."""
        if stage not in self._actions:
            return
        self.tally.judged[stage] += compared
        for code, number in counts.items():
            reason = DECISIONS[code][1]
            self.tally.broken[stage] += number
            if self._actions[stage] == "warn":
                self.tally.warned[name(stage, reason)] += number
            done = "told of, and kept" if self._actions[stage] == "warn" else "dropped"
            self.job.progress(f"{stage}: {many(number)} {done}: each {reason}")

    def check_final(self) -> None:
        """Give rows their finished form, and judge them. Raises RefusedError that names what failed."""
        import ray
        import ray.data

        partials = (ray.get(partial) for partial in self._finish(self._final))
        refused = set(self._stages()) - {FINAL}
        self._judge(self._final, partials, ray.data.from_arrow_refs(self._finished), FINAL, refused)

    def _finish(self, plan: GatePlan) -> list[Any]:
        """Finish all blocks; give references to what they add to the final suite's verdict."""
        import ray

        decisions = gathered() if self._decisions is None else self._decisions
        late = ray.put(self._bad[CONTRACT])
        found = self._each(self._finishing(), self._marked, decisions, late, plan, returns=2)
        self._finished = [block for block, _ in found]
        # The tasks hold what they need; when they are done the store may forget it.
        self._marked, self._dataset = [], None
        return [partial for _, partial in found]

    def _finishing(self) -> Finishing:
        return Finishing(self._marking.form, self._marking.shape)

    def write(self) -> str:
        """Write splits, quarantine and checks; return the data digest.

        Raises RefusedError for an empty split.
        """
        digests = self._write_rows(SPLITS)
        dropped = nested(self.tally.dropped)
        self.counts["duplicates"] = sum(sum(dropped.get(stage, {}).values()) for stage in self._actions)
        self.counts |= self.tally.counts
        for split in SPLITS if self._marking.shape.split.test_fraction else SPLITS[:1]:
            if not self.counts[split]:
                self._write_checks()
                raise RefusedError(f"no row is left for {split}: {self._account()}{self._remedy(split)}.")
        kept = self.counts["train"] + self.counts["test"]
        assert kept + self.counts["quarantined"] == sum(self.tally.counts.values()), self.counts
        self._write_checks()
        digest = merged_digest(digests, kept, self._cpus)
        self.job.progress(f"wrote {self._account()}")
        return digest

    def _remedy(self, split: str) -> str:
        """What to do about an empty split, as the end of its sentence."""
        rule, kept = self._marking.shape.split, self.counts["train"] + self.counts["test"]
        told = ""
        if split == "test" and kept and not any(file.split for file in self._files):
            what = f"values of {rule.group}" if rule.group else "rows"
            # With five to be expected the hash leaves out all of them in one of a hundred datasets.
            enough = max(math.ceil(500 / kept) / 100, 2 * rule.test_fraction)
            told = (
                f"; split.test_fraction {rule.test_fraction:g} holds out none of so few {what}: "
                f"{min(0.5, enough):g} would, most likely, and 0 makes a dataset without test"
            )
        if self.counts["quarantined"]:
            told += f"; dropped rows with reasons are in {self.job.attempt.uri}quarantine/"
        return told

    def _write_rows(self, splits: Sequence[str]) -> list[Any]:
        """Write the finished rows of the splits, and the others; give references to their digests."""
        import ray

        job, sources = self.job, [file.address for file in self._files]
        spec = profile_spec(self._marking.form, self._marking.shape)
        writing = Writing(job.store, job.attempt.prefix, self._finishing().columns(), sources, splits, spec)
        written = self._each(writing, self._finished, ray.put(self._bad[FINAL]), returns=2)
        total, seen = Counter[str](), Counter[str]()
        profiles: list[bytes] = []
        for reference, _ in written:
            found: Written = ray.get(reference)
            total.update(found.counts)
            profiles.append(found.profile)
            if len(profiles) == MERGED_AT_ONCE:
                profiles = [combine_profiles(profiles)]
            for row in found.examples:
                why = name(row["stage"], kind_of(row["stage"], row["reason"]))
                seen[why] += 1
                if seen[why] <= EXAMPLES and len(self.examples) < MAX_EXAMPLES:
                    self.examples.append(row)
        self.profile = merge_profiles(spec, filter(None, profiles))
        self.counts = {split: total.pop(split, 0) for split in splits}
        self.counts["quarantined"] = total.pop(QUARANTINE, 0)
        self.tally.dropped = total
        if not self.counts["quarantined"]:
            write_empty(job.attempt, QUARANTINE, quarantine_schema())
        return [digest for _, digest in written]

    def _judge(
        self,
        plan: GatePlan,
        partials: Iterator[bytes | None],
        blocks: ray.data.Dataset,
        stage: str,
        apart: set[str],
    ) -> None:
        """The verdict of all blocks; the rows that count are those of stages other than ``apart``."""
        # Imported here: Great Expectations costs seconds.
        from validation.data.gate import finish_gate

        def rows(columns: list[str]) -> ray.data.Dataset:
            if stage == CONTRACT:
                self._refuse_masked(plan, columns)
            judged = self._map(blocks, lambda block: without(block, apart, copies=stage != CONTRACT))
            return judged.select_columns(columns)

        report = finish_gate(plan, filter(None, partials), rows, num_cpus=self._cpus)
        self.suites[stage] = report = self._told(report)
        self._bad[stage] = {row_id: "; ".join(labels) for row_id, labels in report.bad_rows.items()}
        for told in report.told():
            self.job.progress(f"suite {report.suite} {told}")
        if not report.success:
            named = ", ".join(e.describe() for e in report.failed)
            self._refuse(f"suite {report.suite} refuses the {many(report.rows)}: {named} failed")

    def _refuse_masked(self, contract: GatePlan, columns: Iterable[str]) -> None:
        """Refuse a contract that looks at a text again once it is masked: equal placeholders repeat."""
        masked = sorted(set(columns).intersection(self._marking.masked_columns))
        if masked:
            raise UsageError(
                f"suite {contract.suite.name} looks again at {', '.join(masked)} after personal_data has "
                "masked it: leave the expectation to the final suite, or personal_data out."
            )

    def _told(self, report: GateReport) -> GateReport:
        """The report without what the run takes for personal data."""
        rule = self._marking.personal_data
        return masked_report(report, mask_of(rule)) if rule else report

    def _refuse(self, sentence: str) -> None:
        """End the job, and leave the rows that were refused so far to look at."""
        if not self._finished:
            self._finish(self._final)
        self._write_rows(())
        self.counts |= self.tally.counts
        self._write_checks()
        raise RefusedError(f"{sentence}; rows with reasons are in {self.job.attempt.uri}quarantine/.")

    def _write_checks(self) -> None:
        checks = {
            "counts": self.counts,
            "suites": {stage: report.model_dump(mode="json") for stage, report in self.suites.items()},
            **self.tally.report(self._rules),
        }
        self.job.attempt.write("checks.json", json.dumps(checks, ensure_ascii=False, default=str).encode())

    def _stages(self) -> list[str]:
        """The stages that may refuse rows, in order."""
        on = [rule.stage for rule in self._rules]
        before = [READ, SIZE, *([CONTRACT] if self._marking.contract else [])]
        before += [AUGMENT] if self._marking.augment else []
        local = [stage for stage in dict.fromkeys(on) if stage not in (EXACT, NEAR, LENGTH)]
        after = [stage for stage in (LENGTH, EXACT, NEAR) if stage in on]
        return [*before, *local, SHAPE, *after, FINAL]

    def facts(self) -> Facts:
        """All that the card tells. Once the data is written."""
        assert self.profile is not None
        return Facts(
            counts=self.counts,
            tally=self.tally,
            stages=self._stages(),
            suites=self.suites,
            examples=self.examples,
            profile=self.profile,
            columns=describe_schema(self._finishing().written_schema()),
        )

    @property
    def contaminated(self) -> int:
        """Rows of train that repeat rows of test, and so are in quarantine."""
        crossed = [name(*DECISIONS[code]) for code in CROSSED]
        return sum(self.tally.dropped[key] for key in crossed)

    # Moving blocks

    def _map(self, rows: ray.data.Dataset, function: Any) -> ray.data.Dataset:
        return rows.map_batches(function, batch_format="pyarrow", batch_size=None, num_cpus=self._cpus)

    def _each(self, function: Any, blocks: Sequence[Any], *arguments: Any, returns: int = 1) -> list[Any]:
        """References to what a function gives for each block, made by a task for each."""
        import ray

        def call(function: Any, block: pa.Table, *arguments: Any) -> Any:
            return function(block, *arguments)

        task, shared = ray.remote(num_cpus=self._cpus, num_returns=returns)(call), ray.put(function)
        return [task.remote(shared, block, *arguments) for block in blocks]

    def _account(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in self.counts.items())
