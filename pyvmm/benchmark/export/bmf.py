"""Bencher Metric Format: benchmark, measure, value with the bounds of its interval.

https://bencher.dev/docs/reference/bencher-metric-format/. The file has no units: ``time`` is
Bencher's built-in measure ``latency``, in nanoseconds; pyvmm's other metrics are measures of their
own names, in seconds, bytes or counts. Each metric of the program's own is a benchmark,
``OURS/METRIC``: times are its ``latency``, rates its ``throughput``, all else its ``value``.
"""

from __future__ import annotations

from ...errors import BenchmarkError
from ..estimates import Estimate
from ..model import Report
from .common import dumps, measured

_OURS = ("guest", "kvm", "perf")
_NS = 1e9  # in a second


def export(report: Report) -> str:
    document: dict[str, dict[str, dict[str, float]]] = {}
    for each in measured(report):
        benchmark, measure = _names(each)
        factor = _NS if measure == "latency" else 1.0
        metric = {"value": each.median * factor}
        if each.interval:
            metric["lower_value"] = each.interval.low * factor
            metric["upper_value"] = each.interval.high * factor
        measures = document.setdefault(benchmark, {})
        if measure in measures:
            raise BenchmarkError(f"bmf: {benchmark} has two metrics {measure}: rename a benchmark")
        measures[measure] = metric
    return dumps(document)


def _names(each: Estimate) -> tuple[str, str]:
    series = each.series
    if series.source in _OURS:
        return each.benchmark.name, "latency" if series.name == "time" else series.name
    benchmark = f"{each.benchmark.name}/{series.name}"
    if each.unit == "s":
        return benchmark, "latency"
    return benchmark, "throughput" if each.unit.endswith("/s") else "value"
