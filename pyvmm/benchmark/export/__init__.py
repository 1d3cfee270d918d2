"""A Report in other tools' formats.

Each file here has one format and its ``export(report) -> str``; values that a format cannot hold
are left out as its docstring says. BenchmarkError if nothing is left.
"""

from __future__ import annotations

from ...errors import UsageError
from ..model import Report
from . import bmf, github, hyperfine, junit, openmetrics, pyperf, pytest_benchmark, table

FORMATS = {
    "bmf": bmf.export,
    "csv": table.export,
    "github-bigger": github.bigger,
    "github-smaller": github.smaller,
    "hyperfine": hyperfine.export,
    "junit": junit.export,
    "openmetrics": openmetrics.export,
    "pyperf": pyperf.export,
    "pytest-benchmark": pytest_benchmark.export,
}
NAMES = tuple(FORMATS)


def export(report: Report, name: str) -> str:
    """The report in a format, as text that UTF-8 can encode.

    Raises UsageError for an unknown format, BenchmarkError for a report without what it takes.
    """
    _check(name, f"export {name!r}")
    return FORMATS[name](report).encode("utf-8", "backslashreplace").decode()


def parse(spec: str) -> tuple[str, str]:
    """``FORMAT=FILE`` in its parts. Raises UsageError: to be called before the benchmark is run."""
    name, equals, path = spec.partition("=")
    if not equals or not path:
        raise UsageError(f"--export {spec}: give FORMAT=FILE, as csv=values.csv")
    _check(name, f"--export {spec}")
    return name, path


def _check(name: str, what: str) -> None:
    if name not in FORMATS:
        raise UsageError(f"{what}: not a format; there are {', '.join(NAMES)}")
