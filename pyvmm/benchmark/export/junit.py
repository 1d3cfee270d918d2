"""JUnit XML, as Jenkins and GitLab read it: a suite for each benchmark, a case for each metric.

A case's time is the median of a metric in seconds, so that their charts over builds are charts of
it; a metric that could not be had is a skipped case with the reason. The case ``runs`` has the
host's time for all of them, and fails if a program did. XML 1.0 (section 2.2) has no control
characters, escaped or not: they come as ``\\x1b``.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from ...errors import printable
from ..estimates import Estimate
from ..model import Benchmark, Report
from ..units import quantity
from .common import measured


def export(report: Report) -> str:
    series = measured(report)
    root = Element("testsuites", name="pyvmm bench")
    for benchmark in report.benchmarks:
        of = [each for each in series if each.benchmark is benchmark]
        _suite(root, report, benchmark, of)
    indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, "unicode")}\n'


def _suite(root: Element, report: Report, benchmark: Benchmark, series: list[Estimate]) -> None:
    runs = benchmark.runs
    failed = [run for run in runs if run.exit_code]
    suite = SubElement(
        root,
        "testsuite",
        name=printable(benchmark.name),
        tests=str(1 + len(series) + len(benchmark.unavailable)),
        failures=str(int(bool(failed))),
        errors="0",
        skipped=str(len(benchmark.unavailable)),
        time=f"{sum(run.seconds for run in runs):.3f}",
    )
    if report.started:
        suite.set("timestamp", printable(report.started))
    _properties(suite, report, benchmark)
    whole = _case(suite, benchmark, "runs")
    whole.set("time", _seconds(sum(run.seconds for run in runs)))
    if failed:
        codes = ", ".join(f"{run.order} ended with {run.exit_code}" for run in failed)
        SubElement(whole, "failure", type="exit code", message=f"runs {codes}")
    for each in series:
        case = _case(suite, benchmark, each.series.name)
        if each.unit == "s":
            case.set("time", _seconds(each.median))
        SubElement(case, "system-out").text = printable(_text(each))
    for name, reason in benchmark.unavailable.items():
        SubElement(_case(suite, benchmark, name), "skipped", message=printable(reason))


def _properties(suite: Element, report: Report, benchmark: Benchmark) -> None:
    facts = report.fingerprint | {"image": benchmark.image, "digest": benchmark.digest}
    properties = SubElement(suite, "properties")
    for name, value in facts.items():
        SubElement(properties, "property", name=printable(name), value=printable(value))


def _case(suite: Element, benchmark: Benchmark, name: str) -> Element:
    return SubElement(suite, "testcase", classname=printable(benchmark.name), name=printable(name))


def _seconds(value: float) -> str:
    """Without an exponent, which some readers do not know."""
    return f"{value:.9f}"


def _text(each: Estimate) -> str:
    text = f"median {quantity(each.median, each.unit)}"
    if each.interval:
        low, high = (quantity(end, each.unit) for end in (each.interval.low, each.interval.high))
        text += f", {low} to {high} at {each.interval.confidence:.1%}"
    return f"{text}, of {len(each.values)} values"
