"""The right to erasure: take a key, or an end user, out of all records, and a key's files out of storage.

What goes is what tells who it was and what was said: texts, comments, labels, the names of end users, and for
a key its id, in whose place comes a pseudonym that nothing leads back from. What stays is what accounts and
the law on keeping them need, and what nobody can be known by: times, models, tokens, costs, outcomes. So no
sum changes, and no row goes.

Feedback on the subject's requests loses its comment, too, whoever gave it.

Each file is rewritten whole by one put: readers see it before or after, never half. The erasure itself is on
record at ``control/erasures/``, by the subject's hash and without its name, before the first file changes;
whoever is killed runs it again. Every run also applies the erasures on record before it, to what came in
since (a spool that was shipped late) and to what another run, at the same time, wrote over: the last to
finish has then seen all files clean.

With a key go the files of ``/v1/files`` that came with it, uploads and what batches and fine-tuning jobs made
for it alike, and the copies that such jobs read (:mod:`cluster.records.belongings`).

Not touched: logs, traces, what jobs made of records, the key's own row in SQL and its name in manifests and
the registry, models, and what still waits in a spool.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import AwareDatetime, Field, ValidationError

from cluster.contracts import Principal
from cluster.contracts.base import Contract
from cluster.errors import RefusedError, UnavailableError
from cluster.records.belongings import Belongings, OnRecord, Owned
from cluster.records.layout import RecordFile, record_files
from cluster.records.reading import read_file, read_files
from cluster.records.schema import TABLES, TableName, subject_hash
from cluster.records.ship import to_parquet
from cluster.storage import ObjectStore

if TYPE_CHECKING:
    import pyarrow as pa

PREFIX = "control/erasures/"
#: Passes over all files until nothing is found any more; more means that others undo this one's work.
_PASSES = 5


class Erasure(Contract):
    """One erasure on record."""

    schema_version: Literal[1] = Field(1, description="Version of this schema.")
    kind: Literal["key", "user"] = Field(description="Whether a key or an end user was erased.")
    team: str | None = Field(description="The end user's team; null for a key.")
    subject: str = Field(pattern=r"^[0-9a-f]{64}$", description="The subject's hash, see subject_hash.")
    before: AwareDatetime = Field(description="UTC time up to which its records are erased.")
    asked_by: Principal = Field(description="Who erased it.")
    pseudonym: str | None = Field(
        None, description="What stands for the key while the erasure is under way; null once it is done."
    )
    done_at: AwareDatetime | None = Field(None, description="UTC time at which nothing was left to erase.")
    rows: dict[str, int] = Field(default_factory=dict, description="Rows erased so far, by table.")
    # Left out of what a release without them must read.
    objects: int = Field(
        0, description="Files and copies of them deleted so far.", exclude_if=lambda objects: not objects
    )
    models: list[str] = Field(
        default_factory=list,
        description="Names of models that learned from its files.",
        exclude_if=lambda models: not models,
    )
    training_files: list[str] = Field(
        default_factory=list,
        description="Ids of its files that others' fine-tuning jobs learned from while they were deleted.",
        exclude_if=lambda files: not files,
    )

    @property
    def address(self) -> str:
        """Its key in storage: one for each subject."""
        return f"{PREFIX}{self.kind}-{self.subject}.json"


@dataclass(frozen=True)
class Erased:
    """What a run did, or would do."""

    #: By table.
    rows: dict[str, int]
    files: int
    #: Erasures on record that were applied.
    erasures: int
    #: Of keys: files, and copies of them, that were in storage.
    objects: int = 0
    #: Of keys: names of models that learned from their files.
    models: list[str] = field(default_factory=list)
    #: Of keys: ids of batches and fine-tuning jobs that have not ended and keep what they need.
    under_way: list[str] = field(default_factory=list)
    #: Of an end user: ids of its team's files whose lines name it, and of what batches made of these.
    files_with_user: list[str] = field(default_factory=list)


class Eraser:
    """Erases from one bucket.

    :param url: SQLAlchemy URL of the database that knows its files.
    """

    def __init__(self, store: ObjectStore, by: Principal, url: str) -> None:
        self._store, self._by, self._owned = store, by, Owned(store, url, by)

    def erase(self, kind: Literal["key", "user"], name: str, team: str, *, dry_run: bool = False) -> Erased:
        """Erase a key, or an end user of a team, from all that was recorded until now.

        Raises UnavailableError or AccessError if storage or the database does not answer: run it again then.
        """
        erasure = Erasure(
            kind=kind,
            team=None if kind == "key" else team,
            subject=subject_hash(kind, team, name),
            before=datetime.now(UTC),
            asked_by=self._by,
        )
        if before := self._find(erasure.address):
            kept = {"rows", "pseudonym", "objects", "models", "training_files"}
            erasure = erasure.model_copy(update={name: getattr(before, name) for name in kept})
        if dry_run:
            return replace(self._dry_run([erasure]), files_with_user=self._naming(erasure))
        _write(self._store, erasure)
        done, now = self.again(), self._find(erasure.address)
        # Those too that an earlier run found, which then lost what led to them.
        models = done.models if now is None else sorted({*done.models, *now.models})
        return replace(done, models=models, files_with_user=self._naming(erasure))

    def again(self, *, dry_run: bool = False) -> Erased:
        """Apply all erasures on record to what came in since. Raises as :meth:`erase`."""
        if dry_run:
            return self._dry_run(list(self.on_record()))
        there = self._owned.load({one.subject for one in self.on_record() if one.kind == "key"})
        left = [self._take(one, there) for one in self.on_record() if one.kind == "key"]
        rows: Counter[str] = Counter()
        files = 0
        for _ in range(_PASSES):
            erasures = list(self.on_record())  # Each time: others may have begun meanwhile.
            found = _Pass(self._store, erasures).run()
            rows.update(found.rows)
            files += found.files
            if not found.files:
                self._done(erasures)
                return _with(Erased(dict(rows), files, len(erasures)), left)
        raise UnavailableError("Files change while they are erased: run `manta erase` again later.")

    def _dry_run(self, erasures: list[Erasure]) -> Erased:
        keys = [one for one in erasures if one.kind == "key"]
        there = self._owned.load({one.subject for one in keys})
        left = [self._owned.find(one.subject, one.before, there, one.training_files) for one in keys]
        return _with(_Pass(self._store, erasures, dry_run=True).run(), left)

    def _naming(self, erasure: Erasure) -> list[str]:
        return [] if erasure.team is None else self._owned.naming(erasure.subject, erasure.team)

    def _take(self, erasure: Erasure, there: OnRecord) -> Belongings:
        """Delete what a key left besides records."""
        found = self._owned.find(erasure.subject, erasure.before, there, erasure.training_files)
        if found.objects or found.models:
            # On record first: without the files nothing leads to the models any more.
            known = {
                "models": sorted({*erasure.models, *found.models}),
                "training_files": sorted({*erasure.training_files, *found.awaited}),
                "objects": erasure.objects + len(found.objects),
            }
            erasure = erasure.model_copy(update=known)
            _write(self._store, erasure)

        def pseudonym() -> str:
            nonlocal erasure
            erasure = _with_pseudonym(self._store, erasure)
            return str(erasure.pseudonym)

        self._owned.erase(found, pseudonym)
        return found

    def _find(self, address: str) -> Erasure | None:
        return next((one for one in self.on_record() if one.address == address), None)

    def on_record(self) -> Iterator[Erasure]:
        """All erasures, in order of their addresses. Raises RefusedError for one that is not understood."""
        for item in self._store.list(PREFIX):
            try:
                yield Erasure.model_validate_json(self._store.get(item.key))
            except ValidationError:
                raise RefusedError(
                    f"{self._store.uri(item.key)} is no erasure of schema 1: it is damaged, or a newer "
                    "Manta wrote it."
                ) from None

    def _done(self, erasures: Sequence[Erasure]) -> None:
        """Forget the pseudonyms: from now on nothing leads from a key to its rows."""
        for erasure in erasures:
            if erasure.done_at is None or erasure.pseudonym is not None:
                done_at = erasure.done_at or datetime.now(UTC)
                _write(self._store, erasure.model_copy(update={"pseudonym": None, "done_at": done_at}))


class _Pass:
    """One pass over all files."""

    def __init__(self, store: ObjectStore, erasures: Sequence[Erasure], *, dry_run: bool = False) -> None:
        self._store, self._dry_run = store, dry_run
        self._erasures = {one.address: one for one in erasures}
        #: Ids of each subject's requests, by team.
        self._requests: dict[tuple[str, str], set[str]] = {}

    def run(self) -> Erased:
        """Erase what is there."""
        import pyarrow.compute as pc

        rows: Counter[str] = Counter()
        files = 0
        if self._erasures:
            for name in _WITH_REQUESTS:
                for file, who in self._read(name):
                    self._note_requests(file, who)
            for name in _ORDER:
                for file, who in self._read(name):
                    if any(pc.any(self._rows(name, file, who, one)).as_py() for one in self._of(file)):
                        rows[name] += self._rewrite(name, file)
                        files += 1
        return Erased(dict(rows), files, len(self._erasures))

    def _read(self, name: TableName) -> Iterator[tuple[RecordFile, pa.Table]]:
        """Every file with what tells whose its rows are."""
        return read_files(self._store, name, record_files(self._store, name), _WHO)

    def _note_requests(self, file: RecordFile, who: pa.Table) -> None:
        for one in self._of(file):
            ids = who["request_id"].filter(_subject(who, one)).drop_null().to_pylist()
            self._requests.setdefault((one.address, file.team), set()).update(ids)

    def _rewrite(self, name: TableName, file: RecordFile) -> int:
        """Erase from one file; how many rows."""
        import pyarrow.compute as pc

        table = read_file(self._store, name, file, None)
        counts: Counter[str] = Counter()
        for one in self._of(file):
            own, rows = _subject(table, one), self._rows(name, file, table, one)
            if not (count := pc.sum(rows).as_py()):
                continue
            counts[one.address] = count
            table = _erased(table, rows, TABLES[name].texts)
            table = _put(table, "users", own, None)
            if one.kind == "key":
                table = _put(table, "key_id", own, self._pseudonym(one))
        if not self._dry_run:
            self._store.put(file.key, to_parquet(table))
            for address, count in counts.items():
                self._count(address, name, count)
        return counts.total()

    def _rows(self, name: TableName, file: RecordFile, table: pa.Table, erasure: Erasure) -> pa.ChunkedArray:
        """The subject's rows and, of feedback, those on its requests."""
        import pyarrow as pa
        import pyarrow.compute as pc

        own = _subject(table, erasure)
        if name != "feedback":
            return own
        ids = pa.array(sorted(self._requests.get((erasure.address, file.team), ())), pa.string())
        on_its = pc.and_(pc.is_in(table["request_id"], value_set=ids), pc.is_null(table["erased_at"]))
        return pc.or_(own, on_its)

    def _of(self, file: RecordFile) -> list[Erasure]:
        return [one for one in self._erasures.values() if one.team in (None, file.team)]

    def _pseudonym(self, erasure: Erasure) -> str:
        """What stands for a key. On record until all is done: who is killed midway goes on with the same."""
        if self._dry_run:
            return "erased"
        current = _with_pseudonym(self._store, self._erasures[erasure.address])
        self._erasures[erasure.address] = current
        return str(current.pseudonym)

    def _count(self, address: str, name: TableName, count: int) -> None:
        known = self._erasures[address]
        rows = known.rows | {name: known.rows.get(name, 0) + count}
        # With a change, the record is open again until a pass finds nothing.
        self._erasures[address] = known.model_copy(update={"rows": rows, "done_at": None})
        _write(self._store, self._erasures[address])


_WITH_REQUESTS: tuple[TableName, ...] = ("audit", "traffic")
#: The audit last: as long as it knows the subject's requests, feedback on them can be found.
_ORDER: tuple[TableName, ...] = ("feedback", "traffic", "audit")
_WHO = ("request_id", "time", "key_id", "users", "erased_at")


def _subject(table: pa.Table, erasure: Erasure) -> pa.ChunkedArray:
    """Which rows are the subject's own."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if erasure.kind == "key":
        ids = table["key_id"].unique().drop_null().to_pylist()
        wanted = [name for name in ids if subject_hash("key", "", name) == erasure.subject]
        found = pc.is_in(table["key_id"], value_set=pa.array(wanted, pa.string()))
    else:
        named = [erasure.subject in (users or ()) for users in table["users"].to_pylist()]
        found = pa.chunked_array([pa.array(named, pa.bool_())])
    old = pc.less_equal(table["time"], pa.scalar(erasure.before, table["time"].type))
    return pc.and_(found, pc.fill_null(old, False))


def _erased(table: pa.Table, rows: pa.ChunkedArray, texts: Sequence[str]) -> pa.Table:
    """The table without what was said in those rows."""
    for name in texts:
        table = _put(table, name, rows, None)
    return _put(table, "erased_at", rows, datetime.now(UTC))


def _put(table: pa.Table, name: str, rows: pa.ChunkedArray, value: Any) -> pa.Table:
    """The table with ``value`` in those rows of a column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    field = table.schema.field(name)
    column = pc.if_else(rows, pa.scalar(value, field.type), table[name])
    return table.set_column(table.schema.get_field_index(name), field, column)


def _with(done: Erased, left: Sequence[Belongings]) -> Erased:
    return replace(
        done,
        objects=sum(len(one.objects) for one in left),
        models=sorted({name for one in left for name in one.models}),
        under_way=sorted({name for one in left for name in one.under_way}),
    )


def _with_pseudonym(store: ObjectStore, erasure: Erasure) -> Erasure:
    """The erasure with a pseudonym, which is on record before anything bears it."""
    if erasure.pseudonym is None:
        erasure = erasure.model_copy(update={"pseudonym": f"erased-{secrets.token_hex(8)}"})
        _write(store, erasure)
    return erasure


def _write(store: ObjectStore, erasure: Erasure) -> None:
    store.put(erasure.address, erasure.model_dump_json(indent=1).encode())
