"""Charts as inline SVG: no script, and the page's own colours, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

_WIDTH = 720


def wilson(hits: int, rows: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share, by Wilson; (0, 1) for no rows."""
    if rows == 0:
        return 0.0, 1.0
    share, spread = hits / rows, z * z / rows
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / rows + spread / (4 * rows)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def line_chart(points: Sequence[tuple[float, float]], x_label: str, y_label: str) -> Markup:
    """A line through ``points`` (x, y), with its running mean on top; y starts at 0."""
    if not points:
        return Markup("")
    left, right, top, bottom, height = 48, 12, 30, 40, 270
    x_low, x_high = points[0][0], max(points[-1][0], points[0][0] + 1)
    y_high = _nice(max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (_WIDTH - left - right)
        return left + across, height - bottom - y / y_high * (height - top - bottom)

    def path(line: Sequence[tuple[float, float]]) -> str:
        return "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))

    parts = [_open(height, f"{y_label} by {x_label}, from {points[0][1]:.3g} to {points[-1][1]:.3g}")]
    for index in range(5):
        value = y_high * index / 4
        _, y = place(x_low, value)
        parts.append(f'<line class="grid" x1="{left}" x2="{_WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in _ticks(x_low, x_high):
        x, _ = place(value, 0)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{value:g}</text>'
        )
    parts.append(
        f'<path class="line faint" d="{path(points)}"/><path class="line" d="{path(_smooth(points))}"/>'
    )
    middle = left + (_WIDTH - left - right) / 2
    parts.append(
        f'<text class="tick" x="{middle:.0f}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(f'<text class="tick" x="{left}" y="{top - 14}">{escape(y_label)}</text></svg>')
    return Markup("".join(parts))  # noqa: S704 - numbers, and labels escaped above


def share_bars(bars: Sequence[tuple[str, int, int, str]]) -> Markup:
    """One bar a row, 0 to 100 %, with its 95 % interval: (label, hits, rows, css class)."""
    left, right, step, top = 190.0, 150.0, 34, 6
    height, span = top + step * len(bars) + 22, _WIDTH - left - right
    parts = [_open(height, "; ".join(f"{label}: {hits} of {rows}" for label, hits, rows, _ in bars))]
    for percent in (0, 25, 50, 75, 100):
        x = left + span * percent / 100
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{height - 20}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{height - 5}" text-anchor="middle">{percent} %</text>')
    for index, (label, hits, rows, style) in enumerate(bars):
        y, share = top + step * index + 5, hits / rows if rows else 0.0
        low, high = (left + span * edge for edge in wilson(hits, rows))
        parts.append(
            f'<text class="label" x="{left - 12}" y="{y + 15}" text-anchor="end">{escape(label)}</text>'
        )
        parts.append(_bar(style, left, y, max(span * share, 1), 20))
        ends = f"M{low:.1f},{y + 5} v10 M{high:.1f},{y + 5} v10"
        parts.append(f'<path class="whisker" d="M{low:.1f},{y + 10} H{high:.1f} {ends}"/>')
        parts.append(
            f'<text class="value" x="{left + span + 14}" y="{y + 15}">{share:.1%} ({hits}/{rows})</text>'
        )
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704


def time_bars(bars: Sequence[tuple[str, float, str]]) -> Markup:
    """Steps after one another on one axis of time: (label, seconds, css class)."""
    left, right, step, top = 190.0, 110.0, 26, 6
    height, span = top + step * len(bars) + 6, _WIDTH - left - right
    total, start = sum(seconds for _, seconds, _ in bars) or 1.0, 0.0
    parts = [_open(height, "; ".join(f"{label}: {clock(seconds)}" for label, seconds, _ in bars))]
    for index, (label, seconds, style) in enumerate(bars):
        y, x, width = top + step * index, left + span * start / total, max(span * seconds / total, 2)
        parts.append(
            f'<text class="label" x="{left - 12}" y="{y + 15}" text-anchor="end">{escape(label)}</text>'
        )
        parts.append(_bar(style, x, y + 3, width, 16))
        parts.append(f'<text class="value" x="{left + span + 14}" y="{y + 15}">{clock(seconds)}</text>')
        start += seconds
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704


def clock(seconds: float) -> str:
    """Seconds for readers: 3.2 s, 47 s, 2 min 05 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _bar(style: str, x: float, y: float, width: float, height: float) -> str:
    size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:g}"'
    return f'<rect class="bar {escape(style)}" {size} rx="3"/>'


def _open(height: float, description: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(description)}">'


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    width = max(1, len(points) // 12)
    means = []
    for index, (x, _) in enumerate(points):
        window = points[max(0, index - width) : index + width + 1]
        means.append((x, sum(y for _, y in window) / len(window)))
    return means


def _nice(value: float) -> float:
    """The next round number up whose quarters are round as well."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10 ** math.floor(math.log10(value))
    return float(
        next(factor * power for factor in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if factor * power >= value)
    )


def _ticks(low: float, high: float) -> list[float]:
    step = max(1, round((high - low) / 8))
    return [low + step * index for index in range(int((high - low) / step) + 1)]
