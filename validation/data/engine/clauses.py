"""Great Expectations' ``row_condition`` as a query of pandas: whether a block can answer it, what it reads.

A query may lean on the whole table: ``a == b.iloc[0]`` holds for other rows of a block than of the table. So
what is asked of blocks is held to the forms that are known to look at one row at a time.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

_FUNCTIONS = frozenset({"abs"})
_METHODS = frozenset({"isnull", "notnull", "isna", "notna", "isin", "between", "abs", "round"})
#: Of ``.str``; what ``.dt`` has without a call is a part of the row's own time.
_TEXT_METHODS = frozenset(
    [
        *(
            "contains",
            "startswith",
            "endswith",
            "match",
            "fullmatch",
            "len",
            "lower",
            "upper",
            "strip",
            "get",
        ),
        *("isdigit", "isalpha", "isnumeric", "isalnum", "isspace", "islower", "isupper"),
    ]
)
_ACCESSORS = {"str": _TEXT_METHODS, "dt": frozenset[str]()}
_QUOTED = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|`[^`]*`")
#: What pandas takes for an index, and what is bound outside of the query.
_BOUND = re.compile(r"@|\b(?:index|columns|[ic]level_\d+)\b|__")
_PLAIN = (
    *(ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Constant, ast.Name, ast.Load),
    *(ast.boolop, ast.operator, ast.unaryop, ast.cmpop, ast.keyword),
)


def whole_table_parts(clause: str) -> list[str]:
    """What in a query may look at more than one row, so that it cannot be asked of a block."""
    bare = _QUOTED.sub(_name_or_text, clause)
    bound = _BOUND.findall(bare)
    if bound:
        return bound
    try:
        # As pandas reads them: they bind no closer than comparisons do.
        tree = ast.parse(bare.replace("&", " and ").replace("|", " or ").strip(), mode="eval")
    except (SyntaxError, ValueError):
        return [f"{clause.strip()} (it is no Python expression)"]
    return list(dict.fromkeys(_odd(tree)))


def _name_or_text(match: re.Match[str]) -> str:
    """A quoted text as an empty one; a quoted column as a name."""
    if match[0][0] != "`":
        return "''"
    name = match[0][1:-1]
    return name if name.isidentifier() else "_column"


def _odd(node: ast.AST) -> Iterator[str]:
    """The parts of an expression that are not known to look at one row at a time."""
    match node:
        case ast.List() | ast.Tuple() | ast.Set():
            if not _is_literal(node):
                yield ast.unparse(node)
            return
        case ast.Call(func=ast.Name(id=name)) if name in _FUNCTIONS:
            rest: Sequence[ast.AST] = [*node.args, *node.keywords]
        case ast.Call(func=ast.Attribute(value=ast.Attribute(value=of, attr=kind), attr=name)) if (
            kind in _ACCESSORS and name in _ACCESSORS[kind]
        ):
            rest = [of, *node.args, *node.keywords]
        case ast.Call(func=ast.Attribute(value=of, attr=name)) if name in _METHODS:
            if name == "isin" and not all(map(_is_literal, [*node.args, *(k.value for k in node.keywords)])):
                yield ast.unparse(node)
            rest = [of, *node.args, *node.keywords]
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Call(func=ast.Name(id=name)):
            yield name
            return
        case ast.Attribute(value=ast.Attribute(value=of, attr="dt")):
            rest = [of]
        case ast.Subscript(value=ast.Attribute(value=of, attr="str"), slice=place) if not _names_in(place):
            rest = [of]
        case ast.Compare():
            for way, right in zip(node.ops, node.comparators, strict=True):
                if isinstance(way, ast.In | ast.NotIn) and not _is_literal(right):
                    yield ast.unparse(node)
            rest = list(ast.iter_child_nodes(node))
        case _ if isinstance(node, _PLAIN):
            rest = list(ast.iter_child_nodes(node))
        case _:
            yield ast.unparse(node)
            return
    for part in rest:
        yield from _odd(part)


def _is_literal(node: ast.AST) -> bool:
    """Whether it is a list of values that stand in the query."""
    return isinstance(node, ast.List | ast.Tuple | ast.Set) and not _names_in(node)


def _names_in(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Name | ast.Call | ast.Attribute) for part in ast.walk(node))


def columns_in(clause: str, names: Sequence[str]) -> tuple[str, ...]:
    """Columns that a query may read: those whose name stands in it."""
    return tuple(name for name in names if name in clause)
