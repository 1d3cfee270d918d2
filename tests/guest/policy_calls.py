"""How often each line of the seccomp policies is used, counted by the kernel while tests run.

A line is told to ftrace as a filter (Linux, Documentation/trace/events.rst, histogram.rst), which
then counts the calls that it lets through: those of threads behind a seccomp filter, by thread.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pyvmm import seccomp

TRACING = Path("/sys/kernel/tracing")
PID_MAX = Path("/proc/sys/kernel/pid_max")
THREADS = {"main": 'comm == "pyvmm-worker"', "io": 'comm == "io"', "vcpu": 'comm ~ "vcpu*"'}
SIZE = 4096  # threads of a kind that there is room for
# A thread has the variable once it has called seccomp(). What it calls without that is not counted
# where the variable is used: by setting another, of a name that the event has not had.
CONFINED = f"hist:keys=common_pid:confined=common_pid:size={SIZE}"
CALLED = f"hist:keys=common_pid:used%d=$confined:size={SIZE}"


class Line:
    """A line of a policy: ``rule`` and ``why``. A why that begins with "rare: " says why no test
    need use it."""

    def __init__(self, kind: str, text: str) -> None:
        rule, _, why = text.partition("#")
        self.kind, self.rule, self.why = kind, " ".join(rule.split()), why.strip()
        self.rare = self.why.startswith("rare: ")
        self.name, _, conditions = self.rule.partition(":")
        self._conditions = conditions.split("&&") if conditions else []

    def as_filter(self, fields: list[str]) -> str:
        """``fields``: what ftrace names the call's arguments."""
        tests = [THREADS[self.kind]]
        for condition in self._conditions:
            argument, relation, words = condition.split()
            field, bits = fields[int(argument.removeprefix("arg"))], 0
            for word in words.split("|"):
                bits |= seccomp.CONSTANTS[word] if word in seccomp.CONSTANTS else int(word, 0)
            outside = f"!({field} & {bits ^ seccomp.ALL_BITS:#x})"
            tests.append(f"{field} == {bits}" if relation == "==" else outside)
        return " && ".join(tests)


def lines(kind: str) -> list[Line]:
    path = Path(seccomp.__file__).with_name("policies") / f"{kind}.policy"
    texts = path.read_text().splitlines()
    return [Line(kind, text) for text in texts if text and not text.startswith("#")]


class Histogram:
    """How often an event happens that a filter holds for."""

    def __init__(self, event: Path, trigger: str, filter: str) -> None:
        self._event, self._filter, self._trigger = event, filter, f"{trigger} if {filter}"
        self._write(self._trigger)

    def remove(self) -> None:
        self._write(f"!{self._trigger}")

    def _write(self, words: str) -> None:
        with (self._event / "trigger").open("a") as file:  # "w" would remove all others
            file.write(words)

    def counts(self) -> list[int]:
        """For each thread."""
        parts = (self._event / "hist").read_text().split("# event histogram")
        (part,) = [part for part in parts if f" if {self._filter} [active]" in part]
        assert re.findall(r"Dropped: (\d+)", part) == ["0"]
        return [int(count) for count in re.findall(r"hitcount: +(\d+)", part)]


class Calls:
    """Counts in a directory of ftrace's, from when it is made until ``end``."""

    def __init__(self, place: Path, end: ExitStack) -> None:
        numbers = itertools.count()

        def count(event: str, filter: str, trigger: str = "") -> Histogram:
            made = Histogram(place / "events" / event, trigger or CALLED % next(numbers), filter)
            end.callback(made.remove)
            return made

        self._all, self._lines = {}, {}
        of_any_kind = " || ".join(THREADS.values())
        # With a filter: test_escape.py tries it without one, and with nothing behind it.
        puts_on = f"({of_any_kind}) && uargs != 0"
        self._seccomp = count("syscalls/sys_enter_seccomp", puts_on, CONFINED)
        for kind, threads in THREADS.items():
            self._all[kind] = count("raw_syscalls/sys_enter", f"{threads} && id != 317")
            for line in lines(kind):
                event = f"syscalls/sys_enter_{line.name}"
                text = (place / "events" / event / "format").read_text()
                fields = re.findall(r"(\w+);\toffset", text)[5:]  # after those of every event
                self._lines[kind, line.rule] = count(event, line.as_filter(fields))

    def threads(self, kind: str) -> int:
        """How many have called anything behind their filter."""
        assert set(self._seccomp.counts()) <= {1}  # or two had the same number: PID_MAX
        return len(self._all[kind].counts())

    def all(self, kind: str) -> int:
        return sum(self._all[kind].counts())

    def by(self, line: Line) -> int:
        return sum(self._lines[line.kind, line.rule].counts())


def obstacle() -> str:
    """Why nothing can be counted here, or ""."""
    if os.geteuid():
        return "needs root, for ftrace"
    if not (TRACING / "instances").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACING], capture_output=True)
    for name in ("raw_syscalls/sys_enter", "syscalls/sys_enter_seccomp"):
        if not (TRACING / "events" / name / "hist").exists():
            return f"needs ftrace with {name} and histograms (CONFIG_HIST_TRIGGERS)"
    return ""


@contextmanager
def counted() -> Iterator[Calls]:
    with ExitStack() as end:
        end.callback(PID_MAX.write_text, PID_MAX.read_text())
        PID_MAX.write_text("4194304")  # no number is given twice
        place = TRACING / "instances" / f"pyvmm-{os.getpid()}"
        place.mkdir()
        end.callback(place.rmdir)
        yield Calls(place, end)
