"""hyperfine's ``--export-json``: the program's time, one result for each benchmark.

The keys are those of hyperfine 1.15; ``command`` is the benchmark's name, as with hyperfine's
``--command-name``. Without the guest's CPU times ``user`` and ``system`` are null.
"""

from __future__ import annotations

from statistics import fmean, median, stdev

from ..model import Benchmark, Report
from .common import dumps, some


def export(report: Report) -> str:
    results = [_result(each) for each in report.benchmarks if seconds(each, "time")]
    return dumps({"results": some(results, "has no times")})


def _result(benchmark: Benchmark) -> dict[str, object]:
    times = seconds(benchmark, "time")
    result: dict[str, object] = {
        "command": benchmark.name,
        "mean": fmean(times),
        "stddev": stdev(times) if len(times) > 1 else None,
        "median": median(times),
        "user": _mean(benchmark, "user"),
        "system": _mean(benchmark, "system"),
        "min": min(times),
        "max": max(times),
        "times": times,
        "exit_codes": [run.exit_code for run in benchmark.runs if not run.warmup],
    }
    return result | ({"parameters": benchmark.params} if benchmark.params else {})


def seconds(benchmark: Benchmark, name: str) -> list[float]:
    """A series' values, if it is there and has them."""
    series = benchmark.series.get(name)
    return series.values if series and series.unit == "s" else []


def _mean(benchmark: Benchmark, name: str) -> float | None:
    values = seconds(benchmark, name)
    return fmean(values) if values else None
