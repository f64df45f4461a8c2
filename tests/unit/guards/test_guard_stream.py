"""A stream says the same as the complete text, however it is cut."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.contracts import Action, Direction, Finding, Segment
from tests.unit.guards.growth import assert_linear_async
from tests.unit.guards.guard_texts import BANNED, cuts, pieces, texts
from validation.guards import GuardContext, GuardEngine, default_policy, parse_policy

CONTEXT = GuardContext(request_id="r-1")


class NoVowels:
    """A packaged guard's stand-in on the far side: finds every 'zz', judging what it is sent."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def check(self, guard: str, policy_digest: str, segment: Segment) -> list[Finding]:
        self.seen.append(segment.text)
        await asyncio.sleep(0)
        return [
            Finding(guard=guard, label="ZZ", score=1, start=i, end=i + 2, action=Action.FLAG)
            for i in range(len(segment.text) - 1)
            if segment.text[i : i + 2] == "zz"
        ]


def engine(
    action: str = "redact", packaged: str | None = None, stream: str = "hold", **more: object
) -> GuardEngine:
    guards = [
        {"name": "pii", "kind": "pii", "on": "both", "action": "redact"},
        {"name": "secrets", "kind": "secrets", "on": "both", "action": action},
        {"name": "words", "kind": "ban_list", "on": "both", "action": action, "words": list(BANNED)},
        {
            "name": "shadow",
            "kind": "pii",
            "on": "both",
            "action": "block",
            "mode": "shadow",
            "entities": ["IP_ADDRESS"],
        },
    ]
    if packaged:
        spec = {"name": "zz", "kind": "guardrails", "on": "both", "action": "redact", "validator": "a.b:C"}
        guards.append({**spec, "unit": packaged, "timeout_s": 300})
    guards += more.get("guards", [])  # type: ignore[arg-type]
    policy = parse_policy({"name": "test", "version": 1, "stream": stream, "guards": guards})
    return GuardEngine(policy, remote=NoVowels())


ENGINES = {
    "redact": engine(),
    "block": engine("block"),
    "flag": engine("flag"),
    "default": GuardEngine(default_policy()),
    "sentence": engine(packaged="sentence"),
    "text": engine(packaged="text"),
    "injection": engine(guards=[{"name": "i", "kind": "injection", "on": "both", "action": "block"}]),
    "end": engine("block", stream="end"),
    "end of one": engine(guards=[{"name": "e", "kind": "pii", "on": "output", "stream": "end"}]),
    "length": engine(guards=[{"name": "l", "kind": "length", "on": "both", "max_characters": 60}]),
}


async def run(
    judge: GuardEngine, chunks: list[str], role: str = "assistant", context: GuardContext = CONTEXT
) -> tuple[str, bool, list[Finding]]:
    stream = judge.stream(context, role=role, path="p")
    out = [await stream.feed(chunk) for chunk in chunks]
    out.append(await stream.flush())
    return "".join(out), stream.blocked, sorted(stream.findings, key=repr)


async def same(
    judge: GuardEngine,
    text: str,
    chunks: list[str],
    role: str = "assistant",
    context: GuardContext = CONTEXT,
) -> None:
    assert "".join(chunks) == text
    whole = await judge.judge(Segment(text=text, direction=Direction.OUTPUT, role=role, path="p"), context)
    released, blocked, findings = await run(judge, chunks, role, context)
    assert blocked == whole.blocked
    if not blocked:
        assert released == whole.text
        assert findings == sorted(whole.findings, key=repr)
        return
    # What went out before the block is the beginning of the text before it, redacted as ever.
    first = min(f.start for f in whole.findings if f.action is Action.BLOCK and not f.shadow)
    before = await judge.judge(Segment(text=text, direction=Direction.OUTPUT, role=role), context)
    assert before.text == ""
    spans = [f for f in whole.findings if f.action is Action.REDACT and not f.shadow]
    mask = _mask(text, spans, first)
    assert mask.startswith(released)
    assert {repr(f) for f in findings} <= {repr(f) for f in whole.findings}


def _mask(text: str, findings: list[Finding], stop: int) -> str:
    """The redacted text up to ``stop``, by the slow way: one cluster of overlapping spans at a time."""
    out, position = [], 0
    ordered = sorted(findings, key=lambda f: (f.start, -f.end))
    while ordered:
        cluster = [ordered.pop(0)]
        end = cluster[0].end
        while ordered and ordered[0].start < end:
            cluster.append(ordered.pop(0))
            end = max(end, cluster[-1].end)
        if cluster[0].start >= stop:
            break
        label = max(cluster, key=lambda f: f.end - f.start).label
        out += [text[position : cluster[0].start], f"[{label}]"]
        position = end
    return "".join(out) + text[position:stop]


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=250, deadline=None)
@given(text=texts, how=cuts)
def test_any_cut_gives_the_verdict_of_the_complete_text(name: str, text: str, how: int | list[int]) -> None:
    asyncio.run(same(ENGINES[name], text, pieces(text, how)))


@pytest.mark.parametrize("packaged", [None, "sentence", "text"])
@settings(max_examples=60, deadline=None)
@given(text=texts, how=cuts)
def test_stream_first_ends_at_what_it_can_no_longer_redact(
    packaged: str | None, text: str, how: int | list[int]
) -> None:
    asyncio.run(first_then_judged(engine("redact", packaged, "stream_first"), text, pieces(text, how)))


async def first_then_judged(judge: GuardEngine, text: str, chunks: list[str]) -> None:
    whole = await judge.judge(Segment(text=text, direction=Direction.OUTPUT, path="p"), CONTEXT)
    released, blocked, findings = await run(judge, chunks)
    if blocked:
        assert whole.action is Action.REDACT
        assert {repr(f) for f in findings} <= {repr(f) for f in whole.findings}
    else:
        assert released == whole.text
        assert findings == sorted(whole.findings, key=repr)
    held, _, _ = await run_held(judge, chunks)
    assert held == whole.text, "who does not stream gets nothing unchecked"


async def run_held(judge: GuardEngine, chunks: list[str]) -> tuple[str, bool, list[Finding]]:
    stream = judge.stream(CONTEXT, path="p", at_once=False)
    out = "".join([await stream.feed(chunk) for chunk in chunks] + [await stream.flush()])
    return out, stream.blocked, stream.findings


async def test_stream_first_lets_every_piece_go_at_once_and_cuts_off_at_a_finding() -> None:
    stream = engine(stream="stream_first", packaged="sentence").stream(CONTEXT)
    for piece in ("Write to ", "joe@exam", "ple.com"):
        assert await stream.feed(piece) == piece
    assert await stream.feed(" or") == ""
    assert stream.blocked
    stream = engine(stream="stream_first", packaged="sentence").stream(CONTEXT)
    assert await stream.feed("A zz. ") == "A zz. ", "a packaged guard judges beside it"
    assert await stream.feed("B") == "B"
    for _ in range(100):  # The guard needs a few turns of the loop.
        await asyncio.sleep(0)
    assert await stream.feed("C") == ""
    assert stream.blocked


async def test_in_mode_end_nothing_leaves_before_all_is_judged() -> None:
    stream = engine("block", stream="end").stream(CONTEXT)
    assert [await stream.feed(piece) for piece in ("Plain ", "words. ", "joe@example.com. ")] == [""] * 3
    assert await stream.flush() == "Plain words. [EMAIL_ADDRESS]. "


@settings(max_examples=60, deadline=None)
@given(words=st.lists(texts, max_size=4), how=cuts)
def test_tool_call_arguments_are_judged_alike_however_they_are_cut(
    words: list[str], how: int | list[int]
) -> None:
    text = json.dumps({"words": words, "number": 4111111111111111, "to": "joe@example.com"})
    for arguments in (text, text.replace("@", r"\u0040")):
        asyncio.run(same(ENGINES["redact"], arguments, pieces(arguments, how), role="tool_call"))


@pytest.mark.parametrize("escape", ["@", r"\u0040"])
@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_tool_call_arguments_stay_json_and_are_judged_through_their_escapes(
    escape: str, size: int
) -> None:
    note = 'say "hi" to \\ 4111111111111111'
    values = {
        "number": 4111111111111111,
        "small": 12,
        "to": "joe@example.com",
        "note": note,
        "list": [4155550132],
    }
    arguments = json.dumps(values).replace("@", escape)
    released, blocked, findings = await run(ENGINES["redact"], pieces(arguments, size), role="tool_call")
    assert not blocked
    assert json.loads(released) == {
        "number": "[CREDIT_CARD]",
        "small": 12,
        "to": "[EMAIL_ADDRESS]",
        "note": 'say "hi" to \\ [CREDIT_CARD]',
        "list": [4155550132],
    }
    assert len(findings) == 3


async def test_plain_words_are_held_back_for_one_token_only() -> None:
    stream = GuardEngine(default_policy()).stream(CONTEXT)
    tokens = ["The", " answer", " to", " your", " question", " is", " 42", " and", " not", " 41", "."]
    out = [await stream.feed(token) for token in tokens]
    assert "".join(out) == "The answer to your question is 42 and not "
    held = [sum(map(len, tokens[: i + 1])) - sum(map(len, out[: i + 1])) for i in range(len(tokens))]
    assert max(held) <= 8
    assert await stream.flush() == "41."


async def test_a_finding_at_the_very_end_is_caught_by_flush() -> None:
    stream = GuardEngine(default_policy()).stream(CONTEXT)
    assert await stream.feed("Write to joe@example.com") == "Write to "
    assert await stream.flush() == "[EMAIL_ADDRESS]"
    assert [finding.label for finding in stream.findings] == ["EMAIL_ADDRESS"]
    assert await stream.flush() == ""
    with pytest.raises(RuntimeError, match="after flush"):
        await stream.feed("more")


async def test_nothing_follows_a_blocking_finding() -> None:
    stream = ENGINES["block"].stream(CONTEXT)
    assert await stream.feed("Here is the key: ") == "Here is the key: "
    assert await stream.feed("AKIAIOSFODNN7EXAMPLE") == ""
    assert not stream.blocked
    assert await stream.feed(" and more") == ""
    assert stream.blocked
    assert await stream.feed("more") == await stream.flush() == ""


async def test_a_key_block_is_held_back_until_its_end_however_long() -> None:
    key = (
        "-----BEGIN PRIVATE KEY-----\n"
        + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n" * 100
        + "-----END PRIVATE KEY-----"
    )
    for chunks in (pieces(f"a {key} b", 7), pieces(f"a {key[:-30]} b", 7)):
        released, blocked, findings = await run(GuardEngine(default_policy()), chunks)
        assert not blocked
        assert "MII" not in released
        assert [finding.label for finding in findings] == ["PRIVATE_KEY"]


@pytest.mark.parametrize(
    "unit", ["x", "1 ", "eyJ", "sk-", "a.", "-----BEGIN PRIVATE KEY-----\n", "🙂", "\u200b"]
)
async def test_the_cost_of_a_piece_does_not_grow_with_the_answer(unit: str) -> None:
    """Of a long answer without a word's end."""

    async def streamed(size: int) -> None:
        stream = GuardEngine(default_policy()).stream(CONTEXT)
        for piece in pieces(unit * (size // len(unit)), 16):
            await stream.feed(piece)
        await stream.flush()

    await assert_linear_async(streamed, 200_000)


async def test_a_packaged_guard_sees_sentences_and_every_character_once() -> None:
    judge = engine(packaged="sentence")
    remote = judge.remote
    assert isinstance(remote, NoVowels)
    text = "One zz. Two!\nThree zz " + "x" * 1500 + " end"
    await run(judge, pieces(text, 3))
    assert "".join(remote.seen).replace("\n", "") == text.replace("\n", "")
    assert remote.seen[0] == "One zz."
    assert max(map(len, remote.seen)) <= 1000
