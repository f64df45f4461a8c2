"""Training examples as OpenAI's API takes them, as the conversations that a model here learns from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.errors import RefusedError

#: Of one example: it becomes as many conversations, and together they grow with the square of it.
_MOST_ANSWERS = 256


def conversations(example: Mapping[str, Any]) -> Iterator[list[dict[str, str]]]:
    """One conversation for each answer that counts, which ends with it; only that answer is learned.

    :param example: one line of a file with purpose ``fine-tune``.

    Raises RefusedError for what training here cannot use: preferences, tools, pictures, and examples with
    more than 256 answers, each of which is learned with all that stands before it.
    """
    if "messages" not in example:
        raise RefusedError("it is a preference, and supervised tuning learns from 'messages'.")
    _refuse_tools(example)
    said, answers = list[dict[str, str]](), 0
    for message in example["messages"]:
        said.append({"role": message["role"], "content": _text(message)})
        if message["role"] == "assistant" and message.get("weight") != 0 and len(said) > 1:
            answers += 1
            if answers > _MOST_ANSWERS:
                raise RefusedError(
                    f"it has more than {_MOST_ANSWERS} answers to learn: cut it, or give some weight 0."
                )
            yield list(said)


def preference(example: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
    """The messages of ``prompt``, ``chosen`` and ``rejected``.

    :param example: one line of a file with purpose ``fine-tune``.

    Raises RefusedError for what training here cannot use: conversations, tools, pictures, and answers of more
    than one message.
    """
    if "preferred_output" not in example:
        raise RefusedError(
            "it is no preference, and method 'dpo' learns from 'input', 'preferred_output' and "
            "'non_preferred_output'."
        )
    _refuse_tools(example["input"])
    parts = {
        "prompt": example["input"]["messages"],
        "chosen": example["preferred_output"],
        "rejected": example["non_preferred_output"],
    }
    if len(parts["chosen"]) > 1 or len(parts["rejected"]) > 1:
        raise RefusedError("an output has more than one message: tuning here learns one answer.")
    return {
        name: [{"role": message["role"], "content": _text(message)} for message in messages]
        for name, messages in parts.items()
    }


def learned(example: Mapping[str, Any], method: str) -> Iterator[list[dict[str, str]]]:
    """Every conversation that ``method``, supervised or dpo, reads of an example. Raises RefusedError."""
    if method != "dpo":
        yield from conversations(example)
        return
    found = preference(example)
    yield from (found["prompt"] + found[answer] for answer in ("chosen", "rejected"))


def _refuse_tools(example: Mapping[str, Any]) -> None:
    if example.get("tools"):
        raise RefusedError("it has tools, which tuning here does not learn.")


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if not message.get("tool_calls"):
        if isinstance(content, str):
            return content
        if isinstance(content, list) and all(part.get("type") == "text" for part in content):
            return "".join(part["text"] for part in content)
    raise RefusedError(f"a message of the {message['role']} is no text, and tuning here learns texts.")
