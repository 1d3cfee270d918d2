"""The measurements, as rows. Times are medians, taken in turns: ours, the peer's, ours, …"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import memory
import ours
import qemu
from kvmtrace import Exits, Trace
from subject import MEMORY_MIB, Subject, prepare
from table import Row

SETTLE_S = 1.0  # from a guest's "ready" to measuring it idle
MIB = 1 << 20
INTERRUPTS = ("interrupt", "external_interrupt")

# Figure -> the most that ours may be of the peer's, by kernel. No absolute time is ever asserted.
GOALS = {
    ("minimal", "command to exit"): 1.0,
    ("minimal", "exits to user space, until the program"): 1.0,
    ("stock", "exits to user space, until the program"): 1.0,
    ("minimal", "all exits, until the program"): 1.0,
    ("stock", "all exits, until the program"): 1.0,
}
MEMORY_GOAL_MIB = 40.0
TIMES = {
    "exit": "command to exit",
    "first": "command to first guest instruction",
    "init": "first instruction to init",
    "program": "init to program",
    "end": "program's start to END",
    "leave": "END to exit",
}
Times = dict[str, float]


class Bench:
    """All rows, and a histogram of exits for each VMM and kernel."""

    def __init__(self, runs: int) -> None:
        self.runs = runs
        self.trouble = qemu.trouble()
        self.vmms = [ours] if self.trouble else [ours, qemu]
        self.rows: list[Row] = []
        self.exits: dict[tuple[str, str], Exits] = {}

    def python(self) -> None:
        """A yardstick: what an interpreter that does nothing costs here."""
        times = []
        for _ in range(self.runs):
            begin = time.monotonic()
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            times.append(time.monotonic() - begin)
        self.rows.append(Row("bare python3 -c pass", "ms", statistics.median(times) * 1000))

    def kernel(self, name: str, image: Path) -> None:
        """Measure with one kernel."""
        subject = prepare(name, image)
        self._times(subject)
        self._exits(subject)
        self._memory(subject)

    def _row(self, subject: Subject, figure: str, unit: str, a: float | None, b: float | None,
             goal: float | None = None) -> None:  # fmt: skip
        goal = GOALS.get((subject.name, figure), goal)
        self.rows.append(Row(f"{subject.name}: {figure}", unit, a, qemu.NAME, b, goal))

    def _times(self, subject: Subject) -> None:
        for vmm in self.vmms:
            vmm.run(subject)  # warm: files in the page cache
        taken: dict[str, list[Times]] = {vmm.NAME: [] for vmm in self.vmms}
        for number in range(self.runs):
            for vmm in self.vmms:
                taken[vmm.NAME].append(times := _timed(vmm, subject))
                say(f"{subject.name} run {number + 1}: {vmm.NAME} {times['exit'] * 1000:.0f} ms")
        for key, figure in TIMES.items():
            both = [_median(taken.get(name, []), key) for name in (ours.NAME, qemu.NAME)]
            self._row(subject, figure, "ms", *both)

    def _exits(self, subject: Subject) -> None:
        found = {vmm.NAME: _counted(vmm, subject) for vmm in self.vmms}
        for name, exits in found.items():
            self.exits[subject.name, name] = exits
        both = [found.get(name) for name in (ours.NAME, qemu.NAME)]
        for user, what in ((True, "exits to user space"), (False, "all exits")):
            for until, words in (("kernel", "init"), ("init", "the program"), ("end", "the end")):
                counts = [e and e.total(until=until, user=user) for e in both]
                self._row(subject, f"{what}, until {words}", "", *counts)
        counts = [e and e.total() - sum(dict(e.causes(user=False)).get(i, 0) for i in INTERRUPTS)
                  for e in both]  # fmt: skip
        self._row(subject, "all exits but host interrupts", "", *counts)

    def _memory(self, subject: Subject) -> None:
        found: dict[str, memory.Memory] = {}
        for vmm in self.vmms:
            with vmm.idle(subject) as pid:
                time.sleep(SETTLE_S)
                found[vmm.NAME] = memory.read(pid, MEMORY_MIB * MIB)
        both = [found.get(name) for name in (ours.NAME, qemu.NAME)]
        beyond = [m and m.beyond / MIB for m in both]
        figure = f"{subject.name}: VMM process beyond guest RAM (PSS)"
        self.rows.append(Row(figure, "MiB", beyond[0], goal=MEMORY_GOAL_MIB))
        self._row(subject, "the same, beside the peer", "MiB", *beyond)
        self._row(subject, "guest RAM touched, idle", "pages", *(m and m.touched for m in both))


def _timed(vmm: ModuleType, subject: Subject) -> Times:
    with Trace(subject.entries, count=False) as trace:
        run = vmm.run(subject)
    at = trace.times()
    times = {"exit": run.exit - run.begin, "leave": run.exit - run.end}
    if {"first", "init", "program"} <= at.keys():
        times["first"] = at["first"] - run.begin
        times["init"] = at["init"] - at["first"]
        times["program"] = at["program"] - at["init"]
        times["end"] = run.end - at["program"]
    return times


def _counted(vmm: ModuleType, subject: Subject) -> Exits:
    with Trace(subject.entries, count=True) as trace:
        vmm.run(subject)
    return trace.exits()


def _median(taken: list[Times], key: str) -> float | None:
    values = [times[key] * 1000 for times in taken if key in times]
    return statistics.median(values) if values else None


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)
