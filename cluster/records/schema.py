"""The tables of records: their columns, with units. Columns are only ever added, at the end.

Every table begins with the same columns (who, when, which request), so that erasure treats them alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

TableName = Literal["audit", "traffic", "feedback"]
ColumnType = Literal[
    "string", "strings", "int64", "float64", "bool", "timestamp", "findings", "labels", "guard_times"
]


@dataclass(frozen=True)
class Column:
    """One column; ``description`` says its unit."""

    name: str
    type: ColumnType
    description: str


@dataclass(frozen=True)
class Table:
    """One kind of record."""

    name: TableName
    #: Rises when a column changes its meaning; a new column alone does not raise it.
    version: int
    columns: tuple[Column, ...]
    #: Columns that may hold what somebody wrote; erasure empties them.
    texts: tuple[str, ...]

    def arrow(self) -> pa.Schema:
        """The schema of its files. Its metadata names table and version."""
        import pyarrow as pa

        fields = [pa.field(column.name, _arrow(column.type)) for column in self.columns]
        return pa.schema(fields, {"manta.table": self.name, "manta.schema_version": str(self.version)})


_COMMON = (
    Column("schema_version", "int64", "Version of this table's schema."),
    Column("request_id", "string", "x-request-id; a client may choose it, so it need not be unique."),
    Column("time", "timestamp", "UTC time at which the request arrived, to the microsecond."),
    Column("key_id", "string", "Public id of the API key; null if none was accepted."),
    Column("team", "string", "The key's team; null if no key was accepted."),
    Column("tenant", "string", "The key's tenant; null if no key was accepted."),
    Column(
        "users", "strings", "subject_hash of each end user that the client named (safety_identifier, user)."
    ),
    Column("erased_at", "timestamp", "UTC time of the erasure that this row went through; null for most."),
)
_WHAT = (
    Column("endpoint", "string", "chat, completions, responses, messages, embeddings."),
    Column("model", "string", "Public model name that was asked for; null if the body was not understood."),
    Column("target_model", "string", "The engine's name of the model (immutable); null if none was reached."),
    Column("model_version", "string", "Registry's name@version; null if the model is not registered."),
    Column("model_digest", "string", "Data digest of the weights; null if unknown."),
    Column("stream", "bool", "Whether a stream was asked for."),
    Column("status", "int64", "HTTP status; 499 if the client went away before the end."),
    Column("outcome", "string", "ok, blocked (by a guard), refused (other 4xx), failed (5xx), cancelled."),
    Column("prompt_tokens", "int64", "Tokens of the prompt, as the engine counted."),
    Column("completion_tokens", "int64", "Tokens of the answer, as the engine counted."),
    Column("duration_s", "float64", "Seconds from arrival to the end of the answer."),
    Column("time_to_first_token_s", "float64", "Seconds from arrival to the first token; null without one."),
)
_TEXT = (
    Column("prompt", "string", "JSON of what the guards let to the model; null unless record_text says so."),
    Column("answer", "string", "JSON of what the guards let out; null unless the policy's record_text says."),
)

AUDIT = Table(
    "audit",
    1,
    (
        *_COMMON,
        *_WHAT,
        Column("policy", "string", "Name of the guard policy; null if the request did not get that far."),
        Column("policy_digest", "string", "SHA-256 of the policy's canonical content."),
        Column("findings", "findings", "What guards found. score: 0 to 1; never the text itself."),
        Column("error_code", "string", "code of the error body; null if it has none."),
        Column("prompt_template", "string", "name@version of the prompt template; null without one."),
        Column("admitted_s", "float64", "Seconds from arrival to the end of authentication and limits."),
        Column("guarded_s", "float64", "Seconds from arrival to the verdict of the input guards."),
        Column("sent_s", "float64", "Seconds from arrival to the request to the engine; null if none went."),
        Column("cost", "float64", "Price in the currency of the price list; null if the model has no price."),
        *_TEXT,
        Column("guard_times", "guard_times", "Seconds that each guard took, over all texts of a direction."),
        Column(
            "attempt", "int64", "Which try of a batch's row, from 1, under one request_id; null for others."
        ),
    ),
    texts=("prompt", "answer"),
)
TRAFFIC = Table(
    "traffic",
    1,
    (
        *_COMMON,
        *_WHAT,
        Column("messages", "int64", "Messages, or prompts, of the request."),
        Column("tools", "int64", "Tools that the request offered."),
        Column("prompt_characters", "int64", "Code points of all texts of the request."),
        Column("answer_characters", "int64", "Code points of all texts of the answer."),
        Column("prompt_letters", "float64", "Share of letters in the request's texts, 0 to 1."),
        Column("answer_letters", "float64", "Share of letters in the answer's texts, 0 to 1."),
        Column("tool_calls", "int64", "Tool calls in the answer."),
        Column("finish_reasons", "strings", "One a choice, in their order."),
        Column("findings", "findings", "What guards found. score: 0 to 1; never the text itself."),
        *_TEXT,
    ),
    texts=("prompt", "answer"),
)
FEEDBACK = Table(
    "feedback",
    1,
    (
        *_COMMON,
        Column("feedback_id", "string", "Id of this feedback; a request may get several: the last counts."),
        Column("score", "float64", "0 (worst) to 1 (best); a rating of up is 1, of down 0."),
        Column("comment", "string", "What the rater wrote, after the guards."),
        Column("labels", "labels", "Names and values that the rater gave, after the guards."),
    ),
    texts=("comment", "labels"),
)
TABLES: dict[TableName, Table] = {"audit": AUDIT, "traffic": TRAFFIC, "feedback": FEEDBACK}


def line(table: TableName, row: Mapping[str, Any]) -> bytes:
    """A row as one line of JSON, with the schema's version. Columns that are null may be left out.

    Half surrogate pairs, which clients can send and UTF-8 cannot hold, become question marks.
    """
    content = {"schema_version": TABLES[table].version} | {
        name: value for name, value in row.items() if value is not None
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def subject_hash(kind: Literal["key", "user"], team: str, name: str) -> str:
    """How an end user stands in records, and a key in the record of its erasure: hex SHA-256.

    A pseudonym, not a secret: who has the records and guesses a name can test the guess. The same user id
    means somebody else in another team; keys' ids are unique, so theirs ignores the team.
    """
    whole = json.dumps([kind, "" if kind == "key" else team, name])
    return hashlib.sha256(whole.encode()).hexdigest()


def _arrow(kind: ColumnType) -> pa.DataType:
    import pyarrow as pa

    text = pa.string()
    types = {
        "string": text,
        "strings": pa.list_(text),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "bool": pa.bool_(),
        "timestamp": pa.timestamp("us", "UTC"),
        "labels": pa.list_(pa.struct({"name": text, "value": text})),
        "guard_times": pa.list_(pa.struct({"guard": text, "direction": text, "seconds": pa.float64()})),
        "findings": pa.list_(
            pa.struct(
                {
                    "guard": text,
                    "label": text,
                    "action": text,
                    "shadow": pa.bool_(),
                    "direction": text,
                    "score": pa.float64(),
                    "path": text,
                }
            )
        ),
    }
    return types[kind]
