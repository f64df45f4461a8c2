"""Passes over blocks: the first, which may ride in somebody else's, and the narrow ones that some need."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from validation.data.engine.frames import Block, aligned
from validation.data.engine.lengths import measured, measured_of
from validation.data.engine.metrics import Metric, Table
from validation.data.engine.programs import Facts, Program, program_for
from validation.data.engine.tasks import Shape, Task

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data


@dataclass(frozen=True)
class Failure:
    """What a task raised, as its result."""

    message: str


@dataclass(frozen=True)
class Pass:
    """Tasks for every block of a dataset. Picklable; runs without Great Expectations."""

    schema: pa.Schema
    tasks: tuple[Task, ...]
    #: Columns whose pandas form depends on a null that is somewhere; None while this is unknown.
    holed: frozenset[str] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read, in the schema's order."""
        read = {measured_of(self.schema, name) for name in self.wanted}
        return tuple(name for name in self.schema.names if name in read)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Columns that tasks look at: those that are read, and lengths made of them."""
        read = {name for task in self.tasks for name in task.columns}
        return tuple(name for name in self.schema.names if name in read)

    def block(self, table: pa.Table) -> Block:
        """A block as the tasks see it."""
        return Block(aligned(measured(table, self.schema, self.wanted), self.schema, self.wanted), self.holed)

    def run(self, block: Block) -> bytes:
        """The partial results of one block."""
        return pickle.dumps([_run(task, block) for task in self.tasks])

    def fold(self, partials: Iterable[bytes]) -> dict[Task, Any]:
        """The results of the whole, from those of the blocks in their order."""
        whole: list[Any] | None = None
        for partial in partials:
            parts = pickle.loads(partial)  # noqa: S301 - written by our own workers
            whole = (
                parts
                if whole is None
                else [_join(*three) for three in zip(self.tasks, whole, parts, strict=True)]
            )
        if whole is None:
            return self.fold([self.run(self.block(self.schema.empty_table()))])
        return dict(zip(self.tasks, whole, strict=True))


def _run(task: Task, block: Block) -> Any:
    try:
        return task.block(block)
    except Exception as error:  # Shown as the expectation's exception.
        return Failure(str(error))


def _join(task: Task, first: Any, second: Any) -> Any:
    for part in (first, second):
        if isinstance(part, Failure):
            return part
    try:
        return task.join(first, second)
    except Exception as error:
        return Failure(str(error))


Runner = Callable[[Pass], Iterable[bytes]]


class Rounds:
    """All programs of a suite, going through their passes side by side."""

    def __init__(self, metrics: Sequence[Metric], table: Table) -> None:
        self._schema, self._typed = table.schema, table.typed
        self.answers: dict[str, Any] = {}
        self._waiting: dict[str, tuple[Program, list[Task]]] = {}
        for metric in metrics:
            try:
                if metric.refused:
                    raise RuntimeError(metric.refused)
                program = program_for(metric, table)
                if program is not None:
                    self._waiting[metric.key] = (program, next(program))
            except StopIteration as stop:
                self.answers[metric.key] = stop.value
            except Exception as error:
                self.answers[metric.key] = error

    def waiting_for(self) -> dict[str, Any]:
        """The first task that each metric waits for, by the metric's key."""
        return {key: tasks[0] for key, (_, tasks) in self._waiting.items() if tasks}

    def first(self) -> Pass:
        """The pass that everything starts with; it also finds out where the table has nulls."""
        tasks = self._tasks()
        shape = Shape((*Pass(self._schema, tasks).wanted, *self._typed))
        return Pass(self._schema, (shape, *tasks))

    def finish(self, first: Pass, results: dict[Task, Any], run: Runner) -> Facts:
        """Feed the first pass's results, and run the further passes that are needed."""
        facts = Facts(*results[first.tasks[0]])
        while self._waiting:
            self._feed(facts, results)
            tasks = self._tasks()
            if tasks:
                further = Pass(self._schema, tasks, facts.holed)
                results = further.fold(run(further))
        return facts

    def _tasks(self) -> tuple[Task, ...]:
        return tuple(dict.fromkeys(task for _, tasks in self._waiting.values() for task in tasks))

    def _feed(self, facts: Facts, results: dict[Task, Any]) -> None:
        for key, (program, tasks) in list(self._waiting.items()):
            found = [results[task] for task in tasks]
            try:
                for result in found:
                    if isinstance(result, Failure):
                        raise RuntimeError(result.message)
                self._waiting[key] = (program, program.send((facts, found)))
            except StopIteration as stop:
                del self._waiting[key]
                self.answers[key] = stop.value
            except Exception as error:
                del self._waiting[key]
                self.answers[key] = error


def over_dataset(rows: Callable[[list[str]], ray.data.Dataset], num_cpus: float) -> Runner:
    """Runs passes as Ray tasks; partial results come back in the order of the blocks."""

    def run(wanted: Pass) -> Iterable[bytes]:
        return partials_of(rows(list(wanted.columns)), wanted, num_cpus)

    return run


def partials_of(rows: ray.data.Dataset, wanted: Pass, num_cpus: float) -> Iterable[bytes]:
    """The partial results of a dataset's blocks."""
    import ray

    shared = ray.put(wanted)  # It may hold the hashes of all repeated rows.

    def judge(table: pa.Table) -> pa.Table:
        import pyarrow as pa
        import ray

        work: Pass = ray.get(shared)
        return pa.table({"partial": pa.array([work.run(work.block(table))], pa.large_binary())})

    judged = rows.map_batches(judge, batch_size=None, batch_format="pyarrow", num_cpus=num_cpus)
    for row in in_order(judged):
        yield row["partial"]


def in_order(judged: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """A dataset's rows in the order of its blocks.

    The option belongs to the context that all datasets from one reading share, so it is put back.
    """
    options = judged.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        yield from judged.iter_rows()
    finally:
        options.preserve_order = before
