"""Two kinds of picture as inline SVG: lines over a linear axis, and one bar cut into shares.

No script and no network: colours are CSS variables of the page (`--series-1` …), so that dark mode and print are the
page's business, and every mark carries a <title>, which browsers show when pointed at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from recipes.cost.figures import short

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 40  # room for the axes' words
MOST_POINTS = 300  # of a line; more cannot be seen
SERIES = 6  # colours of the page


@dataclass(frozen=True)
class Line:
    """Points in the order of x. `marked` draws dots with a tooltip and a thicker line."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int  # index into the page's colours
    marked: bool = False


def line_chart(lines: Iterable[Line], x_label: str, y_label: str) -> Markup:
    """Lines in one picture; an empty string where there is nothing to draw."""
    lines = [Line(n.name, _thinned(n), n.colour, n.marked) for n in lines if n.points]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if not xs or min(xs) == max(xs):
        return Markup()
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])
    y_high = y_high if y_high > y_low else y_low + 1

    def px(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{py(tick) + 4:.1f}" text-anchor="end">{short(tick, 4)}</text>')
    for tick in x_ticks:
        parts.append(
            f'<text x="{px(tick):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{short(tick, 4)}</text>'
        )
    parts.append(f'<text class="label" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(x_label)}</text>')
    for line in lines:
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in line.points)
        kind = "marked" if line.marked else "thin"
        parts.append(f'<polyline class="{kind}" style="stroke:{colour(line.colour)}" points="{path}"/>')
        if line.marked:
            parts += [_dot(px(x), py(y), line, f"{short(x, 4)} {x_label}: {y:.3f}") for x, y in line.points]
    names = ", ".join(dict.fromkeys(line.name for line in lines))
    label = escape(f"{y_label} against {x_label}: {names}")
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>')


def share_bar(shares: Iterable[tuple[str, str, float]]) -> Markup:
    """One bar of (name, CSS class, share of 1) pieces, with a gap between neighbours."""
    x, height = 0.0, 26
    parts = []
    for name, css, share in shares:
        width = share * WIDTH
        if width >= 0.5:
            title = f"<title>{escape(name)}: {share:.1%}</title>"
            drawn = max(0.5, width - 2)
            parts.append(f'<rect class="{css}" x="{x:.1f}" y="0" width="{drawn:.1f}" height="{height}">{title}</rect>')
        x += width
    return Markup(
        f'<svg class="bar" viewBox="0 0 {WIDTH} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="shares of the billed time of all devices">{"".join(parts)}</svg>'
    )


def colour(index: int) -> str:
    """The page's colour of the line with this index, as CSS; after the last they begin again."""
    return f"var(--series-{index % SERIES + 1})"


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between low and high, about five; always at least one."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)] or [low]


def _thinned(line: Line) -> Sequence[tuple[float, float]]:
    """Means of neighbours, so that a long noisy line keeps its shape."""
    points = list(line.points)
    if line.marked or len(points) <= MOST_POINTS:
        return points
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(g[-1][0], sum(y for _, y in g) / len(g)) for g in groups]


def _dot(x: float, y: float, line: Line, text: str) -> str:
    title = escape(f"{line.name}, {text}")
    style = f"fill:{colour(line.colour)}"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" style="{style}"><title>{title}</title></circle>'
