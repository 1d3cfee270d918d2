"""A report as a table for a terminal, with a bar and a histogram for each series.

A metric's rows have one axis, from the least to the greatest value of all benchmarks, but for
values so far out (Tukey's outer fences) that the others would be one mark: an arrow is in their
place. A bar goes from a series' least value to its greatest, thick where the interval is, with a
mark at the median.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Sequence
from statistics import quantiles

from ..errors import printable
from .estimates import Estimate, by_metric, estimates
from .model import Report
from .remarks import notes, remarks
from .units import quantity

NAME_MAX = 28  # columns
BINS = 10
BAR_MIN, BAR_MAX = 10, 40
GAP = "  "
UNICODE = "─━┃◄► ▁▂▃▄▅▆▇█"
ASCII = "-=|<> .,:;+*%#"
"""Range, interval, median, farther left, farther right; then none, and eighths of the most."""


def show(report: Report, *, width: int | None = None, ascii_only: bool = False) -> str:
    """The table, and remarks on each benchmark's main metric; the last line without its end.

    ``width``: columns, the terminal's unless given; what does not fit into them, bars first, is
    left out.
    """
    found = estimates(report)
    if not found:
        return "no values"
    width = width or shutil.get_terminal_size().columns
    rows = [_heading(report)]
    pictures: list[tuple[str, str]] = [("RANGE", "VALUES")]
    groups = by_metric(found)
    many = len(report.benchmarks) > 1
    for group in groups:
        for n, each in enumerate(group):
            names = ["" if n else each.series.name, *([each.benchmark.name] if many else [])]
            rows.append([short(text, ascii_only) for text in (*names, *_numbers(each))])
    lines = _aligned(rows, left=2 if many else 1)
    room = width - _columns(lines[0]) - len(GAP)
    bar = min(room - len(GAP) - BINS, BAR_MAX)
    if bar >= BAR_MIN:
        glyphs = ASCII if ascii_only else UNICODE
        for group in groups:
            axis = _axis(group)
            pictures += [(_bar(e, axis, bar, glyphs), _histogram(e, axis, glyphs)) for e in group]
        lines = [
            f"{line}{GAP}{first.ljust(bar)}{GAP}{second}"
            for line, (first, second) in zip(lines, pictures, strict=True)
        ]
    lines = [line.rstrip() for line in lines]
    if not many:
        lines.insert(0, short(report.benchmarks[0].name, ascii_only, width))
    for benchmark in report.benchmarks:
        prefix = f"{short(benchmark.name, ascii_only)}: " if many else ""
        for remark in remarks(benchmark, report.confidence):
            lines.append(prefix + (_ascii(remark) if ascii_only else printable(remark)))
    lines += [_ascii(note) if ascii_only else printable(note) for note in notes(report)]
    return "\n".join(lines)


def _heading(report: Report) -> list[str]:
    names = ["METRIC", "BENCHMARK"] if len(report.benchmarks) > 1 else ["METRIC"]
    return [*names, "MEDIAN", f"{report.confidence * 100:.4g} %"]


def _numbers(each: Estimate) -> list[str]:
    return [quantity(each.median, each.unit), each.plus_minus()]


def _aligned(rows: list[list[str]], left: int) -> list[str]:
    """Columns of one width; the first ``left`` begin where the others end."""
    widths = [max(map(_columns, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for n, (cell, wide) in enumerate(zip(row, widths, strict=True)):
            space = " " * (wide - _columns(cell))
            cells.append(cell + space if n < left else space + cell)
        lines.append(GAP.join(cells))
    return lines


def _axis(group: Sequence[Estimate]) -> tuple[float, float]:
    near = [value for each in group for value in _near(each.values)]
    return min(near), max(near)


def _near(values: list[float]) -> list[float]:
    """Those within the outer fences: three interquartile ranges from the quartiles."""
    if len(values) < 4:
        return values
    q1, _, q3 = quantiles(values)
    reach = 3 * (q3 - q1)
    return [value for value in values if q1 - reach <= value <= q3 + reach] if reach else values


def _place(value: float, axis: tuple[float, float], cells: int) -> int:
    low, high = axis
    return max(0, min(int((value - low) / (high - low) * cells), cells - 1))


def _bar(each: Estimate, axis: tuple[float, float], width: int, glyphs: str) -> str:
    if axis[0] == axis[1]:
        return ""
    cells = [" "] * width
    ends = [(min(each.values), max(each.values), glyphs[0])]
    if each.interval:
        ends.append((each.interval.low, each.interval.high, glyphs[1]))
    for low, high, glyph in [*ends, (each.median, each.median, glyphs[2])]:
        begin, end = _place(low, axis, width), _place(high, axis, width) + 1
        cells[begin:end] = glyph * (end - begin)
    if min(each.values) < axis[0]:
        cells[0] = glyphs[3]
    if max(each.values) > axis[1]:
        cells[-1] = glyphs[4]
    return "".join(cells)


def _histogram(each: Estimate, axis: tuple[float, float], glyphs: str) -> str:
    if axis[0] == axis[1]:
        return ""
    counts = [0] * BINS
    for value in each.values:
        counts[_place(value, axis, BINS)] += 1
    levels = glyphs[5:]
    top = len(levels) - 1
    return "".join(levels[-(-count * top // max(counts))] for count in counts)


def short(name: str, ascii_only: bool = False, most: int = NAME_MAX) -> str:
    """Of a name, what fits: its begin and its end."""
    name = _ascii(name) if ascii_only else printable(name)
    if _columns(name) <= most:
        return name
    dots = "..." if ascii_only else "…"
    left, right = name[: most // 2], name[-(most // 2) :]
    while _columns(left + dots + right) > most:
        left, right = (left, right[1:]) if len(right) >= len(left) else (left[:-1], right)
    return left + dots + right


def _columns(text: str) -> int:
    """That a terminal needs for it (Unicode, annex 11)."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _ascii(text: str) -> str:
    signs = printable(text).translate({ord("±"): "+-", ord("µ"): "u"})
    return signs.encode("ascii", "backslashreplace").decode()
