"""``pyvmm bench`` and ``pyvmm duet``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import cast

from ..arguments import Command, Option, Values
from ..cli import say
from ..errors import BenchmarkError, PyvmmError, UsageError, printable
from ..options import Options
from ..vm_options import VM_OPTIONS, vm_options
from ..whole_file import check_writable, write_text
from . import bars, export, plot
from .api import prepared, two
from .model import Benchmark, Mode, Report
from .runner import Runner, Schedule
from .statistics import median_interval
from .subject import Subject, subjects
from .units import quantity


def _bench(a: Values) -> int:
    images = a.words[: len(a.words) - len(a.tail)]
    if a.fresh_vm and a.same_vm:
        raise UsageError("--fresh-vm and --same-vm: choose one")
    if a.calibrate:
        return _calibrate(a, images)
    params = _params(a.param)
    made = subjects(images, a.tail or None, params, _options(a), a.name)
    schedule = _schedule(a, "same-vm" if a.same_vm else "fresh-vm")
    return _measure(a, made, schedule)


def _duet(a: Values) -> int:
    images = a.words[: len(a.words) - len(a.tail)]
    if len(images) != 2:
        raise UsageError(f"a duet is of two images, not {len(images)}")
    schedule = _schedule(a, "fresh-vm" if a.fresh_vm else "same-vm", together=True)
    return _measure(a, two(images[0], images[1], a.tail or None, _options(a)), schedule)


def _measure(a: Values, made: list[Subject], schedule: Schedule) -> int:
    _check_places(a)
    runner, line = Runner([], schedule, tell=say), _Line()
    code = 0
    try:
        prepared(made, schedule, progress=line.show, tune=a.tune, runner=runner)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as e:  # SIGTERM's (cli.py), as when a CI job is cancelled
        code = int(e.code or 0)
    except PyvmmError as e:
        line.clear()
        say(str(e))
        code = e.exit_code
    line.clear()
    report = runner.report
    if not any(each.series for each in report.benchmarks):
        return code
    if code:
        report.warnings.append("ended early: these are the runs until then")
    for warning in report.warnings:
        say(f"warning: {warning}")
    failed = _deliver(a, report)
    return code or failed


def _deliver(a: Values, report: Report, text: str = "") -> int:
    """Write what was asked for, then say ``text``, or show the report. Returns the exit code.

    Files first: nobody may be reading stdout. What cannot be made or written is said, and costs
    nothing else.
    """

    def page() -> str:
        from .html import html

        return html(report)

    def table() -> str:
        ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
        shown = bars.show(report, ascii_only=ascii_only)
        if report.duet:
            from . import compare

            try:
                shown += "\n" + compare.duet(report).table()
            except BenchmarkError as e:  # not yet a pair
                shown += f"\n{e}"
        return shown + "\n"

    code = 0
    parts: list[tuple[str | None, Callable[[], str]]] = [(a.json, report.to_json), (a.html, page)]
    for name, path in map(export.parse, a.export):
        parts.append((path, partial(export.export, report, name)))
    for place, make in parts:
        if place:
            code = _attempt(place, partial(_make, place, make)) or code
    if a.plot:
        code = _attempt(a.plot, lambda: plot.plot(report, a.plot)) or code
    if "-" not in [place for place, _ in parts]:
        sys.stdout.write(f"{text}\n" if text else table())
    return code


def _calibrate(a: Values, images: list[str]) -> int:
    if images or a.tail:
        raise UsageError("--calibrate brings its own image and command")
    from .calibrate import calibrate

    _check_places(a)
    line = _Line()
    runs = 30 if a.runs is None else a.runs
    found = calibrate(runs, progress=line.show, tune=a.tune, **_options(a))
    line.clear()
    for warning in found.report.warnings:
        say(f"warning: {warning}")
    return _deliver(a, found.report, found.describe()) or (0 if found.sound else 1)


def _options(a: Values) -> Options:
    options = vm_options(a)
    options["outputs"] = list(a.output)
    # A flag that is not given says nothing: place.py chooses.
    chosen = ("cpus", "hugepages", "numa_node", "prefault")
    return cast(Options, {k: v for k, v in options.items() if v or k not in chosen})


def _schedule(a: Values, mode: Mode, together: bool = False) -> Schedule:
    runs = a.runs if a.runs is not None else 20 if together else 10
    if a.max_runs is not None and a.runs is None:
        runs = min(runs, a.max_runs)
    return Schedule(
        runs=runs,
        warmup=a.warmup,
        until_ci=a.until_ci,
        max_runs=max(runs, 100) if a.max_runs is None else a.max_runs,
        mode=mode,
        main=a.main,
        adapter=a.adapter,
        patterns=a.metric,
        ignore_failure=a.ignore_failure,
        confidence=a.confidence,
        together=together,
        at_once=together and a.at_once,
    )


def _params(words: list[str]) -> dict[str, list[str]]:
    params: dict[str, list[str]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not name.isidentifier() or not equals:
            raise UsageError(f"--param {word!r}: write it as x=1,2,4")
        if name in params:
            raise UsageError(f"--param {name}: given twice; write it as {name}=1,2,4")
        params[name] = values.split(",")
    return params


def percent(word: str) -> float:
    """``1%`` or ``0.01``. Raises ValueError."""
    return float(word[:-1]) / 100 if word.endswith("%") else float(word)


def _check_places(a: Values) -> None:
    """Refuse now what could not be written when all is measured."""
    paths = [a.json, a.html, *(export.parse(word)[1] for word in a.export)]
    if paths.count("-") > 1:
        raise UsageError("one thing only can be written to stdout (-)")
    for path in (*paths, a.plot):
        if path not in (None, "-"):
            check_writable(path)
    if a.plot:
        plot.check(a.plot)


def _make(path: str, make: Callable[[], str]) -> None:
    write_text(path, make())


def _attempt(path: str, act: Callable[[], object]) -> int:
    """Do it, or say why not. Returns the exit code."""
    try:
        act()
    except BenchmarkError as e:  # which does not know the file
        say(f"{path}: {e}")
        return e.exit_code
    except PyvmmError as e:
        say(str(e))
        return e.exit_code
    return 0


class _Line:
    """The running estimate, on one line of a terminal; elsewhere nothing."""

    def __init__(self) -> None:
        self._shown = bool(sys.stderr) and sys.stderr.isatty()

    def show(self, benchmark: Benchmark) -> None:
        if not self._shown:
            return
        text = f"{printable(benchmark.name)}: {len(benchmark.runs)} runs"
        series = benchmark.series.get(benchmark.main)
        if series:
            values = sorted(series.values)
            middle = values[len(values) // 2]
            text += f", {quantity(middle, series.unit)}"
            interval = median_interval(values)
            if interval and middle:
                text += f" ± {(interval.high - interval.low) / 2 / abs(middle):.2%}"
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


_COMMON = (
    Option("--warmup", "N", "runs that do not count, before (default 1)", 1, int),
    Option("--until-ci", "WIDTH", "go on until the interval is within it, as 1%", kind=percent),
    Option("--max-runs", "N", "but no further (default 100)", kind=int),
    Option("--confidence", "LEVEL", "of the intervals (default 95%)", 0.95, percent),
    Option("--fresh-vm", "", "each run in a VM of its own (bench's default)", False),
    Option("--adapter", "NAME", "the format that the program writes (default: recognised)"),
    Option("--metric", "NAME=REGEX", "a number that it prints; as NAME[UNIT]:higher=REGEX",
           many=True),
    Option("--main", "METRIC", "the metric to look at first (default time)", "time"),
    Option("--output", "PATH", "a file of the guest to read metrics from", many=True),
    Option("--ignore-failure", "", "a program that fails counts, too", False),
    Option("--tune", "", "quieten the host meanwhile (pyvmm tune)", False),
    Option("--json", "FILE", "write the report; - is stdout"),
    Option("--export", "FORMAT=FILE", "and as bmf, csv, …: see docs", many=True),
    Option("--plot", "FILE", "a picture: .svg or .png"),
    Option("--html", "FILE", "all of it in one page"),
    *VM_OPTIONS,
)  # fmt: skip

COMMANDS = (
    Command(
        "bench",
        "Run images' programs again and again: numbers with error bars.",
        _bench,
        (
            Option("--runs", "N", "how often, at least (default 10)", kind=int),
            Option("--name", "NAME", "of the benchmark (default: the image's)"),
            Option("--param", "X=A,B,…", "a benchmark for each; {X} in the command is replaced",
                   many=True),
            Option("--same-vm", "", "all runs of a benchmark in one VM", False),
            Option("--calibrate", "", "how small a change can this host see?", False),
            *_COMMON,
        ),
        words="IMAGE… [-- program …]",
    ),
    Command(
        "duet",
        "Compare two images, run in turn: an answer on a noisy host, too.",
        _duet,
        (
            Option("--runs", "N", "pairs, at least (default 20)", kind=int),
            Option("--at-once", "", "the two of a pair at the same time, on CPUs of their own",
                   False),
            *_COMMON,
        ),
        words="IMAGE IMAGE [-- program …]",
    ),
)  # fmt: skip
