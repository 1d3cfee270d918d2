"""Settings that disturb a benchmark, and the values that do not.

The table serves both checks.py, which reads, and apply(), which sets. Meanings: Linux,
admin-guide/sysctl, admin-guide/pm, admin-guide/mm.

Transparent huge pages are no knob: guest memory asks for them (madvise), and with them a guest's
page walks, which are two-dimensional, are shorter and do not depend on which pages it happened to
get. So ``always`` and ``madvise`` both stay, and ``defrag`` as it is found.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from glob import glob

from ..delegation import read
from .journal import Journal

CPU = "sys/devices/system/cpu"
KERNEL = "proc/sys/kernel"


@dataclass(frozen=True)
class Knob:
    """One setting, of one file or of one for each CPU."""

    name: str
    pattern: str
    """its files, below the root"""
    wanted: str
    """the value to set"""
    why: str
    """how any other value disturbs"""
    absent: str = ""
    """why nothing can be known where there is no such file; "": the kernel has no such thing"""
    fine: tuple[str, ...] = ()
    """other values that do not disturb"""
    moot: tuple[str, str] = ("", "")
    """a file, and its value with which this one does not matter"""

    def paths(self, root: str) -> list[str]:
        return sorted(glob(self.pattern, root_dir=root), key=_number)

    def disturbs(self, root: str, value: str) -> bool:
        """Whether a value that one of its files has does."""
        if value == self.wanted or value in self.fine:
            return False
        path, moot = self.moot
        return not path or look(root, path) != moot


def _number(path: str) -> tuple[int, str]:
    """cpu10 comes after cpu9."""
    return int("".join(filter(str.isdigit, path)) or 0), path


NO_CPUFREQ = "no cpufreq here: firmware or hypervisor set the clock"

# In the order in which they are set: SMT first, since a CPU that is off has no governor.
KNOBS = (
    Knob("SMT siblings", f"{CPU}/smt/control", "off", "two CPUs share one core's units and caches",
         absent="this kernel does not tell", fine=("forceoff", "notsupported", "notimplemented"),
         moot=(f"{CPU}/smt/active", "0")),
    Knob("governor", f"{CPU}/cpu[0-9]*/cpufreq/scaling_governor", "performance",
         "the clock follows the load", absent=NO_CPUFREQ),
    # Two drivers' names for it; no host has both.
    Knob("turbo", f"{CPU}/intel_pstate/no_turbo", "1",
         "the clock follows the temperature and what other cores do", absent=NO_CPUFREQ),
    Knob("turbo", f"{CPU}/cpufreq/boost", "0",
         "the clock follows the temperature and what other cores do", absent=NO_CPUFREQ),
    Knob("ASLR", f"{KERNEL}/randomize_va_space", "0", "each process has another memory layout"),
    Knob("NUMA balancing", f"{KERNEL}/numa_balancing", "0", "pages are unmapped and moved at work"),
    Knob("timer migration", f"{KERNEL}/timer_migration", "0",
         "busy CPUs get the timers of idle ones"),
    Knob("NMI watchdog", f"{KERNEL}/nmi_watchdog", "0",
         "takes a hardware counter of each CPU, and its NMIs"),
    Knob("soft watchdog", f"{KERNEL}/soft_watchdog", "0", "wakes up on every CPU"),
    Knob("swappiness", "proc/sys/vm/swappiness", "1", "idle guest memory goes to the swap early",
         fine=("0",)),
    Knob("KSM", "sys/kernel/mm/ksm/run", "0", "memory is scanned, merged, and copied when written",
         fine=("2",)),
)  # fmt: skip


def apply(journal: Journal) -> None:
    """Set all knobs that there are; those that cannot be become the journal's notes."""
    for knob in KNOBS:
        for path in knob.paths(journal.root):
            value = look(journal.root, path)
            if value is None or knob.disturbs(journal.root, value):
                journal.set(knob.name, path, knob.wanted)


def look(root: str, path: str) -> str | None:
    """A file's text without white space around it; None if it cannot be read."""
    try:
        return read(os.path.join(root, path)).strip()
    except OSError:
        return None
