"""OpenMetrics text 1.0, for node_exporter's textfiles, a Pushgateway, GitLab's metrics reports.

Gauges with the labels ``benchmark``, ``metric``, ``better``: the median, the ends of its interval
and how many values. Seconds and bytes have names of their own, as the format's section "Units and
Base Units" asks; of other units the label ``unit`` says which. The fingerprint is an info metric,
one sample for each fact.
"""

from __future__ import annotations

from ..estimates import Estimate
from ..model import Report
from .common import measured

_UNITS = {"s": "seconds", "B": "bytes"}


def export(report: Report) -> str:
    series = measured(report)
    lines = []
    for unit in ("s", "B", ""):
        of = [each for each in series if (each.unit if each.unit in _UNITS else "") == unit]
        lines += _family("median", unit, [(each, each.median) for each in of])
        ends = [(each, each.interval) for each in of if each.interval]
        lines += _family("low", unit, [(each, interval.low) for each, interval in ends])
        lines += _family("high", unit, [(each, interval.high) for each, interval in ends])
    lines += _family("values", "", [(each, len(each.values)) for each in series])
    if report.fingerprint:
        lines.append("# TYPE pyvmm_benchmark_host info")
    for key, value in report.fingerprint.items():
        lines.append(f"pyvmm_benchmark_host_info{_labels({'fact': key, 'value': value})} 1")
    return "\n".join([*lines, "# EOF", ""])


def _family(what: str, unit: str, samples: list[tuple[Estimate, float]]) -> list[str]:
    if not samples:
        return []
    name = f"pyvmm_benchmark_{what}"
    lines = []
    if unit:
        name += f"_{_UNITS[unit]}"
        lines.append(f"# UNIT {name} {_UNITS[unit]}")
    lines.insert(0, f"# TYPE {name} gauge")
    for each, value in samples:
        labels = {
            "benchmark": each.benchmark.name,
            "metric": each.series.name,
            "better": each.series.better,
        }
        if not unit and what != "values":
            labels["unit"] = each.unit
        lines.append(f"{name}{_labels(labels)} {value}")
    return lines


def _labels(labels: dict[str, str]) -> str:
    """Escaped as the format's ABNF ``escaped-string`` says."""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
