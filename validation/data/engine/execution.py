"""Great Expectations' own classes: its graph asks, its expectations judge, this engine answers.

Importing this module imports Great Expectations (8 CPU-seconds), so nothing imports it but functions.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import great_expectations as gx
import great_expectations.exceptions as gx_exceptions
import numpy as np
import pandas as pd
from great_expectations.core.expectation_suite import ExpectationSuite
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.registry import get_metric_provider
from great_expectations.validator.metric_configuration import MetricConfiguration
from great_expectations.validator.metrics_calculator import MetricsCalculator

from cluster.errors import UsageError
from validation.data.engine.frames import depends_on_nulls, to_frame
from validation.data.engine.metrics import (
    CONDITION,
    DERIVED,
    INNER,
    LISTED,
    MAP,
    Metric,
    Table,
    condition_of,
    is_known_condition,
    metric_key,
)
from validation.data.engine.programs import AGGREGATES, Reduced
from validation.data.engine.tasks import MAX_LISTED_ROWS, Found
from validation.data.report import columns_of

BATCH = "rows"


class BlockwiseExecutionEngine(PandasExecutionEngine):
    """Answers metrics from merged partial results. Its own frame has the table's columns and no row.

    A metric that it does not know fails: derived over the empty frame it would be a wrong number.
    """

    def __init__(
        self,
        table: Table,
        stub: pd.DataFrame,
        answers: Mapping[str, Any] | None = None,
        holed: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(batch_data_dict={BATCH: stub})
        self._table, self._stub, self._answers, self._holed = table, stub, answers or {}, holed
        self._frame: pd.DataFrame | None = None
        self._resolved: dict[Any, Any] = {}

    def get_domain_records(self, domain_kwargs: dict[str, Any]) -> pd.DataFrame:
        """The small frame that stands for the domain of the metric at hand."""
        return self._stub if self._frame is None else self._frame

    def resolve_metrics(
        self,
        metrics_to_resolve: Iterable[MetricConfiguration],
        metrics: dict[Any, Any] | None = None,
        runtime_configuration: dict[str, Any] | None = None,
    ) -> dict[Any, Any]:
        """What Great Expectations' graph calls for each layer of metrics.

        Raises MetricResolutionError for the first metric that failed; the graph then goes on without it.
        """
        resolved = {}
        for metric in metrics_to_resolve:
            if metric.id not in self._resolved:
                try:
                    self._resolved[metric.id] = self._resolve(metric, metrics or {}, runtime_configuration)
                except gx_exceptions.MetricResolutionError:
                    raise
                except Exception as error:
                    raise gx_exceptions.MetricResolutionError(
                        message=str(error), failed_metrics=(metric,)
                    ) from error
            resolved[metric.id] = self._resolved[metric.id]
        return resolved

    def _resolve(self, metric: MetricConfiguration, known: dict[Any, Any], runtime: Any) -> Any:
        name = metric.metric_name
        if name in DERIVED:
            return self._by_gx(metric, known, runtime, None)
        if name.endswith(MAP) or name in INNER:
            return None, {}, {}  # Its condition has used it already.
        condition = condition_of(name)
        if condition is None:
            answer = self._answer(metric, name)
            if isinstance(answer, Reduced):
                return self._by_gx(metric, known, runtime, answer.frame)
            return answer
        values = {k: v for k, v in metric.metric_value_kwargs.items() if k != "result_format"}
        found: Found = self._answer(metric, f"{condition}{CONDITION}", values)
        if name.endswith(CONDITION):
            return self._condition(metric, found)
        if name.endswith(".unexpected_count"):
            return found.unexpected
        if name.endswith(".filtered_row_count"):
            return found.rows
        if name.endswith(LISTED):
            return self._by_gx(metric, known, runtime, self._unexpected(found))
        raise RuntimeError(f"metric {name} is not supported on blocks")

    def _answer(self, metric: MetricConfiguration, name: str, values: Any = None) -> Any:
        values = metric.metric_value_kwargs if values is None else values
        key = metric_key(name, metric.metric_domain_kwargs, values)
        if key not in self._answers:
            raise RuntimeError(f"metric {name} is not supported on blocks")
        answer = self._answers[key]
        if isinstance(answer, Exception):
            raise RuntimeError(str(answer))
        if isinstance(answer, Found) and answer.error is not None:
            raise RuntimeError(answer.error)
        return answer

    def _condition(self, metric: MetricConfiguration, found: Found) -> Any:
        domain = {k: v for k, v in metric.metric_domain_kwargs.items() if v is not None}
        kind = "column" if "column" in domain else "column_pair" if "column_A" in domain else "multicolumn"
        parts = self._partition_domain_kwargs(domain, kind, None)
        listed = 0 if found.positions is None else len(found.positions)
        every = pd.Series([True] * listed, index=found.positions if listed else [], dtype=bool)
        return every, parts.compute, parts.accessor

    def _unexpected(self, found: Found) -> pd.DataFrame:
        """The unexpected rows as Great Expectations would find them in its frame."""
        if self._table.listing.limit is None and len(found.positions) > MAX_LISTED_ROWS:
            raise RuntimeError(
                f"COMPLETE names at most {MAX_LISTED_ROWS} unexpected rows and there are {found.unexpected}: "
                "ask for SUMMARY"
            )
        records = self._table.schema.empty_table() if found.records is None else found.records
        frame = to_frame(records, self._holed)
        frame.index = pd.Index(found.positions, dtype="int64")
        return frame[[name for name in self._table.schema.names if name in frame.columns]]

    def _by_gx(self, metric: MetricConfiguration, known: dict[Any, Any], runtime: Any, frame: Any) -> Any:
        self._frame = frame
        try:
            return super().resolve_metrics([metric], known, runtime)[metric.id]
        finally:
            self._frame = None


def _plain(listed: Any) -> Any:
    """Without NumPy's scalars, which Great Expectations leaves among its JSON values."""
    if isinstance(listed, list):
        return [_plain(entry) for entry in listed]
    if isinstance(listed, dict):
        return {key: _plain(entry) for key, entry in listed.items()}
    return listed.item() if isinstance(listed, np.generic) else listed


def stub_of(schema: Any, holed: frozenset[str]) -> pd.DataFrame:
    """A frame with no row, and the types that the whole table has in pandas."""
    return to_frame(schema.empty_table(), holed)


def metrics_of(
    expectations: Sequence[Any], table: Table, result_format: dict[str, Any], suite: str
) -> list[list[Metric]]:
    """The metrics that each expectation needs, as Great Expectations itself finds them.

    Types decide about some dependencies, and nulls about types: both cases are asked for. Raises UsageError
    when Great Expectations could not even ask.
    """
    nullable = frozenset(field.name for field in table.schema if depends_on_nulls(field))
    engines = [
        BlockwiseExecutionEngine(table, stub_of(table.schema, holed)) for holed in (frozenset(), nullable)
    ]
    needed = []
    for expectation in expectations:
        metrics: dict[str, Metric] = {}
        either = nullable.intersection(columns_of(expectation))
        for engine in engines if either else engines[:1]:
            for configuration in _graph(expectation, engine, result_format, suite):
                metric = _metric(configuration, engine)
                metrics.setdefault(metric.key, metric)
        needed.append(list(metrics.values()))
    return needed


def _graph(expectation: Any, engine: Any, result_format: Any, suite: str) -> Iterator[MetricConfiguration]:
    configuration = copy.deepcopy(expectation.configuration)
    configuration.kwargs["batch_id"] = BATCH
    runtime = {"result_format": copy.deepcopy(result_format)}
    try:
        dependencies = configuration.to_domain_obj().get_validation_dependencies(engine, runtime)
    except Exception as error:
        text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UsageError(f"suite {suite}: {configuration.type} cannot be judged on blocks: {text}.") from None
    try:
        graph = MetricsCalculator(engine, False).build_metric_dependency_graph(
            dependencies.get_metric_configurations(), runtime
        )
    except Exception:
        return  # Great Expectations will meet the same and make it the expectation's result.
    for edge in graph.edges:
        yield edge.left
        if edge.right is not None:
            yield edge.right


def _metric(configuration: MetricConfiguration, engine: BlockwiseExecutionEngine) -> Metric:
    name, domain = configuration.metric_name, dict(configuration.metric_domain_kwargs)
    values = {k: v for k, v in configuration.metric_value_kwargs.items() if k != "result_format"}
    condition = name.removesuffix(CONDITION)
    module = get_metric_provider(name, engine)[0].__module__
    own = module.startswith("great_expectations.")
    refused = None
    if name.endswith(CONDITION):
        if own and not is_known_condition(condition):
            refused = f"metric {name} is not supported on blocks"
        elif not own:
            refused = _not_row_local(configuration)
    elif name in AGGREGATES and not own:
        refused = f"metric {name} is a user's own and not supported on blocks"
    foreign = module if name.endswith(CONDITION) and not own else None
    try:
        clause = _clause(domain, engine)
    except Exception as error:
        clause, refused = None, str(error)
    return Metric(name, domain, values, foreign, clause, refused)


def _not_row_local(configuration: MetricConfiguration) -> str | None:
    """A user's condition may lean on nothing but its own function and the table's columns."""
    harmless = {"table.columns", "table.column_types", "table.row_count"}
    for name, dependency in configuration.metric_dependencies.items():
        if name not in harmless and not (name.endswith(MAP) and _not_row_local(dependency) is None):
            return f"metric {configuration.metric_name} needs {name}, which is not known of a block"
    return None


def _clause(domain: dict[str, Any], engine: PandasExecutionEngine) -> str | None:
    from great_expectations.expectations.row_conditions import (
        Condition,
        PassThroughCondition,
        deserialize_row_condition,
    )

    asked = domain.get("row_condition")
    if not asked:
        return None
    if isinstance(asked, dict):
        asked = deserialize_row_condition(asked)
    if isinstance(asked, PassThroughCondition):
        return str(asked.pass_through_filter)
    if isinstance(asked, Condition):
        return str(engine.condition_to_filter_clause(asked))
    if domain.get("condition_parser") != "pandas":
        raise ValueError("condition_parser for Pandas is required when setting a row_condition.")
    return str(asked)


def _without_durations(listed: Any) -> Any:
    """With durations as text: Great Expectations cannot write them as JSON."""
    if isinstance(listed, list):
        return [_without_durations(entry) for entry in listed]
    if isinstance(listed, dict):
        return {_without_durations(key): _without_durations(entry) for key, entry in listed.items()}
    return str(listed) if isinstance(listed, timedelta | np.timedelta64) else listed


@cache
def _context() -> Any:
    # Without this it leaves a folder for a docs site in the temporary directory, in every process.
    stores = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)
    context = gx.get_context(
        mode="ephemeral", project_config=DataContextConfig(store_backend_defaults=stores)
    )
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def judge(
    name: str, expectations: Sequence[Any], engine: BlockwiseExecutionEngine, result_format: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Great Expectations' own run of a suite: each expectation's result in order, and the whole, as JSON."""
    context, unique = _context(), f"{BATCH}-{uuid.uuid4().hex}"
    source = context.data_sources.add_pandas(unique)
    try:
        source.get_execution_engine()
        source._execution_engine = engine
        batches = source.add_dataframe_asset(BATCH).add_batch_definition_whole_dataframe(BATCH)
        # Not ValidationDefinition.run: it stores the result too, and Great Expectations cannot write its own
        # quantile results as JSON (a NumPy boolean).
        batch = batches.get_batch({"dataframe": engine.get_domain_records({})})
        built = [e.configuration.to_domain_obj() for e in expectations]
        for number, expectation in enumerate(built):
            expectation.id = str(number)
        suite = ExpectationSuite(name=name)
        suite.expectations = built
        outcome = batch.validate(suite, result_format=result_format)
    finally:
        context.data_sources.delete(unique)
    # Its results come in another order than the suite's.
    for result in outcome.results:
        result.result = _without_durations(result.result)
    found = {result.expectation_config.id: result.to_json_dict() for result in outcome.results}
    results = [_plain(found[str(number)]) for number in range(len(built))]
    for result, expectation in zip(results, expectations, strict=True):
        result["expectation_config"]["id"] = expectation.id
    run_at = datetime.now(UTC)
    meta = {
        "run_id": {"run_name": None, "run_time": run_at.isoformat()},
        "validation_time": run_at.isoformat(),
    }
    whole: dict[str, Any] = _plain(outcome.to_json_dict())
    return results, {**whole, "results": results, "meta": {**whole["meta"], **meta}}
