"""bench(), duet() and calibrate(): what ``pyvmm bench`` does, for programs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Unpack

from ..options import Options
from . import adapters, fingerprint, place
from .model import Mode, Report
from .runner import Progress, Runner, Schedule
from .subject import Subject, resolve, subjects

if TYPE_CHECKING:
    from ..tune.session import Tuning

Images = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def bench(
    images: Images,
    command: Sequence[str] | None = None,
    *,
    runs: int = 10,
    warmup: int = 1,
    until_ci: float | None = None,
    max_runs: int = 100,
    params: Mapping[str, Sequence[str]] | None = None,
    mode: Mode = "fresh-vm",
    adapter: str | None = None,
    metrics: Sequence[str] = (),
    main: str = "time",
    name: str | None = None,
    ignore_failure: bool = False,
    confidence: float = 0.95,
    tune: bool = False,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Report:
    """Run each image's program again and again, and return what was measured.

    The command line's options of the same names say what they do (``pyvmm bench --help``);
    ``metrics`` are ``NAME=REGEX``; `Options` (options.py) are the VM's. ``progress`` is called with
    the Benchmark after each run. Raises BenchmarkError if the numbers cannot be had, and whatever
    run() raises.
    """
    schedule = Schedule(
        runs=runs,
        warmup=warmup,
        until_ci=until_ci,
        max_runs=max(runs, max_runs),
        mode=mode,
        main=main,
        adapter=adapter,
        patterns=metrics,
        ignore_failure=ignore_failure,
        confidence=confidence,
    )
    many = [images] if isinstance(images, str | os.PathLike) else list(images)
    made = subjects(many, command, params or {}, options, name)
    return prepared(made, schedule, progress=progress, tune=tune)


def duet(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    command: Sequence[str] | None = None,
    *,
    pairs: int = 20,
    warmup: int = 1,
    until_ci: float | None = None,
    max_runs: int = 100,
    mode: Mode = "same-vm",
    at_once: bool = False,
    adapter: str | None = None,
    metrics: Sequence[str] = (),
    main: str = "time",
    ignore_failure: bool = False,
    tune: bool = False,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Report:
    """Run two images in turn, in random order, so that each pair has met the same host.

    A noisy host disturbs both runs of a pair alike, so that their ratio is still an answer (duet
    benchmarking: Bulej et al., ICPE 2020; arXiv 2511.03533). ``at_once`` runs a pair at the same
    time, on two sets of CPUs. `compare.duet` judges the report.
    """
    schedule = Schedule(
        runs=pairs,
        warmup=warmup,
        until_ci=until_ci,
        max_runs=max(pairs, max_runs),
        mode=mode,
        main=main,
        adapter=adapter,
        patterns=metrics,
        ignore_failure=ignore_failure,
        together=True,
        at_once=at_once,
    )
    return prepared(two(first, second, command, options), schedule, progress=progress, tune=tune)


def two(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    command: Sequence[str] | None,
    options: Options,
) -> list[Subject]:
    """A duet's subjects: named A and B where the images' names are the same."""
    made = [subjects([image], command, {}, options)[0] for image in (first, second)]
    if made[0].name == made[1].name:
        for letter, each in zip("AB", made, strict=True):
            each.name = f"{letter} {each.name}"
    return made


def prepared(
    made: list[Subject],
    schedule: Schedule,
    *,
    progress: Progress | None = None,
    tune: bool = False,
    runner: Runner | None = None,
) -> Report:
    """Check all, then make the runs: a ``runner``'s report has what there is, after errors, too."""
    schedule.check()
    adapters.check(schedule.adapter, schedule.patterns)
    runner = runner or Runner([], schedule)
    runner.subjects, runner.schedule, runner.progress = made, schedule, progress
    report = runner.report
    report.started = datetime.now(UTC).isoformat(timespec="seconds")
    report.duet = [each.name for each in made] if schedule.together else []
    vms = [each.options for each in made]
    for vm in vms:
        vm.setdefault("counters", schedule.mode == "fresh-vm")  # else they are not read
    alive = len(made) if schedule.mode == "same-vm" or schedule.at_once else 1
    with ExitStack() as stack:
        best, others = place.cpus()
        if tune:
            tuning = stack.enter_context(_tuned(report))
            best, others = tuning.benchmark, tuning.housekeeping
            if tuning.cgroup:  # which has none of the others
                others = []
                for vm in vms:
                    vm.setdefault("cgroup", tuning.cgroup)
        report.warnings += place.settle(vms, best, others, alive=alive, at_once=schedule.at_once)
        for each in made:
            resolve(each, runner.tell)
        # After tuning: it is what the runs met.
        report.fingerprint = fingerprint.take(made[0].options.get("kernel"), tell=runner.tell)
        runner.run()
    return report


@contextmanager
def _tuned(report: Report) -> Iterator[Tuning]:
    """tuned(), whose notes are the report's warnings: at the end, too, what was not put back."""
    from ..tune.session import tuned

    tuning = None
    try:
        with tuned() as tuning:
            report.warnings += tuning.notes
            yield tuning
    finally:
        if tuning:
            report.warnings += [note for note in tuning.notes if note not in report.warnings]
