"""Judge a text while it streams.

What a finding could still span is held back; all else goes out at once, and what went out is final.
However the stream is cut, what is released in all equals what :meth:`GuardEngine.judge` makes of the
complete text; if that would be blocked, so is the stream, and nothing from the blocking finding's first
character on has been released.

What a guard costs in latency: our patterns hold back at most the last word, or a number that goes on
(:data:`~validation.guards.scan.Scanner.undecided`), unless the text looks like the beginning of a finding;
``injection`` its longest phrase; a packaged validator its unit, a sentence or the whole text. The work per
piece depends on what is held back, never on the length of the answer so far.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cluster.contracts import Action, Direction, Finding, Segment
from validation.guards.normalise import Normaliser, View
from validation.guards.redact import Redactor, Span, merge
from validation.guards.scan import Cursor, Hit, Window
from validation.guards.specs import GuardSpec
from validation.guards.units import UnitCursor

if TYPE_CHECKING:
    from validation.guards.engine import GuardContext, GuardEngine


class GuardStream:
    """The state of one choice's text, or of one tool call's arguments. Not for concurrent use."""

    def __init__(self, engine: GuardEngine, context: GuardContext, *, role: str, path: str) -> None:
        """Begin a stream. Use :meth:`GuardEngine.stream`."""
        json = role == "tool_call"
        self.findings: list[Finding] = []
        self.blocked = False
        self._engine = engine
        self._context = context
        self._like = Segment(text="", direction=Direction.OUTPUT, role=role, path=path)
        self._inline: list[tuple[GuardSpec, Cursor]] = [
            (slot.spec, slot.cursor(context))
            for slot in engine.inline
            if slot.spec.covers(Direction.OUTPUT, role)
        ]
        packaged = [spec for spec in engine.packaged if spec.covers(Direction.OUTPUT, role)]
        self._by_sentence = [(spec, UnitCursor()) for spec in packaged if spec.unit == "sentence"]
        self._by_text = [spec for spec in packaged if spec.unit == "text"]
        self._normaliser = Normaliser(json_escapes=json)
        self._redactor = Redactor(json=json)
        self._window = Window()
        self._blank = True
        self._held: list[str] = []
        self._released = 0
        self._spans: list[Span] = []
        self._flushed = False

    async def feed(self, text: str) -> str:
        """Take the next piece; returns what may go out now, which may be nothing."""
        if self.blocked or not text:
            return ""
        if self._flushed:
            raise RuntimeError("feed() after flush(): a stream judges one text")
        self._held.append(text)
        self._read(self._normaliser.feed(text))
        return await self._step(final=False)

    async def flush(self) -> str:
        """The text is complete: judge its tail; returns the rest."""
        if self.blocked or self._flushed:
            return ""
        self._flushed = True
        self._read(self._normaliser.finish())
        return await self._step(final=True)

    def _read(self, view: View) -> None:
        self._window.extend(view)
        self._blank = self._blank and not view.text.strip()

    async def _step(self, final: bool) -> str:
        window = self._window
        done = window.end
        for index in range(len(self._inline) - 1, -1, -1):
            done = min(done, self._advance(index, window, final))
        if self._by_sentence:
            done = min(done, await self._judge_sentences(window, final))
        if self._by_text and final and not self._blank:
            await self._judge_text()
        if self.blocked:
            self._held.clear()
            return ""
        released = ""
        if final or not self._by_text:
            released = self._release(window.original(done), final)
        window.trim(done)
        return released

    def _advance(self, index: int, window: Window, final: bool) -> int:
        """One of our guards; returns the view position up to which it is done."""
        spec, cursor = self._inline[index]
        try:
            hits = cursor.advance(window, final)
            if hits:
                self._take([self._finding(spec, hit) for hit in hits if hit.score >= spec.threshold])
            return cursor.done
        except Exception as error:
            self._fail(spec, error)
            # on_error is open, or it only shadows: it has failed for the rest of this stream.
            del self._inline[index]
            return window.end

    async def _judge_sentences(self, window: Window, final: bool) -> int:
        """Judge the sentences that became complete; returns the view position up to which all are judged."""
        work = []
        for spec, cursor in self._by_sentence:
            units = cursor.advance(window, final)
            if units:
                held = self._join()
                texts = [(start, held[start - self._released : end - self._released]) for start, end in units]
                work.append(self._engine.check_units(spec, texts, self._like, self._context))
        for found in await asyncio.gather(*work):
            self._take(found)
        return min(cursor.done for _, cursor in self._by_sentence)

    async def _judge_text(self) -> None:
        text = [(0, self._join())]
        work = [self._engine.check_units(spec, text, self._like, self._context) for spec in self._by_text]
        for found in await asyncio.gather(*work):
            self._take(found)

    def _finding(self, spec: GuardSpec, hit: Hit) -> Finding:
        return self._engine.finding(spec, hit, self._like.path)

    def _fail(self, spec: GuardSpec, error: Exception) -> None:
        where = Hit("GUARD_ERROR", 1.0, self._released, self._window.size)
        self._take([self._engine.failure(spec, error, where, self._like.path, self._context)])

    def _take(self, findings: list[Finding]) -> None:
        self.findings.extend(findings)
        for item in findings:
            if item.shadow:
                continue
            if item.action is Action.BLOCK:
                self.blocked = True
            elif item.action is Action.REDACT:
                self._spans.append(Span(item.start, item.end, item.label))

    def _join(self) -> str:
        if len(self._held) != 1:
            self._held = ["".join(self._held)]
        return self._held[0]

    def _release(self, frontier: int, final: bool) -> str:
        """Let go of everything before code point ``frontier`` that no redaction still reaches over."""
        held = ""
        if final:
            held = self._join()
            frontier = self._released + len(held)
        spans: list[Span] = []
        if self._spans:
            merged = merge(self._spans)
            spans = [span for span in merged if span.end <= frontier]
            if len(spans) < len(merged):
                frontier = min(frontier, merged[len(spans)].start)
            if spans:
                # Kept as they came, not merged: the longest of them will give the label.
                self._spans = [span for span in self._spans if span.start >= spans[-1].end]
        if frontier <= self._released:
            return ""
        held = held or self._join()
        cut = frontier - self._released
        text = self._redactor.write(held[:cut], self._released, spans)
        self._held = [held[cut:]] if cut < len(held) else []
        self._released = frontier
        return text
