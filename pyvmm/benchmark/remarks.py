"""What to know before trusting a benchmark's main metric, in words."""

from __future__ import annotations

from collections import Counter

from ..counters import not_available
from .model import Benchmark, Report
from .statistics import ALARM, least_runs, summarize
from .units import quantity

NAMED = 5


def remarks(benchmark: Benchmark, confidence: float) -> list[str]:
    """One line each; none if there are no values."""
    series = benchmark.series.get(benchmark.main)
    if not series or not series.values:
        return []
    values, found = series.values, []
    summary = summarize(values, confidence)
    if not summary.interval:
        least = least_runs(confidence)
        found.append(f"no interval: {confidence:.4g} takes {least} values, here are {len(values)}")
    if outliers := summary.outliers:
        what = "run" if len(series.samples) > 1 else "value"
        named = [f"{n + 1} ({quantity(values[n], series.unit)})" for n in outliers[:NAMED]]
        if more := len(outliers) - NAMED:
            named += [f"{more} more"] if more > 0 else []
        found.append(f"outliers, kept: {what} {', '.join(named)}")
    if summary.drift < ALARM:
        found.append(f"the values drift (p {summary.drift:.2g}): warm up longer, look at the host")
    if summary.modes < ALARM:
        found.append(f"the values have two modes or more (p {summary.modes:.2g})")
    if summary.detectable:
        change = f"{summary.detectable * 100:.2g} %"
        found.append(f"a comparison of as many runs would find a change of {change}")
    return [f"{series.name}: {text}" for text in found]


def notes(report: Report) -> list[str]:
    """What runs were warned of, and which metrics could not be had; each once, with its reason."""
    runs = [run for benchmark in report.benchmarks for run in benchmark.runs]
    said = Counter(warning for run in runs for warning in run.warnings)
    missing = {k: why for each in report.benchmarks for k, why in each.unavailable.items()}
    return [
        *(f"warning of {count} of {len(runs)} runs: {text}" for text, count in said.items()),
        *not_available(missing),
    ]
