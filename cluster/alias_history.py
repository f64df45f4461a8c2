"""The append-only history of alias moves: who, when, from, to, why, on which evidence.

Two tables, into which rows are only ever inserted: the moves as intended, and what became of each. MLflow's
alias is the truth about the present; this is the truth about the past.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import Field
from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    insert,
    select,
)

from cluster.contracts import Principal
from cluster.contracts.base import Contract, Slug
from cluster.database import Database, UtcDateTime

_METADATA = MetaData()

_MOVES = Table(
    "alias_moves",
    _METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("model", String(63), nullable=False, index=True),
    Column("alias", String(63), nullable=False),
    Column("from_version", Integer),
    Column("to_version", Integer),
    Column("key_id", String(200), nullable=False),
    Column("team", String(63), nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("why", Text, nullable=False),
    Column("evidence", Text),
    Column("at", UtcDateTime, nullable=False),
)
_OUTCOMES = Table(
    "alias_move_outcomes",
    _METADATA,
    # One outcome a move: the key refuses a second.
    Column("move_id", Integer, ForeignKey("alias_moves.id"), primary_key=True),
    Column("state", String(20), nullable=False),
    Column("at", UtcDateTime, nullable=False),
)


class MoveState(StrEnum):
    """What became of a move."""

    INTENT = "intent"
    CONFIRMED = "confirmed"
    ABANDONED = "abandoned"


class AliasMove(Contract):
    """One move of one alias."""

    id: int = Field(description="Rises with each move.")
    model: Slug = Field(description="Registered model name.")
    alias: Slug = Field(description="The alias that moved.")
    from_version: int | None = Field(description="Version before; none if the alias was new.")
    to_version: int | None = Field(description="Version after; none if the alias was removed.")
    by: Principal = Field(description="Who moved it.")
    why: str = Field(description="The reason that was given.")
    evidence: str | None = Field(description="Address of the evaluation that speaks for it.")
    at: datetime = Field(description="UTC time of the intent.")
    state: MoveState = Field(description="Intent until MLflow's alias is known to have moved, or not.")
    settled_at: datetime | None = Field(description="UTC time at which it was confirmed or abandoned.")


class AliasHistory:
    """Reads and appends. Tables are made at first use; raises UnavailableError if the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.create(_METADATA)

    def intend(
        self,
        model: str,
        alias: str,
        versions: tuple[int | None, int | None],
        *,
        by: Principal,
        why: str,
        evidence: str | None,
    ) -> int:
        """Write down a move before it is made; return its id.

        :param versions: before and after.
        """
        values = {
            "model": model,
            "alias": alias,
            "from_version": versions[0],
            "to_version": versions[1],
            **by.model_dump(),
            "why": why,
            "evidence": evidence,
            "at": datetime.now(UTC),
        }
        with self._database.write() as connection:
            query = insert(_MOVES).values(values).returning(_MOVES.c.id)
            return int(connection.execute(query).scalar_one())

    def settle(self, move_id: int, state: MoveState) -> None:
        """Write down what became of a move, once."""
        values = {"move_id": move_id, "state": state, "at": datetime.now(UTC)}
        with self._database.write() as connection:
            connection.execute(insert(_OUTCOMES).values(values))

    def moves(self, model: str, alias: str | None = None) -> list[AliasMove]:
        """All moves of a model's aliases, oldest first."""
        conditions = [_MOVES.c.model == model]
        if alias is not None:
            conditions.append(_MOVES.c.alias == alias)
        return self._moves(conditions)

    def open_moves(self, model: str | None = None) -> list[AliasMove]:
        """Moves that are still intents, oldest first."""
        conditions: list[Any] = [_OUTCOMES.c.state.is_(None)]
        if model is not None:
            conditions.append(_MOVES.c.model == model)
        return self._moves(conditions)

    def current(self, model: str) -> Mapping[str, int | None]:
        """Where each alias stands after all confirmed moves; None for a removed one."""
        confirmed = [move for move in self.moves(model) if move.state is MoveState.CONFIRMED]
        return {move.alias: move.to_version for move in confirmed}

    def _moves(self, conditions: Iterable[Any]) -> list[AliasMove]:
        query = (
            select(_MOVES, _OUTCOMES.c.state, _OUTCOMES.c.at.label("settled_at"))
            .outerjoin(_OUTCOMES, _OUTCOMES.c.move_id == _MOVES.c.id)
            .where(*conditions)
            .order_by(_MOVES.c.id)
        )
        with self._database.read() as connection:
            return [_move(row) for row in connection.execute(query).mappings()]


def _move(row: RowMapping) -> AliasMove:
    values = dict(row)
    by = Principal(**{name: values.pop(name) for name in ("key_id", "team", "tenant")})
    state = MoveState(values.pop("state") or MoveState.INTENT)
    return AliasMove(by=by, state=state, **values)
