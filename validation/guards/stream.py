"""Judge a text while it streams.

What a finding could still span is held back; all else goes out at once, and what went out is final.
However the stream is cut, what is released in all equals what :meth:`GuardEngine.judge` makes of the
complete text; if that would be blocked, so is the stream, and nothing from the blocking finding's first
character on has been released.

So it is with guards in mode ``hold``. What a guard in mode ``stream_first`` judges leaves at once; at a
finding of which something has left already, the stream is blocked. With one in mode ``end``, all is held
until the end.

What a guard costs in latency: our patterns hold back at most the last word, or a number that goes on
(:data:`~validation.guards.scan.Scanner.undecided`), unless the text looks like the beginning of a finding;
``injection`` its longest phrase; a packaged validator its unit, a sentence or the whole text. The work per
piece depends on what is held back, never on the length of the answer so far.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from cluster.contracts import Action, Direction, Finding, Segment
from validation.guards.normalise import Normaliser, View
from validation.guards.redact import Redactor, Span, merge
from validation.guards.scan import Cursor, Hit, Window
from validation.guards.specs import GuardSpec
from validation.guards.units import UnitCursor

if TYPE_CHECKING:
    from validation.guards.engine import GuardContext, GuardEngine, UnitSpec


class GuardStream:
    """The state of one choice's text, or of one tool call's arguments. Not for concurrent use."""

    def __init__(
        self, engine: GuardEngine, context: GuardContext, *, role: str, path: str, at_once: bool
    ) -> None:
        """Begin a stream. Use :meth:`GuardEngine.stream`."""
        json = role == "tool_call"
        self.findings: list[Finding] = []
        self.blocked = False
        self._engine = engine
        self._context = context
        self._like = Segment(text="", direction=Direction.OUTPUT, role=role, path=path)
        self._times = context.times.output
        modes = {spec.name: engine.policy.stream_of(spec) for spec in engine.policy.guards}
        self._late = {name for name, mode in modes.items() if at_once and mode == "stream_first"}
        self._inline: list[tuple[GuardSpec, Cursor]] = [
            (slot.spec, slot.cursor(context))
            for slot in engine.inline
            if slot.spec.covers(Direction.OUTPUT, role)
        ]
        packaged = [spec for spec in engine.packaged if spec.covers(Direction.OUTPUT, role)]
        self._by_sentence = [(spec, UnitCursor()) for spec in packaged if spec.unit == "sentence"]
        self._by_text = [spec for spec in packaged if spec.unit == "text"]
        covering = [*(spec for spec, _ in self._inline), *packaged]
        self._to_the_end = any(spec.name not in self._late for spec in self._by_text) or any(
            modes[spec.name] == "end" for spec in covering
        )
        self._nothing_waits = all(spec.name in self._late for spec in covering)
        self._normaliser = Normaliser(json_escapes=json)
        self._redactor = Redactor(json=json)
        self._window = Window()
        self._blank = True
        #: What has not left yet.
        self._held = _Held()
        #: What packaged guards have not judged yet though it may have left.
        self._unjudged = _Held() if any(spec.name in self._late for spec in packaged) else None
        self._judging: list[asyncio.Task[list[Finding]]] = []
        self._spans: list[Span] = []
        self._flushed = False

    async def feed(self, text: str) -> str:
        """Take the next piece; returns what may go out now, which may be nothing."""
        if self.blocked or not text:
            return ""
        if self._flushed:
            raise RuntimeError("feed() after flush(): a stream judges one text")
        self._held.add(text)
        if self._unjudged is not None:
            self._unjudged.add(text)
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
        done = free = window.end
        began = perf_counter()
        for index in range(len(self._inline) - 1, -1, -1):
            name = self._inline[index][0].name
            judged = self._advance(index, window, final)
            self._times[name] += (now := perf_counter()) - began
            began = now
            done = min(done, judged)
            free = free if name in self._late else min(free, judged)
        if self._by_sentence:
            for name, judged in await self._judge_sentences(window, final):
                done = min(done, judged)
                free = free if name in self._late else min(free, judged)
        if self._by_text and final and not self._blank:
            await self._judge_text()
        if self._judging:
            await self._judged(final)
        if self.blocked:
            self._forget()
            return ""
        released = ""
        if final or not self._to_the_end:
            everything = final or self._nothing_waits
            released = self._release(self._held.end if everything else window.original(free))
        if self._unjudged is not None and not any(spec.name in self._late for spec in self._by_text):
            self._unjudged.take(window.original(done))
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

    async def _judge_sentences(self, window: Window, final: bool) -> list[tuple[str, int]]:
        """Judge the sentences that became complete; for each guard, the view position that it has read to."""
        work = []
        for spec, cursor in self._by_sentence:
            units = cursor.advance(window, final)
            if not units:
                continue
            late = spec.name in self._late
            text = self._unjudged if late and self._unjudged is not None else self._held
            judging = self._judge_units(spec, [(start, text.part(start, end)) for start, end in units])
            if late:
                self._judging.append(asyncio.ensure_future(judging))
            else:
                work.append(judging)
        for found in await asyncio.gather(*work):
            self._take(found)
        return [(spec.name, cursor.done) for spec, cursor in self._by_sentence]

    async def _judge_text(self) -> None:
        work = []
        for spec in self._by_text:
            text = self._unjudged if spec.name in self._late and self._unjudged is not None else self._held
            work.append(self._judge_units(spec, [(0, text.part(0, text.end))]))
        for found in await asyncio.gather(*work):
            self._take(found)

    async def _judge_units(self, spec: UnitSpec, units: list[tuple[int, str]]) -> list[Finding]:
        return await self._engine.check_units(spec, units, self._like, self._context)

    async def _judged(self, final: bool) -> None:
        """Take in what was found beside the stream; at its end all of it."""
        if final:
            await asyncio.gather(*self._judging)
        for task in [task for task in self._judging if task.done()]:
            self._judging.remove(task)
            self._take(task.result())

    def _finding(self, spec: GuardSpec, hit: Hit) -> Finding:
        return self._engine.finding(spec, hit, self._like.path)

    def _fail(self, spec: GuardSpec, error: Exception) -> None:
        where = Hit("GUARD_ERROR", 1.0, self._held.start, self._window.size)
        self._take([self._engine.failure(spec, error, where, self._like.path, self._context)])

    def _take(self, findings: list[Finding]) -> None:
        self.findings.extend(findings)
        for item in findings:
            if item.shadow:
                continue
            if item.action is Action.BLOCK:
                self.blocked = True
            elif item.action is Action.REDACT:
                # What has left cannot be redacted any more: only the rest can be kept.
                self.blocked = self.blocked or item.start < self._held.start
                self._spans.append(Span(item.start, item.end, item.label))

    def _release(self, frontier: int) -> str:
        """Let go of everything before code point ``frontier`` that no redaction still reaches over."""
        spans: list[Span] = []
        if self._spans:
            merged = merge(self._spans)
            spans = [span for span in merged if span.end <= frontier]
            if len(spans) < len(merged):
                frontier = min(frontier, merged[len(spans)].start)
            if spans:
                # Kept as they came, not merged: the longest of them will give the label.
                self._spans = [span for span in self._spans if span.start >= spans[-1].end]
        start = self._held.start
        return self._redactor.write(self._held.take(frontier), start, spans) if frontier > start else ""

    def _forget(self) -> None:
        self._held.take(self._held.end)
        for task in self._judging:
            task.cancel()
        self._judging.clear()


class _Held:
    """The end of a text, from code point ``start`` to ``end``."""

    __slots__ = ("_pieces", "end", "start")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.start = self.end = 0

    def add(self, text: str) -> None:
        """Append what came."""
        self._pieces.append(text)
        self.end += len(text)

    def part(self, start: int, end: int) -> str:
        """The text between two code points that are held."""
        return self._joined()[start - self.start : end - self.start]

    def take(self, end: int) -> str:
        """Take everything before code point ``end`` away."""
        if end <= self.start:
            return ""
        text = self._joined()
        cut = end - self.start
        self._pieces = [text[cut:]] if cut < len(text) else []
        self.start = end
        return text[:cut]

    def _joined(self) -> str:
        if len(self._pieces) != 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0]
