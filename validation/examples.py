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
    if example.get("tools"):
        raise RefusedError("it has tools, which tuning here does not learn.")
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


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if not message.get("tool_calls"):
        if isinstance(content, str):
            return content
        if isinstance(content, list) and all(part.get("type") == "text" for part in content):
            return "".join(part["text"] for part in content)
    raise RefusedError(f"a message of the {message['role']} is no text, and tuning here learns texts.")
