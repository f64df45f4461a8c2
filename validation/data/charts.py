"""Charts of a card as inline SVG: no script, and the page's own colours, so they follow light and dark."""

from __future__ import annotations

from markupsafe import Markup, escape

from validation.data.profile import Histogram

_WIDTH, _HEIGHT = 340, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 8, 8, 22


def bar(start: float, end: float, style: str = "") -> Markup:
    """A bar from ``start`` to ``end``, shares of the width that it is given; it stretches with its cell."""
    left, width = start * 1000, max((end - start) * 1000, 2 if end > start else 0)
    rect = (
        f'<rect class="bar {escape(style)}" x="{min(left, 998):.1f}" y="3" width="{width:.1f}" height="14"/>'
    )
    return Markup(  # noqa: S704 - numbers, and a class escaped above
        f'<svg class="strip" viewBox="0 0 1000 20" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="rail" x="0" y="9.5" width="1000" height="1"/>{rect}</svg>'
    )


def histogram_chart(histogram: Histogram, reference: Histogram | None = None) -> Markup:
    """Shares by bin, with the reference's as a line on top; empty bins at both ends are left out."""
    counts = histogram.counts
    before = reference.counts if reference and reference.edges == histogram.edges else None
    used = [n for n, c in enumerate(counts) if c or (before and before[n])]
    if not used:
        return Markup("")
    first, last = used[0], used[-1]
    shares = _shares(counts, first, last)
    earlier = _shares(before, first, last) if before else None
    highest = max([*shares, *(earlier or [])]) or 1.0
    step = (_WIDTH - _LEFT - _RIGHT) / len(shares)
    floor, span = _HEIGHT - _BOTTOM, _HEIGHT - _TOP - _BOTTOM
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{histogram.values} values from '
        f'{histogram.minimum} to {histogram.maximum}">'
    ]
    for share in (0.0, highest):
        y = floor - share / highest * span
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{_percent(share)}</text>'
        )
    for place, share in enumerate(shares):
        height = share / highest * span
        corner = f'x="{_LEFT + place * step:.1f}" y="{floor - height:.1f}"'
        parts.append(f'<rect class="bar" {corner} width="{max(step - 1, 0.6):.1f}" height="{height:.1f}"/>')
    if earlier:
        points = [
            f"{_LEFT + (place + side) * step:.1f},{floor - share / highest * span:.1f}"
            for place, share in enumerate(earlier)
            for side in (0, 1)
        ]
        parts.append(f'<path class="before" d="M{" L".join(points)}"/>')
    for place, label in _ticks(histogram.edges, first, last):
        x = _LEFT + place * step
        anchor = "start" if x < 60 else "end" if x > _WIDTH - 40 else "middle"
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{label}</text>'
        )
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704 - numbers only


def _shares(counts: list[int], first: int, last: int) -> list[float]:
    total = sum(counts) or 1
    return [count / total for count in counts[first : last + 1]]


def _ticks(edges: list[float], first: int, last: int) -> list[tuple[int, str]]:
    """Up to five labels: place of a bin's left border, and the edge there. The open bins have no left one."""
    borders = [n for n in range(first, last + 2) if 1 <= n <= len(edges)]
    if not borders:
        return []
    every = max(1, -(-len(borders) // 5))
    return [(n - first, _number(edges[n - 1])) for n in borders[::every]]


def _number(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 or not share else f"{share:.1%}"
