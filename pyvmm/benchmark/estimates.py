"""What tables, pictures and files show of a report: each series' median, with its interval."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

from .model import Benchmark, Report, Series
from .statistics import Interval, median_interval
from .units import base


class Estimate(NamedTuple):
    """One series; its numbers are in seconds or bytes if its unit is one of theirs."""

    benchmark: Benchmark
    series: Series
    unit: str
    samples: list[list[float]]
    values: list[float]
    median: float
    interval: Interval | None


def estimates(report: Report) -> list[Estimate]:
    """Of each series that has values, benchmark by benchmark, the main one first."""
    return [
        _estimate(benchmark, series, report.confidence)
        for benchmark in report.benchmarks
        for series in main_first(benchmark)
        if series.values
    ]


def main_first(benchmark: Benchmark) -> list[Series]:
    """Its series as they are to be shown."""
    return sorted(benchmark.series.values(), key=lambda series: series.name != benchmark.main)


def _estimate(benchmark: Benchmark, series: Series, confidence: float) -> Estimate:
    unit, factor = base(series.unit)
    values = [value * factor for value in series.values]
    return Estimate(
        benchmark,
        series,
        unit,
        [[value * factor for value in sample] for sample in series.samples],
        values,
        median(values),
        median_interval(values, confidence),
    )
