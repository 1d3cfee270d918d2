"""github-action-benchmark's custom JSON: one file for each direction.

https://github.com/benchmark-action/github-action-benchmark, "customBiggerIsBetter",
"customSmallerIsBetter": a step of the action takes one file and judges all of it in one direction.
A series whose direction is not known is in neither file. ``range`` is how far the farther end of
the median's interval is, since the action reads one number after ``±``.
"""

from __future__ import annotations

from ..estimates import Estimate
from ..model import Better, Report
from .common import dumps, measured, some


def bigger(report: Report) -> str:
    return _export(report, "higher", "bigger")


def smaller(report: Report) -> str:
    return _export(report, "lower", "smaller")


def _export(report: Report, better: Better, word: str) -> str:
    entries = [_entry(each) for each in measured(report) if each.series.better == better]
    return dumps(some(entries, f"has no metric of which {word} is better"))


def _entry(each: Estimate) -> dict[str, object]:
    entry: dict[str, object] = {
        "name": f"{each.benchmark.name} {each.series.name}",
        "unit": each.unit,
        "value": each.median,
    }
    if each.off is not None:
        entry["range"] = f"± {each.off}"
    entry["extra"] = f"image: {each.benchmark.image}\nvalues: {len(each.values)}"
    return entry
