"""Charts as inline SVG without a library: no script, no download, colours from the page's style sheet."""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT = 440, 240  # small enough that text stays readable when a phone scales the chart down
LEFT, RIGHT, TOP, BOTTOM = 58, 22, 12, 34
POINTS = 300  # of a curve; more would be invisible
TICKS = 5
COLOURS = 4  # of the style sheet

Point = tuple[float, float]


def line_chart(
    series: Mapping[str, Sequence[Point]], *, x_label: str, y_label: str, dots: bool = False, zero: bool = False
) -> str:
    """Curves over a common x axis, as an `<svg>` element; "" if there is no point.

    Args:
        series: points (x, y) by name, in order of x. From the fifth on the colours are used again, dashed.
        dots: mark the points. zero: the y axis begins at or below 0.
    """
    series = {name: thin([p for p in points if isfinite(p[1])]) for name, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points] + [0.0] * zero
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-12)
    y_low, y_high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def place(point: Point) -> Point:
        x = LEFT + (point[0] - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [_y_axis(tick, place((x_low, tick))[1]) for tick in y_ticks]
    parts += [_x_axis(tick, place((tick, y_low))[0]) for tick in x_ticks if x_low <= tick <= x_high]
    parts.append(f'<text class="label" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_label)}</text>')
    for i, (name, points) in enumerate(series.items()):
        placed = [place(point) for point in points]
        path = " ".join(f"{x:g},{y:g}" for x, y in placed)
        parts.append(f'<polyline class="{_style(i)}" points="{path}"><title>{escape(name)}</title></polyline>')
        if dots or len(points) == 1:
            parts += [f'<circle class="{_style(i)}" cx="{x:g}" cy="{y:g}" r="3"/>' for x, y in placed]
    return _svg(HEIGHT, f"{y_label} over {x_label}", parts) + _legend(list(series))


def bar_chart(values: Mapping[str, float], *, label: str) -> str:
    """A horizontal bar per value, in the given order, as an `<svg>` element."""
    if not values:
        return ""
    row, text = 26, min(240, 14 + 7 * max(map(len, values)))
    most = max(max(values.values()), 0.0) or 1.0
    parts = []
    for i, (name, value) in enumerate(values.items()):
        y, width = TOP + i * row, max(0.0, value) / most * (WIDTH - text - 70)
        parts.append(f'<text x="{text - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect class="s0" x="{text}" y="{y + 3}" width="{width:.1f}" height="{row - 8}" rx="2"/>')
        parts.append(f'<text x="{text + width + 6:.1f}" y="{y + 15}">{number(value)}</text>')
    return _svg(TOP + row * len(values), label, parts)


def number(value: float) -> str:
    """A number for people: four significant digits, thousands separated."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def measured(value: float, error: float | None) -> str:
    """A value with its standard error: two significant digits of the error, and the value to the same decimals.

    Without an error, or with one that is 0 or no number: each as `number` writes it.
    """
    if error is None:
        return number(value)
    if not (isfinite(error) and error > 0):
        return f"{number(value)} ± {number(error)}"
    decimals = 1 - int(f"{error:.1e}".partition("e")[2])  # of the rounded error: 0.0996 is 0.10
    shown = (f"{round(x, decimals):,.{max(decimals, 0)}f}" for x in (value, error))
    return " ± ".join(shown)


def thin(points: Sequence[Point]) -> Sequence[Point]:
    """At most `POINTS` of the points at even distances, including the last one."""
    stride = ceil(len(points) / POINTS)
    return points[(len(points) - 1) % stride :: stride] if stride > 1 else points


def ticks(low: float, high: float) -> list[float]:
    """About `TICKS` round numbers that cover [low, high]."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / TICKS
    magnitude = 10.0 ** floor(log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _y_axis(value: float, y: float) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:g}" y2="{y:g}"/>'
    return line + f'<text x="{LEFT - 6}" y="{y + 4:g}" text-anchor="end">{number(value)}</text>'


def _x_axis(value: float, x: float) -> str:
    return f'<text x="{x:g}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(value)}</text>'


def _style(number: int) -> str:
    """The class of a line, from 0."""
    return f"s{number % COLOURS}" + " dashed" * (number >= COLOURS)


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    return head + "".join(parts) + "</svg>"


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    entries = (f'<span><i class="{_style(i)}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<div class="legend">{"".join(entries)}</div>'
