"""The traffic record for monitoring: a sample of requests in the table ``traffic``.

It tells what monitoring compares over time (sizes, tokens, latencies, how answers ended, findings) and needs
no text for it; texts come along only where the policy's ``record_text`` lets them. Which requests are in the
sample follows from their ids alone, so that feedback and other records of a sampled request can be, too.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from cluster.records import line
from deployments.gateway.audit import common, findings, keeps_text, prompt_of, texts
from deployments.gateway.record import RequestRecord
from deployments.gateway.sink import RecordSink

#: Code points of a text whose letters are counted.
_COUNTED = 10_000


class Traffic:
    """An observer that writes the traffic record of requests that reached an engine.

    :param share: of the requests, 0 to 1.
    """

    def __init__(self, sink: RecordSink, share: float, max_text_characters: int) -> None:
        self._sink, self._share, self._longest = sink, share, max_text_characters

    def samples(self, record: RequestRecord) -> bool:
        """Whether this request is in the sample."""
        return zlib.crc32(record.request_id.encode()) < self._share * 2**32

    def keeps_answer(self, record: RequestRecord) -> bool:
        """Whether a stream's answer is worth putting together: for the sample, or for a policy's records."""
        return self.samples(record) or keeps_text(record)

    def ended(self, record: RequestRecord) -> None:
        """Put the request's row if it is in the sample."""
        if record.sent_s is None or not self.samples(record):
            return
        row = common(record) | _features(record) | texts(record, self._longest)
        row["findings"] = findings(record.findings)
        self._sink.put("traffic", line("traffic", row))


def _features(record: RequestRecord) -> dict[str, Any]:
    judged = record.judged or {}
    prompt = prompt_of(judged)
    choices = record.released.choices() if record.released else []
    answers = [choice.get("message", choice.get("text")) for choice in choices]
    asked, said = list(_texts(prompt)), list(_texts(answers))
    return {
        "messages": len(prompt) if isinstance(prompt, list) else 1,
        "tools": len(judged.get("tools") or ()),
        "prompt_characters": sum(map(len, asked)),
        "answer_characters": sum(map(len, said)),
        "prompt_letters": _letters(asked),
        "answer_letters": _letters(said),
        "tool_calls": sum(len(one.get("tool_calls") or ()) for one in answers if isinstance(one, dict)),
        "finish_reasons": [choice["finish_reason"] or "" for choice in choices],
    }


def _texts(content: Any) -> Iterator[str]:
    """What is said: contents, arguments and the like; not roles, ids and types."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for item in content:
            yield from _texts(item)
    elif isinstance(content, dict):
        for name, value in content.items():
            if name not in ("role", "id", "type", "tool_call_id", "index"):
                yield from _texts(value)


def _letters(found: list[str]) -> float | None:
    text = "".join(part[:_COUNTED] for part in found)[:_COUNTED]
    return sum(map(str.isalpha, text)) / len(text) if text else None
