"""pytest-benchmark's JSON, as its ``compare`` reads it: the program's time, in seconds.

The keys are those of pytest-benchmark 5.3 (``Metadata.as_dict``, ``Stats.fields``), and so are the
definitions: quartiles are the mean of the halves' medians with and without the middle value,
outliers what is beyond 1.5 interquartile ranges of them, or one standard deviation from the mean.
"""

from __future__ import annotations

import platform
from statistics import fmean, median, stdev
from typing import Any

from ..model import Benchmark, Report
from .common import dumps, some
from .hyperfine import seconds


def export(report: Report) -> str:
    results = [_result(each) for each in report.benchmarks if seconds(each, "time")]
    document = {
        "machine_info": {
            "node": platform.node(),
            "cpu": {"brand_raw": report.fingerprint.get("CPU", "")},
        }
        | report.fingerprint,
        "commit_info": {},
        "benchmarks": some(results, "has no times"),
        "datetime": report.started,
        "version": report.fingerprint.get("pyvmm", ""),
    }
    return dumps(document)


def _result(benchmark: Benchmark) -> dict[str, object]:
    return {
        "group": None,
        "name": benchmark.name,
        "fullname": benchmark.name,
        "params": dict(benchmark.params) or None,
        "param": ", ".join(benchmark.params.values()) or None,
        "extra_info": {"image": benchmark.image, "digest": benchmark.digest},
        "options": {},
        "stats": stats(seconds(benchmark, "time")),
    }


def stats(data: list[float]) -> dict[str, Any]:
    """What pytest-benchmark has of a list of seconds."""
    order = sorted(data)
    halves = {max(1, len(order) // 2), (len(order) + 1) // 2}
    q1 = fmean(median(order[:half]) for half in halves)
    q3 = fmean(median(order[-half:]) for half in halves)
    iqr, mean = q3 - q1, fmean(order)
    deviation = stdev(order) if len(order) > 1 else 0.0
    low, high = q1 - 1.5 * iqr, q3 + 1.5 * iqr
    beyond = sum(not low <= value <= high for value in order)
    off = sum(not mean - deviation <= value <= mean + deviation for value in order)
    return {
        "min": order[0],
        "max": order[-1],
        "mean": mean,
        "stddev": deviation,
        "rounds": len(order),
        "median": median(order),
        "iqr": iqr,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": beyond,
        "stddev_outliers": off,
        "outliers": f"{off};{beyond}",
        "ld15iqr": next(value for value in order if value >= low),
        "hd15iqr": next(value for value in reversed(order) if value <= high),
        "ops": 1 / mean if mean else 0.0,
        "total": sum(order),
        "data": data,
        "iterations": 1,
    }
