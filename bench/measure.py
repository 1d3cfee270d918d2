"""The measurements, as rows. Times are medians, taken in turns: ours, the peer's, ours, …"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from types import ModuleType

import memory
import ours
import qemu
import unjailed
from kvmtrace import Exits, Trace
from subject import MEMORY_MIB, Subject
from table import Row

SETTLE_S = 1.0  # from a guest's "ready" to measuring it idle
LOOPS = 4  # runs in one process; the first is not counted
MIB = 1 << 20
INTERRUPTS = ("interrupt", "external_interrupt")
PYTHON = "bare python3"

# Figure -> the most that ours may be of the peer's, with either kernel. Nothing asserts a time.
GOALS = {
    "command to exit": 0.5,
    "command to first guest instruction": 0.5,
    "the same, beside bare python3": 3.0,
    "command to program, with all walls": 1.05,
    "first instruction to init": 0.9,
    "exits to user space, until the program": 0.2,
    "all exits, until init": 0.7,
}
MEMORY_GOAL_MIB = 16.0
TIMES = {
    "exit": "command to exit",
    "first": "command to first guest instruction",
    "init": "first instruction to init",
    "program": "init to program",
    "end": "program's start to END",
    "leave": "END to exit",
}
WALLS = {
    ("first", "init", "program"): "command to program, with all walls",
    ("end",): "program's start to END, with all walls",
}
Times = dict[str, float]


@dataclass(frozen=True)
class Clock:
    """In what unit times are told: with --icount, the kvmbox's 2 ns are an instruction."""

    unit: str
    per_second: float


CLOCKS = {"wall": Clock("ms", 1e3), "icount": Clock("M instr", 500.0)}


class Bench:
    """All rows by one clock, and a histogram of exits for each VMM and kernel."""

    def __init__(self, runs: int, clock: Clock) -> None:
        self.runs = runs
        self.clock = clock
        self.trouble = qemu.trouble()
        self.vmms: list[ModuleType] = [ours] if self.trouble else [ours, qemu]
        self.rows: list[Row] = []
        self.exits: dict[tuple[str, str], Exits] = {}
        self._python: float | None = None

    def python(self) -> None:
        """A yardstick: what an interpreter that does nothing costs here."""
        taken = []
        for _ in range(self.runs + 1):
            begin = time.monotonic()
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            taken.append((time.monotonic() - begin) * self.clock.per_second)
        self._python = statistics.median(taken[1:])
        row = Row("", "yardstick", "bare python3 -c pass", self.clock.unit, self._python)
        self.rows.append(row)

    def row(self, subject: Subject, group: str, figure: str, unit: str,
            a: float | None, b: float | None) -> None:  # fmt: skip
        """One figure, ours and QEMU's."""
        goal = GOALS.get(figure)
        self.rows.append(Row(subject.name, group, figure, unit, a, qemu.NAME, b, goal))

    def times(self, subject: Subject) -> None:
        """The command, phase by phase."""
        vmms = [*self.vmms, unjailed]
        for vmm in vmms:
            vmm.run(subject)  # warm: files in the page cache
        taken: dict[str, list[Times]] = {vmm.NAME: [] for vmm in vmms}
        for number in range(self.runs):
            for vmm in vmms:
                taken[vmm.NAME].append(times := _timed(vmm, subject))
                told = f"{times['exit'] * self.clock.per_second:.0f} {self.clock.unit}"
                say(f"{subject.name} run {number + 1}: {vmm.NAME} {told}")
        unit = self.clock.unit
        for key, figure in TIMES.items():
            both = [self._median(taken.get(name, []), key) for name in (ours.NAME, qemu.NAME)]
            self.row(subject, unit, figure, unit, *both)
            if key == "first":
                figure = "the same, beside bare python3"
                value, goal = both[0], GOALS[figure]
                row = Row(subject.name, unit, figure, unit, value, PYTHON, self._python, goal)
                self.rows.append(row)
            elif key == "exit":
                loop = statistics.median(ours.loop(subject, LOOPS)) * self.clock.per_second
                self.row(subject, unit, "the same, but run() again in one process", unit,
                         loop, both[1])  # fmt: skip

        self._walls(subject, taken)

    def _walls(self, subject: Subject, taken: dict[str, list[Times]]) -> None:
        """What the jail costs: until the program runs, and while it does."""
        for keys, figure in WALLS.items():
            both = [
                sum(self._median(taken[name], key) or 0 for key in keys)
                for name in (ours.NAME, unjailed.NAME)
            ]
            row = Row(subject.name, self.clock.unit, figure, self.clock.unit, both[0],
                      unjailed.NAME, both[1], GOALS.get(figure))  # fmt: skip
            self.rows.append(row)

    def _median(self, taken: list[Times], key: str) -> float | None:
        values = [times[key] * self.clock.per_second for times in taken if key in times]
        return statistics.median(values) if values else None

    def count(self, subject: Subject) -> None:
        """Exits."""
        found = {vmm.NAME: _counted(vmm, subject) for vmm in self.vmms}
        for name, exits in found.items():
            self.exits[subject.name, name] = exits
        both = [found.get(name) for name in (ours.NAME, qemu.NAME)]
        for user, what in ((True, "exits to user space"), (False, "all exits")):
            for until, words in (("kernel", "init"), ("init", "the program"), ("end", "the end")):
                counts = [e and e.total(until=until, user=user) for e in both]
                self.row(subject, "exits", f"{what}, until {words}", "", *counts)
        counts = [e and e.total() - sum(dict(e.causes(user=False)).get(i, 0) for i in INTERRUPTS)
                  for e in both]  # fmt: skip
        self.row(subject, "exits", "all exits but host interrupts", "", *counts)

    def memory(self, subject: Subject) -> None:
        """What an idle guest holds, as it is and without huge pages."""
        found: dict[tuple[str, bool], memory.Memory] = {}
        for vmm in self.vmms:
            for small in (False, True):
                with memory.no_huge_pages(small), vmm.idle(subject) as pid:
                    time.sleep(SETTLE_S)
                    found[vmm.NAME, small] = memory.read(pid, MEMORY_MIB * MIB)
        both = [found.get((name, False)) for name in (ours.NAME, qemu.NAME)]
        beyond = [m and m.beyond / MIB for m in both]
        figure = "VMM process beyond guest RAM (PSS)"
        row = Row(subject.name, "memory", figure, "MiB", beyond[0], goal=MEMORY_GOAL_MIB)
        self.rows.append(row)
        self.row(subject, "memory", "the same, beside the peer", "MiB", *beyond)
        held = "guest RAM held, idle, with huge pages"
        self.row(subject, "memory", held, "pages", *(m and m.touched for m in both))
        both = [found.get((name, True)) for name in (ours.NAME, qemu.NAME)]
        touched = "guest RAM touched, idle, page by page"
        self.row(subject, "memory", touched, "pages", *(m and m.touched for m in both))


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


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)
