"""Runs benchmarks in rounds: each of them once a round, in random order.

What changes on the host meanwhile meets all of them alike, and none has always the same one before
it (randomised multiple interleaved trials: Abedi and Brecht, ICPE 2017, section 6).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from ..errors import BenchmarkError, UsageError
from ..machine import Machine
from ..results import Result
from . import measures
from .adapters import read
from .model import Benchmark, Mode, Report, Run, Series
from .statistics import until
from .subject import Subject, shown

Progress = Callable[[Benchmark], object]
Tell = Callable[[str], None]
TAIL = 300  # bytes of a failed program's output to show


@dataclass(frozen=True)
class Schedule:
    """How often, until when, and what to read."""

    runs: int = 10
    warmup: int = 1
    until_ci: float | None = None
    """go on until the median's interval is within this part of it (0.01: 1 %), to ``max_runs``; of
    pairs that of their ratios"""
    max_runs: int = 100
    mode: Mode = "fresh-vm"
    main: str = "time"
    adapter: str | None = None
    patterns: Sequence[str] = ()
    ignore_failure: bool = False
    confidence: float = 0.95
    together: bool = False
    """all benchmarks have the same number of runs: the i-th ones are a pair"""
    at_once: bool = False
    """a round's runs are made at the same time"""
    seed: int | None = None

    def check(self) -> None:
        """Raises UsageError for what cannot be meant."""
        if self.runs < 1:
            raise UsageError(f"{self.runs} runs: must be 1 or more")
        if self.warmup < 0:
            raise UsageError(f"{self.warmup} warm-up runs: must be 0 or more")
        if self.max_runs < self.runs:
            raise UsageError(f"at most {self.max_runs} runs, and at least {self.runs}: --max-runs")
        if self.until_ci is not None and not 0 < self.until_ci < 1:
            raise UsageError(f"an interval of {self.until_ci:.3%}: must be above 0 and below 100 %")
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"confidence {self.confidence}: must be 0.5 to below 1")

    def enough(self, values: Sequence[float]) -> bool:
        """Whether the interval is as short as it is to be, if it is to be."""
        return self.until_ci is None or until(values, self.until_ci, self.confidence)


class Trial:
    """One benchmark on its way."""

    def __init__(
        self, subject: Subject, schedule: Schedule, stack: ExitStack, tell: Tell | None
    ) -> None:
        self._subject, self._schedule, self._stack, self._tell = subject, schedule, stack, tell
        self._machine: Machine | None = None
        self._stopped = False
        self.benchmark = Benchmark(
            subject.name,
            subject.image,
            subject.digest,
            subject.shown,
            subject.params,
            schedule.mode,
            shown(subject),
            main=schedule.main,
        )

    @property
    def measured(self) -> int:
        """Runs that count."""
        return sum(not run.warmup for run in self.benchmark.runs)

    @property
    def values(self) -> list[float]:
        """Of the main metric, one for each run that counts."""
        series = self.benchmark.series.get(self.benchmark.main)
        return [median(sample) for sample in series.samples] if series else []

    def cut(self, runs: int) -> None:
        """Keep the first so many that count: of these every series has its values."""
        while self.measured > runs:
            self.benchmark.runs.pop()
        for series in self.benchmark.series.values():
            del series.samples[runs:]

    def stop(self) -> None:
        """End the run that is being made, from another thread; one that is about to begin, too."""
        self._stopped = True
        if self._machine:
            self._machine.stop()

    def run(self, order: int, began: float) -> None:
        """One run, and its numbers. Raises PyvmmError."""
        at = time.monotonic()
        result = self._result()
        seconds = time.monotonic() - at
        warmup = len(self.benchmark.runs) < self._schedule.warmup
        number = len(self.benchmark.runs) + 1
        self._check(result, f"run {number} of {self.benchmark.name}")
        if not warmup:
            self._take(result, f"run {number} of {self.benchmark.name}")
        self.benchmark.runs.append(
            Run(warmup, result.exit_code, at - began, seconds, order, result.warnings)
        )

    def _result(self) -> Result:
        if self._schedule.mode == "fresh-vm":
            self._machine = self._new(repeat=False)
            with self._machine as machine:
                self._heed(machine)
                return machine.wait()
        if self._machine is None:
            machine = self._new(repeat=True)
            self._machine = self._stack.enter_context(machine)
            self._heed(machine)
            return self._machine.wait()
        return self._machine.again()

    def _heed(self, machine: Machine) -> None:
        """Of a stop() before there was a worker to tell, the machine knows nothing."""
        if self._stopped:
            machine.stop()

    def _new(self, repeat: bool) -> Machine:
        subject = self._subject
        return Machine(
            subject.image, subject.command, progress=self._tell, repeat=repeat, **subject.options
        )

    def _check(self, result: Result, what: str) -> None:
        if self._machine and self._machine.digest != self.benchmark.digest:
            raise BenchmarkError(f"{what}: the image has changed meanwhile: {self._machine.digest}")
        if result.failure:
            raise BenchmarkError(f"{what}: {result.failure}")
        if result.timed_out:
            raise BenchmarkError(f"{what}: timed out; give it longer by --timeout")
        for path, reason in result.missing.items():
            raise BenchmarkError(f"{what}: output {path}: {reason}")
        for name in result.truncated:
            raise BenchmarkError(f"{what}: {name}: longer than --max-output, cut there")
        if result.out_of_memory and not self._schedule.ignore_failure:
            raise BenchmarkError(
                f"{what}: the guest ran out of memory and killed a process: give it more (--memory)"
            )
        if result.exit_code and not self._schedule.ignore_failure:
            said = (result.stderr or result.stdout)[-TAIL:].decode("utf-8", "replace").strip()
            raise BenchmarkError(
                f"{what}: the program ended with {result.exit_code}"
                + (f", saying {said!r}" if said else "")
            )

    def _take(self, result: Result, what: str) -> None:
        benchmark, schedule = self.benchmark, self._schedule
        found = {}
        for measure, value in measures.measured(result):
            found[measure.name] = measures.series(measure)
            found[measure.name].samples.append([value])
        texts = {"stdout": result.stdout, "stderr": result.stderr} | result.files
        try:
            adapter, series = read(texts, schedule.adapter, schedule.patterns)
        except BenchmarkError as e:
            raise BenchmarkError(f"{what}: {e}") from None
        for each in series:
            each.name = f"{each.source}:{each.name}" if each.name in found else each.name
            found[each.name] = each
        if benchmark.main not in found:
            raise BenchmarkError(
                f"{what}: no metric {benchmark.main!r}; there are {', '.join(sorted(found))}"
            )
        if not benchmark.series:
            benchmark.series, benchmark.adapter = found, adapter
            benchmark.unavailable = measures.unavailable(result)
            return
        self._drop_counters(found, measures.unavailable(result))
        if differ := found.keys() ^ benchmark.series.keys():
            raise BenchmarkError(f"{what}: metric {min(differ)!r} is not in every run")
        for name, each in found.items():
            benchmark.series[name].samples += each.samples

    def _drop_counters(self, found: dict[str, Series], missing: dict[str, str]) -> None:
        """One that a run lacks, as others had the CPU's counters, is none of the benchmark's."""
        benchmark = self.benchmark
        for name, each in [*found.items(), *benchmark.series.items()]:
            if each.source == "perf" and not (name in found and name in benchmark.series):
                found.pop(name, None)
                benchmark.series.pop(name, None)
                why = missing.get(name, "")
                benchmark.unavailable.setdefault(name, f"not in every run: {why}".rstrip(": "))


@dataclass
class Runner:
    """Makes the runs. ``report`` has, at any time, what there is so far."""

    subjects: Sequence[Subject]
    schedule: Schedule
    progress: Progress | None = None
    report: Report = field(default_factory=Report)
    tell: Tell | None = None
    """called with a line when what comes before a run takes long: a pull, making a disk"""

    def run(self) -> Report:
        """All of it. Raises PyvmmError; the report keeps the runs before."""
        schedule = self.schedule
        chance = random.Random(schedule.seed)
        self.report.confidence = schedule.confidence
        began, order = time.monotonic(), 0
        with ExitStack() as stack:
            trials = [Trial(subject, schedule, stack, self.tell) for subject in self.subjects]
            self.report.benchmarks = [trial.benchmark for trial in trials]
            try:
                while due := self._due(trials):
                    chance.shuffle(due)
                    if schedule.at_once:
                        self._at_once(due, order, began)
                    else:
                        for place, trial in enumerate(due):
                            trial.run(order + place, began)
                            if self.progress:
                                self.progress(trial.benchmark)
                    order += len(due)
            except BaseException:  # a signal's, too
                self._even(trials)
                raise
        return self.report

    def _due(self, trials: list[Trial]) -> list[Trial]:
        if self.schedule.together:
            return list(trials) if self._more(trials[0], _ratios(trials)) else []
        return [trial for trial in trials if self._more(trial, trial.values)]

    def _more(self, trial: Trial, values: Sequence[float]) -> bool:
        schedule, measured = self.schedule, trial.measured
        if measured < schedule.runs:
            return True
        if schedule.enough(values):
            return False
        if measured < schedule.max_runs:
            return True
        text = (
            f"{trial.benchmark.name}: after {measured} runs (--max-runs) the interval is not"
            f" within {schedule.until_ci:.3g} of the median"
        )
        if text not in self.report.warnings:
            self.report.warnings.append(text)
        return False

    def _even(self, trials: list[Trial]) -> None:
        """After an end at any point: as many values as runs; and of a pair both or none."""
        least = min(trial.measured for trial in trials)
        for trial in trials:
            trial.cut(least if self.schedule.together else trial.measured)

    def _at_once(self, due: list[Trial], order: int, began: float) -> None:
        with ThreadPoolExecutor(len(due)) as pool:
            runs = [pool.submit(trial.run, order + n, began) for n, trial in enumerate(due)]
            try:
                wait(runs)
            except BaseException:  # a signal's: what runs would be waited for
                for trial in due:
                    trial.stop()
                raise
        for trial, run in zip(due, runs, strict=True):
            run.result()
            if self.progress:
                self.progress(trial.benchmark)


def _ratios(trials: Sequence[Trial]) -> list[float]:
    """Of pairs, the last trial's to the first's; none if they have no ratio."""
    first, second = trials[0].values, trials[-1].values
    if any(value <= 0 for value in first):
        return []
    return [new / old for old, new in zip(first, second, strict=True)]
