"""CSV (RFC 4180), one row for each value, for spreadsheets and data frames.

Values are in the series' own units. Parameters have columns of their own, ``param:NAME``.
"""

from __future__ import annotations

import csv
import io

from ..estimates import main_first
from ..model import Report
from .common import some

COLUMNS = (
    "benchmark", "image", "digest", "mode", "metric", "unit", "better", "source", "run", "sample",
    "value",
)  # fmt: skip


def export(report: Report) -> str:
    """``run`` counts a benchmark's measured runs, ``sample`` a run's values, both from 0."""
    params = sorted({name for benchmark in report.benchmarks for name in benchmark.params})
    rows = [
        (
            benchmark.name, benchmark.image, benchmark.digest, benchmark.mode,
            series.name, series.unit, series.better, series.source, run, n, value,
            *(benchmark.params.get(name, "") for name in params),
        )
        for benchmark in report.benchmarks
        for series in main_first(benchmark)
        for run, sample in enumerate(series.samples)
        for n, value in enumerate(sample)
    ]  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow((*COLUMNS, *(f"param:{name}" for name in params)))
    writer.writerows(some(rows, "has no values"))
    return text.getvalue()
