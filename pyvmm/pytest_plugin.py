"""For pytest: programs in microVMs as fixtures. Installed with pyvmm, nothing to configure.

::

    @pytest.mark.vm(image="oci/", vcpus=2)
    def test_it(vm):
        assert vm(["make", "check"]).exit_code == 0

    @pytest.mark.vm(image="oci/")
    def test_speed(benchmark_vm):
        report = benchmark_vm(["./bench"], runs=20)

The marker, on a test, a class or a module, has run()'s keyword arguments; the nearest one's count.
What ``benchmark_vm`` has measured is shown at the end as pytest-benchmark does, and written to
``--benchmark-vm-json FILE`` as ``pytest-benchmark compare`` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .benchmark.model import Report
    from .results import Result

MARKER = "vm(image, **options): the image and options of the vm and benchmark_vm fixtures"
TIMES = ("min", "max", "mean", "stddev", "median", "iqr")
_REPORT = pytest.StashKey["Report"]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    if path := config.getoption("benchmark_vm_json"):
        from .errors import UsageError
        from .whole_file import check_writable

        try:
            check_writable(path)
        except UsageError as e:
            raise pytest.UsageError(f"--benchmark-vm-json {e}") from None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("pyvmm", "programs in microVMs").addoption(
        "--benchmark-vm-json",
        metavar="FILE",
        help="write what benchmark_vm measured as pytest-benchmark's JSON",
    )


@pytest.fixture
def vm(request: pytest.FixtureRequest) -> Callable[..., Result]:
    """Runs a command in a microVM: ``vm(command=None, **options) -> Result``, as pyvmm.run()."""
    from .machine import run

    options = _options(request)

    def call(command: Sequence[str] | None = None, **more: Any) -> Result:
        return run(**_call(options | more, command))

    return call


@pytest.fixture
def benchmark_vm(request: pytest.FixtureRequest) -> Callable[..., Report]:
    """Benchmarks a command: ``benchmark_vm(command=None, **options) -> Report``, as pyvmm.bench().

    The benchmark has the test's name; called again in the same test, one with a number.
    """
    from .benchmark.api import bench

    options, config, name = _options(request), request.config, request.node.nodeid
    called = 0

    def call(command: Sequence[str] | None = None, **more: Any) -> Report:
        nonlocal called
        called += 1
        arguments: dict[str, Any] = {"name": name if called == 1 else f"{name} ({called})"}
        arguments |= _call(options | more, command)
        report = bench(arguments.pop("image"), **arguments)
        if _REPORT in config.stash:
            config.stash[_REPORT].benchmarks += report.benchmarks
        else:
            config.stash[_REPORT] = report
        return report

    return call


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    report = terminalreporter.config.stash.get(_REPORT, None)
    if report is None:
        return
    terminalreporter.write_sep("-", f"benchmarks in microVMs: {len(report.benchmarks)}")
    for line in _table(report):
        terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("benchmark_vm_json")
    report = session.config.stash.get(_REPORT, None)
    if path and report:
        from .benchmark.export import export
        from .whole_file import write_text

        write_text(path, export(report, "pytest-benchmark"))


def _options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the markers say, the nearest last."""
    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("vm"))):
        if len(marker.args) > 1:
            raise pytest.UsageError("@pytest.mark.vm takes an image and keyword arguments")
        options |= ({"image": marker.args[0]} if marker.args else {}) | marker.kwargs
    return options


def _call(options: dict[str, Any], command: Sequence[str] | None) -> dict[str, Any]:
    if "image" not in options:
        raise pytest.UsageError("which image? Say @pytest.mark.vm(image=…), or image=…")
    return options if command is None else options | {"command": command}


def _table(report: Report) -> list[str]:
    """pytest-benchmark's columns; times with their own unit."""
    from .benchmark.export.pytest_benchmark import stats
    from .benchmark.units import quantity

    rows = [["name", *TIMES, "outliers", "ops", "rounds"]]
    for each in report.benchmarks:
        numbers = stats(each.series["time"].values)
        times = [quantity(numbers[key], "s") for key in TIMES]
        rows.append(
            [
                each.name,
                *times,
                numbers["outliers"],
                quantity(numbers["ops"], ""),
                str(numbers["rounds"]),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
