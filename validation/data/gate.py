"""The gate: a suite's verdict on a Ray Dataset, as a pass of its own or within somebody else's.

Great Expectations judges; :mod:`validation.data.engine` computes. :func:`plan_gate` in the driver says what
is needed, :meth:`GatePlan.judge_block` judges a block in a worker, :func:`finish_gate` in the driver makes
the verdict of all blocks. :func:`gate` does the three.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cluster.errors import RefusedError, UsageError
from cluster.nearest import meant
from validation.data.engine.conditions import INFORMED, ROW_LOCAL
from validation.data.engine.frames import depends_on_nulls
from validation.data.engine.lengths import measured_of, with_lengths
from validation.data.engine.metrics import CONDITION, Listing, Metric, Table
from validation.data.engine.rounds import Pass, Rounds, Runner, over_dataset
from validation.data.engine.tasks import MAX_NAMED_ROWS, Condition, Found
from validation.data.previous import Previous, compared
from validation.data.report import GateReport, Severity, columns_of, expectation_report, label_of
from validation.data.suite import Suite

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

MAX_EXAMPLES = 10


@dataclass(frozen=True)
class BlockVerdict:
    """What a block says."""

    #: For each row None, or the labels ``type(column)`` of the expectations that it breaks, joined with "; ".
    reasons: list[str | None]
    #: For :func:`finish_gate`.
    partial: bytes


@dataclass(frozen=True)
class GatePlan:
    """What has to be computed on each block. Picklable, and free of Great Expectations."""

    #: Its parameters have their values.
    suite: Suite
    table: Table
    metrics: tuple[Metric, ...]
    first: Pass
    result_format: dict[str, Any]
    row_id: str
    #: Row-wise conditions whose unexpected rows go, with the label of their expectation.
    marks: tuple[tuple[Condition, str], ...]
    #: Keys of conditions whose unexpected rows go, but are known only at the end, by expectation.
    late: tuple[tuple[int, str], ...]
    #: Of the suite as it was given, before its parameters got values.
    digest: str
    #: Expectations that compare with a version before which does not tell what they ask, and why.
    left_out: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Columns that :meth:`judge_block` reads."""
        return list(dict.fromkeys([*self.first.columns, self.row_id]))

    @property
    def read_again(self) -> list[str]:
        """Columns of conditions that need a further pass for sure: the first tells what rows repeat."""
        found = [m.domain for m in self.metrics if m.name.removesuffix(CONDITION) in INFORMED]
        named = [n for told in found for n in [told.get("column"), *(told.get("column_list") or [])]]
        return [measured_of(self.table.schema, n) for n in named if n in self.table.schema.names]

    def judge_block(self, table: pa.Table) -> BlockVerdict:
        """Judge the rows of one block, in a worker; ``table`` has :attr:`columns`, and may have others."""
        block = self.first.block(table)
        partial = self.first.run(block)
        reasons: list[str | None] = [None] * table.num_rows
        for condition, label in self.marks:
            found = block.unexpected.get(condition)
            for position in [] if found is None else found.tolist():
                before = reasons[position]
                reasons[position] = f"{before}; {label}" if before else label
        return BlockVerdict(reasons, partial)


def plan_gate(
    suite: Suite,
    schema: pa.Schema,
    row_id: str = "row_id",
    drop: Sequence[Severity] = ("critical",),
    result_format: dict[str, Any] | None = None,
    previous: Previous | None = None,
) -> GatePlan:
    """Plan the judgement of rows of ``schema`` by ``suite``; imports Great Expectations (8 CPU-seconds).

    ``row_id`` names the string column that identifies a row. Rows that break an expectation of a severity in
    ``drop`` get a reason. ``result_format`` is Great Expectations' own; without one, a summary with
    :data:`MAX_EXAMPLES` examples by ``row_id``. ``previous`` is the version that the suite's parameters tell
    of (see :mod:`validation.data.previous`); without one, expectations that compare are left out.

    Raises UsageError that names the expectation which Great Expectations does not accept or cannot plan, or
    which names a figure that ``previous`` does not tell.
    """
    from validation.data.engine.execution import metrics_of

    digest = suite.digest
    suite, left_out = compared(suite, previous, schema)
    expectations = suite.build()
    named = [name for e in expectations for name in columns_of(e)]
    asked = [str(e.configuration.kwargs.get("row_condition") or "") for e in expectations]
    schema = with_lengths(schema, named, asked)
    form = _parsed(result_format or _summary(row_id))
    names = tuple(schema.names)
    table = Table(schema.remove_metadata(), Listing.of(form, names), row_id if row_id in names else None)
    needed = metrics_of(expectations, table, form, suite.name)
    marked, late = _marked(expectations, needed, schema, drop)
    typed = {
        n for e in expectations for n in columns_of(e) if n in names and depends_on_nulls(schema.field(n))
    }
    table = replace(table, identified=frozenset(key for _, key in late), typed=tuple(sorted(typed)))
    metrics = {metric.key: metric for metrics in needed for metric in metrics}
    rounds = Rounds(list(metrics.values()), table)
    tasks = rounds.waiting_for()
    marks = [(tasks[key], label) for key, label in marked if key in tasks]
    return GatePlan(
        suite,
        table,
        tuple(metrics.values()),
        rounds.first(),
        form,
        row_id,
        tuple(marks),
        tuple(late),
        digest,
        left_out,
    )


def refuse_absent(plan: GatePlan, elsewhere: Mapping[str, str]) -> None:
    """Raise UsageError that names each expectation on a column which the rows do not have.

    It is a mistake of the suite, whatever the severity. Great Expectations would tell it too, once all rows
    are read, as a failure of the data. ``elsewhere`` has a hint in brackets on columns that rows have at
    another time.
    """
    from great_expectations.expectations import expectation as kinds

    of_values = (
        kinds.ColumnMapExpectation,
        kinds.ColumnAggregateExpectation,
        kinds.ColumnPairMapExpectation,
        kinds.MulticolumnMapExpectation,
    )
    names = plan.table.schema.names
    told = [
        f"{label_of(e)}: there is no column {name}{elsewhere.get(name) or meant(name, names)}"
        for e in plan.suite.build()
        if isinstance(e, of_values)  # Others, such as expect_column_to_exist, judge the columns themselves.
        for name in columns_of(e)
        if name not in names
    ]
    if told:
        raise UsageError(f"suite {plan.suite.name}: {'; '.join(told)}; the columns are {', '.join(names)}.")


def finish_gate(
    plan: GatePlan,
    partials: Iterable[bytes],
    rows: Callable[[list[str]], ray.data.Dataset],
    *,
    num_cpus: float = 0.5,
) -> GateReport:
    """Make the verdict of all blocks' partial results, in the order of the blocks.

    ``rows(columns)`` gives these columns of the same rows again, for the further passes that some
    expectations need (uniqueness, quantiles, z-scores), in Ray tasks of ``num_cpus`` logical CPUs. The
    report's ``bad_rows`` name only rows that no block could have marked by itself, up to a million of an
    expectation. Raises RefusedError if one that does not fail the suite leaves more of them to be dropped.
    """
    return conclude(plan, partials, over_dataset(rows, num_cpus))


def conclude(plan: GatePlan, partials: Iterable[bytes], run: Runner) -> GateReport:
    """:func:`finish_gate` with passes that run anywhere."""
    from validation.data.engine.execution import BlockwiseExecutionEngine, judge, stub_of

    rounds = Rounds(plan.metrics, plan.table)
    facts = rounds.finish(plan.first, plan.first.fold(partials), run)
    stub = stub_of(plan.table.schema, facts.holed)
    engine = BlockwiseExecutionEngine(plan.table, stub, rounds.answers, facts.holed)
    expectations = plan.suite.build()
    results, whole = judge(plan.suite.name, expectations, engine, plan.result_format)
    reports = [
        expectation_report(expectation, result, plan.row_id, MAX_EXAMPLES)
        for expectation, result in zip(expectations, results, strict=True)
    ]
    bad: dict[str, list[str]] = {}
    for position, key in plan.late:
        found = rounds.answers.get(key)
        if isinstance(found, Found) and reports[position].unexpected_count:
            fails = reports[position].severity == "critical" and not reports[position].success
            if len(found.ids) > MAX_NAMED_ROWS and not fails:
                raise RefusedError(
                    f"suite {plan.suite.name}: {found.unexpected:,} rows break {reports[position].label}, "
                    f"which allows it; more than {MAX_NAMED_ROWS:,} cannot be named to be dropped: mend the "
                    "data, or make the expectation a warning."
                )
            for identity in found.ids[:MAX_NAMED_ROWS]:
                bad.setdefault(identity, []).append(reports[position].label)
    whole["meta"] |= {"left_out": list(plan.left_out)}
    return GateReport(
        suite=plan.suite.name,
        suite_digest=plan.digest,
        left_out=list(plan.left_out),
        rows=facts.rows,
        success=all(r.success for r in reports if r.severity == "critical"),
        expectations=reports,
        bad_rows=bad,
        validation=whole,
    )


def gate(
    dataset: ray.data.Dataset,
    suite: Suite,
    row_id: str = "row_id",
    *,
    num_cpus: float = 0.5,
    previous: Previous | None = None,
) -> GateReport:
    """Judge ``dataset`` by ``suite``; the verdict is that of Great Expectations on the whole data.

    Materialise the dataset first if making it is costly: its columns are read once, and some of them again
    for expectations that need it. ``row_id`` names the string column that identifies a row in the report;
    ``bad_rows`` name all rows that break a critical expectation.

    Raises UsageError as :func:`plan_gate` does, and when there is no column ``row_id``.
    """
    known = dataset.schema()
    names = list(known.names) if known is not None else []
    if row_id not in names:
        raise UsageError(f"suite {suite.name}: the data has no row id column {row_id}; it has {names}.")
    plan = plan_gate(suite, arrow_schema(known), row_id, previous=previous)
    marked: dict[str, list[str]] = {}
    report = finish_gate(
        plan, _judged(dataset, plan, marked, num_cpus), dataset.select_columns, num_cpus=num_cpus
    )
    for identity, labels in report.bad_rows.items():
        marked.setdefault(identity, []).extend(labels)
    return report.model_copy(update={"bad_rows": marked})


def arrow_schema(known: Any) -> pa.Schema:
    """The Arrow schema of a Ray Dataset's schema. Columns without an Arrow type count as text."""
    import pyarrow as pa

    kinds = [kind if isinstance(kind, pa.DataType) else pa.string() for kind in known.types]
    return pa.schema(list(zip(known.names, kinds, strict=True)))


def _judged(
    dataset: ray.data.Dataset, plan: GatePlan, marked: dict[str, list[str]], num_cpus: float
) -> Iterator[bytes]:
    """Partial results in the order of the blocks; the ids of the rows that go are noted in ``marked``."""
    from validation.data.engine.rounds import in_order

    def judge(table: pa.Table) -> pa.Table:
        import pyarrow as pa

        verdict = plan.judge_block(table)
        broken = pa.array([i for i, reason in enumerate(verdict.reasons) if reason is not None], pa.int64())
        ids = [str(identity) for identity in table[plan.row_id].take(broken).to_pylist()]
        columns = {
            "partial": pa.array([verdict.partial], pa.large_binary()),
            "ids": pa.array([ids], pa.large_list(pa.string())),
            "reasons": pa.array(
                [[verdict.reasons[i] for i in broken.to_pylist()]], pa.large_list(pa.string())
            ),
        }
        return pa.table(columns)

    judged = dataset.select_columns(plan.columns).map_batches(
        judge, batch_size=None, batch_format="pyarrow", num_cpus=num_cpus
    )
    for row in in_order(judged):
        for identity, reason in zip(row["ids"], row["reasons"], strict=True):
            marked.setdefault(identity, []).extend(reason.split("; "))
        yield row["partial"]


def _summary(row_id: str) -> dict[str, Any]:
    return {
        "result_format": "SUMMARY",
        "partial_unexpected_count": MAX_EXAMPLES,
        "unexpected_index_column_names": [row_id],
    }


def _parsed(result_format: dict[str, Any]) -> dict[str, Any]:
    from great_expectations.expectations.expectation_configuration import parse_result_format

    return dict(parse_result_format(dict(result_format)))


def _marked(
    expectations: Sequence[Any], needed: Sequence[Sequence[Metric]], schema: pa.Schema, drop: Collection[str]
) -> tuple[list[tuple[str, str]], list[tuple[int, str]]]:
    """Conditions whose rows a block marks, with labels; and those known at the end only, by expectation."""
    now, late = list[tuple[str, str]](), list[tuple[int, str]]()
    for position, (expectation, metrics) in enumerate(zip(expectations, needed, strict=True)):
        wanted = f"{getattr(expectation, 'map_metric', None)}{CONDITION}"
        if expectation.configuration.severity.value not in drop:
            continue
        for metric in metrics:
            if metric.name != wanted:
                continue
            if _known_in_block(metric, schema):
                now.append((metric.key, label_of(expectation)))
            else:
                late.append((position, metric.key))
    return now, late


def _known_in_block(metric: Metric, schema: pa.Schema) -> bool:
    """Whether one block can tell which of its rows are unexpected, whatever nulls there are elsewhere."""
    kernel = ROW_LOCAL.get(metric.name.removesuffix(CONDITION))
    if kernel is None and metric.module is None:
        return False
    if kernel is not None and (kernel.exact or kernel.formless) and not metric.clause:
        return True
    names = [metric.domain.get(key) for key in ("column", "column_A", "column_B")]
    names += list(metric.domain.get("column_list") or ())
    names += [name for name in schema.names if metric.clause and name in metric.clause]
    return not any(depends_on_nulls(schema.field(n)) for n in names if n and n in schema.names)
