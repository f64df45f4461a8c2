"""The alias history's tables, on SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import IntegrityError

from cluster.alias_history import AliasHistory, MoveState
from cluster.contracts import Principal
from cluster.database import Database
from tests.unit.test_runs import in_processes

ALICE = Principal(key_id="alice", team="default")


def intend(history: AliasHistory, to: int | None, alias: str = "champion", before: int | None = None) -> int:
    return history.intend("shield", alias, (before, to), by=ALICE, why="better", evidence=None)


def test_a_move_is_an_intent_until_it_is_settled_once(database_url: str) -> None:
    history = AliasHistory(Database(database_url))
    first, second = intend(history, 1), intend(history, 2, before=1)
    assert second > first
    assert [move.state for move in history.moves("shield")] == [MoveState.INTENT] * 2
    history.settle(first, MoveState.CONFIRMED)
    history.settle(second, MoveState.ABANDONED)
    with pytest.raises(IntegrityError):
        history.settle(first, MoveState.ABANDONED)
    moves = history.moves("shield", "champion")
    assert [move.state for move in moves] == [MoveState.CONFIRMED, MoveState.ABANDONED]
    assert moves[0].settled_at >= moves[0].at
    assert moves[0].by == ALICE
    assert history.open_moves() == []
    assert history.current("shield") == {"champion": 1}


def test_a_removed_alias_stands_nowhere(database_url: str) -> None:
    history = AliasHistory(Database(database_url))
    for move in (intend(history, 1), intend(history, None, before=1), intend(history, 3, "challenger")):
        history.settle(move, MoveState.CONFIRMED)
    assert history.current("shield") == {"champion": None, "challenger": 3}
    assert history.moves("another") == []


def _move_many(url: str, count: int) -> list[int]:
    history = AliasHistory(Database(url))  # The tables are made by all at once, too.
    made = [intend(history, number) for number in range(count)]
    for move in made:
        history.settle(move, MoveState.CONFIRMED)
    return made


def test_processes_that_write_together_lose_no_move(database_url: str) -> None:
    made = [move for part in in_processes(_move_many, [(database_url, 10)] * 4) for move in part]
    moves = AliasHistory(Database(database_url)).moves("shield")
    assert [move.id for move in moves] == sorted(made)
    assert {move.state for move in moves} == {MoveState.CONFIRMED}
