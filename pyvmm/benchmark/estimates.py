"""What tables, pictures and files show of a report: each series' median, with its interval."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

from .model import Benchmark, Report, Series
from .statistics import Interval, Ratio, median_interval, paired_ratio, ratio
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

    @property
    def off(self) -> float | None:
        """How far from the median the farther end of its interval is; None without one."""
        if not self.interval:
            return None
        return max(self.interval.high - self.median, self.median - self.interval.low)

    def plus_minus(self) -> str:
        """That, relative to the median: ``±1.2 %``; empty if there is no such thing."""
        if self.off is None or not self.median:
            return ""
        return f"±{self.off / abs(self.median) * 100:.2g} %"


def estimates(report: Report) -> list[Estimate]:
    """Of each series that has values, benchmark by benchmark, the main one first."""
    return [
        _estimate(benchmark, series, report.confidence)
        for benchmark in report.benchmarks
        for series in main_first(benchmark)
        if series.values
    ]


def by_metric(found: list[Estimate]) -> list[list[Estimate]]:
    """Those with the same name and unit together, in order of appearance."""
    groups: dict[tuple[str, str], list[Estimate]] = {}
    for each in found:
        groups.setdefault((each.series.name, each.unit), []).append(each)
    return list(groups.values())


def to_first(report: Report, group: list[Estimate]) -> list[tuple[Estimate, Ratio]]:
    """Each of a metric's estimates but the first, as a ratio to it; of a duet by its pairs.

    Left out are those with values of 0 and below, which have no ratio.
    """
    first, *others = group
    positive = [each for each in others if min(*first.values, *each.values) > 0]
    if sorted(each.benchmark.name for each in group) == sorted(report.duet):
        judge = paired_ratio
    else:
        judge = ratio
    return [(each, judge(first.values, each.values, report.confidence)) for each in positive]


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
