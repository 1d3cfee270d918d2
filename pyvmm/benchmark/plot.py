"""A report as a picture, by matplotlib: the main metrics' values, their order, the comparison."""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import BenchmarkError, HostError, PyvmmError, UsageError
from .bars import short
from .estimates import Estimate, by_metric, estimates, to_first
from .model import Report
from .units import scale

FORMATS = (".svg", ".png")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b14a85", "#9a6700", "#3d7ea6")

INTERVAL: Any = {"linewidth": 5, "alpha": 0.6, "solid_capstyle": "butt"}  # ends where it ends


def check(path: str | os.PathLike[str]) -> None:
    """That a picture can be drawn there: to be called before the benchmark is run.

    Raises UsageError for a file of another kind, HostError without matplotlib.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise UsageError(f"{os.fspath(path)}: not a kind of picture; give a .svg or .png")
    if find_spec("matplotlib") is None:
        raise HostError("pictures need matplotlib: pip install 'pyvmm[plot]'")


def plot(report: Report, path: str | os.PathLike[str]) -> None:
    """Draw it. Raises as ``check``; BenchmarkError for a report without values, PyvmmError."""
    check(path)
    mains = {each.main for each in report.benchmarks}
    groups = [each for each in by_metric(estimates(report)) if each[0].series.name in mains]
    if not groups:
        raise BenchmarkError("nothing to draw: the report has no values")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = 3 if any(len(group) > 1 for group in groups) else 2
    rows = max(len(group) for group in groups)
    # Names are text, also with a $ in them; the same report is the same file.
    settings: Any = {"text.parse_math": False, "svg.hashsalt": "pyvmm", "font.size": 9}
    with rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a glyph that the font lacks
        size = 4.5 * columns, max(3.0, 1.2 + 0.6 * rows) * len(groups)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(groups), columns, squeeze=False)
        for row, group in zip(axes, groups, strict=True):
            _distributions(row[0], group)
            _order(row[1], group)
            if columns == 3:
                _comparison(row[2], report, group)
        metadata = {"Date": None} if Path(path).suffix.lower() == ".svg" else None
        try:
            figure.savefig(path, dpi=150, metadata=metadata)
        except OSError as e:
            raise PyvmmError(f"{os.fspath(path)}: cannot be written: {e.strerror}") from None


def _distributions(axes: Any, group: list[Estimate]) -> None:
    """A row for each benchmark: every value, the median and its interval."""
    factor, unit = _scale(group)
    for row, each in enumerate(group):
        colour = COLOURS[row % len(COLOURS)]
        heights = [row + 0.3 * ((n * 0.618) % 1 - 0.5) for n in range(len(each.values))]
        axes.scatter([v * factor for v in each.values], heights, s=14, alpha=0.5, color=colour)
        if each.interval:
            ends = [each.interval.low * factor, each.interval.high * factor]
            axes.plot(ends, [row, row], color=colour, **INTERVAL)
        axes.plot([each.median * factor] * 2, [row - 0.28, row + 0.28], linewidth=2, color=colour)
    _rows(axes, [short(each.benchmark.name) for each in group])
    axes.set_title("values, median and its interval")
    axes.set_xlabel(_label(group, unit))


def _order(axes: Any, group: list[Estimate]) -> None:
    factor, unit = _scale(group)
    for row, each in enumerate(group):
        axes.plot(
            range(1, len(each.values) + 1), [v * factor for v in each.values],
            marker="o", markersize=3, linewidth=0.6, color=COLOURS[row % len(COLOURS)],
        )  # fmt: skip
    axes.set_title("in the order of the runs")
    axes.set_xlabel("run")
    axes.set_ylabel(_label(group, unit))
    axes.grid(alpha=0.3)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _comparison(axes: Any, report: Report, group: list[Estimate]) -> None:
    """The ratio of each benchmark to the first, with its interval."""
    axes.axvline(1, color="gray", linewidth=1)
    rows = {id(each): row for row, each in enumerate(group)}
    for each, ratio in to_first(report, group):
        row = rows[id(each)]
        colour = COLOURS[row % len(COLOURS)]
        if ratio.interval:
            ends = [ratio.interval.low, ratio.interval.high]
            axes.plot(ends, [row, row], color=colour, **INTERVAL)
        axes.plot(ratio.value, row, marker="o", markersize=6, color=colour)
    _rows(axes, [""] * len(group))  # they are beside the first picture
    axes.set_title(f"ratio to {short(group[0].benchmark.name)}")
    axes.set_xlabel(short(group[0].series.name))


def _rows(axes: Any, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)


def _scale(group: list[Estimate]) -> tuple[float, str]:
    return scale(max(max(map(abs, each.values)) for each in group), group[0].unit)


def _label(group: list[Estimate], unit: str) -> str:
    name = short(group[0].series.name)
    return f"{name}, {short(unit)}" if unit else name
