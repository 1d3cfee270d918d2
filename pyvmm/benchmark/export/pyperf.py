"""pyperf's JSON, version 1.0: for ``pyperf stats``, ``hist``, ``compare_to``.

A benchmark's main series has its name, others ``NAME/METRIC``. pyperf takes less as better and
refuses values of 0 and below: series that are otherwise are left out. Its metadata are one line, so
control characters in names are escaped.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from ...errors import printable
from ..estimates import Estimate
from ..model import Report, Run
from .common import dumps, measured, some

_UNITS = {"s": "second", "B": "byte"}


def export(report: Report) -> str:
    benchmarks = [
        {
            "metadata": {"name": _name(each), "unit": _UNITS.get(each.unit, "integer")},
            "runs": _runs(each, report.started),
        }
        for each in measured(report)
        if each.series.better != "higher" and all(value > 0 for s in each.samples for value in s)
    ]
    document = {
        "version": "1.0",
        "metadata": {
            f"pyvmm {printable(key)}": text
            for key, value in report.fingerprint.items()
            if (text := printable(value).strip())
        },
        "benchmarks": some(benchmarks, "has no positive values of which less is better"),
    }
    return dumps(document)


def _name(each: Estimate) -> str:
    name, metric = each.benchmark.name, each.series.name
    return printable(name if metric == each.benchmark.main else f"{name}/{metric}").strip() or "?"


def _runs(each: Estimate, started: str) -> list[dict[str, object]]:
    made: list[Run | None] = [run for run in each.benchmark.runs if not run.warmup]
    if len(made) != len(each.samples):
        made = [None] * len(each.samples)  # which value is whose is not known
    return [
        {"values": values, "metadata": _when(run, started)}
        for run, values in zip(made, each.samples, strict=True)
        if values
    ]


def _when(run: Run | None, started: str) -> dict[str, object]:
    if not run:
        return {}
    try:
        date = datetime.fromisoformat(started) + timedelta(seconds=run.at)
    except (ValueError, OverflowError):
        return {}
    return {"date": date.isoformat(" "), "duration": run.seconds}
