"""What SQL in a text does, read by sqlglot from the whole syntax tree: a writing CTE is no SELECT.

What it cannot parse, or would take long over, is a finding: nobody can say what that does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from validation.guards.scan import Hit
from validation.guards.specs import Statement

#: Characters of SQL that are parsed: sqlglot takes about a millisecond a kilobyte.
_LONGEST = 20_000
#: Parentheses within parentheses; parsing goes as deep.
_DEEPEST = 60
_FENCE = re.compile(
    r"```[ \t]*(?:sql|postgres(?:ql)?|mysql|sqlite|tsql|plsql|bigquery)\b[^\n]*\n", re.IGNORECASE
)


def check_dialect(dialect: str | None) -> None:
    """Raises ValueError with a sentence for a dialect that sqlglot does not know, or if it is not here."""
    sqlglot = _sqlglot()
    try:
        sqlglot.Dialect.get_or_raise(dialect)
    except ValueError:
        raise ValueError(f"{dialect} is no dialect of sqlglot's") from None


def _sqlglot() -> Any:
    try:
        import sqlglot
    except ModuleNotFoundError:
        raise ValueError("kind sql needs sqlglot; install manta-llm[platform]") from None
    return sqlglot


def sql_check(
    statements: Iterable[Statement], tables: Iterable[str] | None, dialect: str | None, fenced: bool
) -> Callable[[str], list[Hit]]:
    """The guard of policy kind ``sql``."""
    _sqlglot()
    allowed = frozenset(statements)
    named = None if tables is None else frozenset(table.lower() for table in tables)

    def check(text: str) -> list[Hit]:
        hits = []
        for start, end in _fences(text) if fenced else ((0, len(text)),):
            label = _judge(text[start:end], allowed, named, dialect)
            if label:
                hits.append(Hit(label, 1.0, start, end))
        return hits

    return check


def _fences(text: str) -> Iterator[tuple[int, int]]:
    """Where the SQL of fenced blocks stands; one that is not closed reaches to the end."""
    position = 0
    while match := _FENCE.search(text, position):
        end = text.find("```", match.end())
        position = len(text) if end < 0 else end
        if text[match.end() : position].strip():
            yield match.end(), position
        position += 3


def _judge(
    sql: str, allowed: frozenset[Statement], tables: frozenset[str] | None, dialect: str | None
) -> str | None:
    """The label of what is wrong with a piece of SQL; None if nothing is."""
    import sqlglot

    if len(sql) > _LONGEST or _depth(sql) > _DEEPEST:
        return "SQL_TOO_LARGE"
    if "/*!" in sql:
        return "SQL_STATEMENT"  # A comment, except to MySQL, which runs it.
    try:
        parsed = [tree for tree in sqlglot.parse(sql, dialect=dialect) if tree is not None]
    except (sqlglot.errors.SqlglotError, RecursionError):
        return "SQL_NOT_PARSED"
    if any(not _allows(tree, allowed) for tree in parsed):
        return "SQL_STATEMENT"
    if tables is not None and any(name not in tables for tree in parsed for name in _tables(tree)):
        return "SQL_TABLE"
    return None


def _depth(sql: str) -> int:
    deepest = depth = 0
    for char in sql:
        depth += (char == "(") - (char == ")")
        deepest = max(deepest, depth)
    return deepest


def _allows(tree: Any, allowed: frozenset[Statement]) -> bool:
    from sqlglot import exp

    kinds: dict[Any, Statement] = {
        exp.Query: "SELECT",
        exp.Insert: "INSERT",
        exp.Update: "UPDATE",
        exp.Delete: "DELETE",
        exp.Merge: "MERGE",
    }
    if _kind(tree, kinds) not in allowed:
        return False
    for node in tree.walk():
        # Command is all that sqlglot reads without understanding it.
        if isinstance(node, exp.Into | exp.Command | exp.Create | exp.Drop | exp.Alter | exp.TruncateTable):
            return False
        if isinstance(node, exp.DML | exp.Merge) and _kind(node, kinds) not in allowed:
            return False
    return True


def _kind(node: Any, kinds: dict[Any, Statement]) -> Statement | None:
    return next((name for kind, name in kinds.items() if isinstance(node, kind)), None)


def _tables(tree: Any) -> Iterator[str]:
    """The tables that are named, but for those that a WITH around them defines."""
    from sqlglot import exp

    for table in tree.find_all(exp.Table):
        name = ".".join(part.name for part in table.parts).lower()
        if name not in _defined_for(table):
            yield name


def _defined_for(table: Any) -> set[str]:
    """What WITHs define where ``table`` stands; the same names are real tables elsewhere."""
    from sqlglot import exp

    names: set[str] = set()
    holder = table.parent.parent if isinstance(table.parent, exp.Schema) else table.parent
    if isinstance(holder, exp.DML | exp.Merge) and holder.this in (table, table.parent):
        return names  # What is written to is a real table.
    node = table
    while (parent := node.parent) is not None:
        if isinstance(parent, exp.With):
            # Within a WITH only what stands before is known, and itself if it is recursive.
            place = [cte is node for cte in parent.expressions].index(True)
            known = parent.expressions[: place + bool(parent.args.get("recursive"))]
            node = parent.parent
        else:
            defined = parent.args.get("with_")
            known = defined.expressions if defined else ()
            node = parent
        names.update(cte.alias_or_name.lower() for cte in known)
    return names
