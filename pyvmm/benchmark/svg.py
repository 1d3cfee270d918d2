"""Pictures of a metric for a web page: SVG by hand, coloured by the page's style sheet.

The classes ``c0`` to ``c5`` are the benchmarks' colours; everything else has the text's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from ..errors import printable
from .estimates import Estimate
from .units import quantity, scale

COLOURS = 6
WIDTH = 860
SIDE = 64  # room for the labels beside a picture
ROW = 52
DOTS_MAX = 400  # of a series; of more, as many, evenly taken


def text(words: str) -> str:
    """For a page, whatever it has."""
    return escape(printable(words))


def bar(each: Estimate, axis: tuple[float, float], width: int = 220) -> str:
    """A row of a table: range, interval and median on an axis."""
    low, high = axis
    if low == high:
        return ""
    middle = 9

    def x(value: float) -> str:
        return _n(4 + (width - 8) * (value - low) / (high - low))

    parts = [_line(x(min(each.values)), middle, x(max(each.values)), middle, "range")]
    if each.interval:
        ends = x(each.interval.low), x(each.interval.high)
        parts.append(_line(ends[0], middle, ends[1], middle, "interval"))
    parts.append(_line(x(each.median), 2, x(each.median), 16, "median"))
    return _svg(width, 18, parts)


def distributions(group: Sequence[Estimate]) -> str:
    """A row for each benchmark: every value a dot, the median with its interval."""
    low, high = _widened(group)
    height = ROW * len(group) + 34

    def x(value: float) -> float:
        return 8 + (WIDTH - 16) * (value - low) / (high - low)

    parts = [
        _line(_n(x(tick)), 0, _n(x(tick)), height - 26, "grid")
        + f'<text x="{_n(x(tick))}" y="{height - 10}" text-anchor="middle">{label}</text>'
        for tick, label in _ticks(low, high, group[0].unit)
    ]
    for row, each in enumerate(group):
        top = ROW * row
        middle = top + 36
        dots = [
            _dot(x(value), middle + 9 * ((n * 0.618) % 1 - 0.5), value, n, each)
            for n, value in _thinned(each.values)
        ]
        marks = ""
        if each.interval:
            ends = _n(x(each.interval.low)), _n(x(each.interval.high))
            marks = _line(ends[0], middle, ends[1], middle, "interval")
        marks += _line(_n(x(each.median)), middle - 11, _n(x(each.median)), middle + 11, "median")
        name = f'<text x="8" y="{top + 16}">{text(each.benchmark.name)}</text>'
        parts.append(f'<g class="c{row % COLOURS}">{name}{"".join(dots)}{marks}</g>')
    return _svg(WIDTH, height, parts)


def order(group: Sequence[Estimate]) -> str:
    """Values over the order in which they were taken: drift, modes and neighbours' noise."""
    low, high = _widened(group)
    height, right = 220, WIDTH - 8
    most = max(len(each.values) for each in group)

    def place(n: int, value: float) -> tuple[float, float]:
        y = height - 28 - (height - 36) * (value - low) / (high - low)
        return SIDE + 8 + (right - SIDE - 16) * n / max(1, most - 1), y

    parts = []
    for tick, label in _ticks(low, high, group[0].unit):
        y = place(0, tick)[1]
        parts.append(_line(SIDE, _n(y), right, _n(y), "grid"))
        parts.append(f'<text x="{SIDE - 6}" y="{_n(y + 4)}" text-anchor="end">{label}</text>')
    for n, label, anchor in ((0, "first", "start"), (most - 1, "last", "end"))[:most]:
        x = place(n, low)[0]
        parts.append(f'<text x="{_n(x)}" y="{height - 8}" text-anchor="{anchor}">{label}</text>')
    for row, each in enumerate(group):
        points = [(n, value, *place(n, value)) for n, value in _thinned(each.values)]
        path = " ".join(f"{_n(x)},{_n(y)}" for _, _, x, y in points)
        dots = "".join(_dot(x, y, value, n, each) for n, value, x, y in points)
        parts.append(f'<g class="c{row % COLOURS}"><polyline points="{path}"/>{dots}</g>')
    return _svg(WIDTH, height, parts)


def _thinned(values: Sequence[float]) -> Iterator[tuple[int, float]]:
    step = max(1, math.ceil(len(values) / DOTS_MAX))
    return ((n, values[n]) for n in range(0, len(values), step))


def _widened(group: Sequence[Estimate]) -> tuple[float, float]:
    """The values' range and a little more, never empty."""
    low = min(min(each.values) for each in group)
    high = max(max(each.values) for each in group)
    margin = (high - low) * 0.03 or abs(high) * 0.03 or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float, unit: str) -> Iterator[tuple[float, str]]:
    """About five round values in a range, with labels."""
    factor, name = scale(max(abs(low), abs(high)), unit)
    low, high = low * factor, high * factor
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(each for each in (5, 2, 1) if step * each <= (high - low) / 3)
    for n in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield n * step / factor, text(f"{float(f'{n * step:.10g}'):g} {name}".strip())


def _dot(x: float, y: float, value: float, n: int, each: Estimate) -> str:
    what = "run" if len(each.samples) > 1 else "value"
    title = text(f"{each.benchmark.name}, {what} {n + 1}: {quantity(value, each.unit)}")
    return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="3.5"><title>{title}</title></circle>'


def _line(x1: object, y1: object, x2: object, y2: object, kind: str) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{kind}"/>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">{"".join(parts)}</svg>'


def _n(value: float) -> str:
    return f"{value:.1f}"
