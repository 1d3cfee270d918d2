"""Counters of what the guest executes, and nothing of the host's (perf_event_open(2)): which there
are, opened in the worker, and what their readings at the guest's marks say. No run imports this but
one that asked for them.
"""

from __future__ import annotations

import errno
import os

from ._core import lib
from .errors import GuestError

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from .results import Result

# linux/perf_event.h: PERF_TYPE_HARDWARE, PERF_COUNT_HW_*
EVENTS = {
    "instructions": (0, 1),
    "cycles": (0, 0),
    "branches": (0, 4),
    "branch_misses": (0, 5),
    "cache_references": (0, 2),
    "cache_misses": (0, 3),
}
"""type and config by our name"""
USER = ":u"  # perf-list(1), event modifiers

NO_COUNTER = "this machine's CPU shows no such counter; those of most virtual machines show none"
WHY = {
    errno.ENOENT: NO_COUNTER,
    errno.ENODEV: NO_COUNTER,
    errno.EOPNOTSUPP: NO_COUNTER,
    errno.EACCES: "run as root, or set the sysctl kernel.perf_event_paranoid to 2 or less",
    errno.EPERM: "have the container's seccomp profile or the security module allow it",
    errno.ENOSYS: "this kernel is built without it (CONFIG_PERF_EVENTS)",
}
NO_MARKS = "the guest did not mark the program's begin and end"
NOT_RUNNING = "others used the CPU's counters all the time, as the NMI watchdog or a profiler"


def open_all(events: Iterable[tuple[int, int]]) -> list[dict[str, int]]:
    """A counter of each event, for this thread and those that it makes, as long as we have rights.

    ``fd``, or ``errno``; ``user`` is 1 if it counts only the guest's user mode.
    """
    opened = []
    for event in events:
        user = False
        fd = lib.perf_open(*event, user)
        if fd == -errno.EACCES:  # perf_event_paranoid, to whom has no CAP_PERFMON
            user = True
            fd = lib.perf_open(*event, user)
        opened.append({"fd": fd, "errno": max(-fd, 0), "user": int(user)})
    return opened


def account(result: Result, report: dict[str, Any]) -> None:
    """Put into the Result what a worker's report says of the counters."""
    if len(report["counters"]) != len(EVENTS):
        raise GuestError("the VM's process sent a report of other counters than it was asked for")
    for name, said in zip(EVENTS, report["counters"], strict=True):
        if said["errno"]:
            result.counters_unavailable[name] = _why(said["errno"])
            continue
        full_name = name + USER * said["user"]
        for mark in said["marks"].keys() & result.marks.keys():
            result.marks[mark][full_name] = _scaled(said["marks"][mark])
        begin, end = said["marks"].get("program"), said["marks"].get("ended")
        if not (begin and end):
            result.counters_unavailable[name] = NO_MARKS
            continue
        between = {field: end[field] - begin[field] for field in end}
        if min(between.values()) < 0 or not between["running_ns"]:
            result.counters_unavailable[name] = NOT_RUNNING
            continue
        result.counters[full_name] = _scaled(between)
        if between["running_ns"] < between["enabled_ns"]:
            percent = 100 * between["running_ns"] // between["enabled_ns"]
            result.warnings.append(
                f"{full_name}: estimated, the CPU's counters were shared: counted {percent} % of"
                " the time"
            )


def lines(result: Result) -> list[str]:
    """For people: each counter, and which are not to be had, by reason."""
    shown = [f"{name}: {value}" for name, value in result.counters.items()]
    return shown + not_available(result.counters_unavailable)


def not_available(whys: Mapping[str, str]) -> list[str]:
    """A line for each reason that some are not to be had for."""
    reasons: dict[str, list[str]] = {}
    for name, why in whys.items():
        reasons.setdefault(why, []).append(name)
    return [f"{', '.join(names)}: not available here: {why}" for why, names in reasons.items()]


def _scaled(reading: dict[str, int]) -> int:
    """What it would have counted, had it run all the time (perf_event_open(2), read_format)."""
    count, enabled, running = (reading[name] for name in ("count", "enabled_ns", "running_ns"))
    return count * enabled // running if running else 0


def _why(number: int) -> str:
    what = f"perf_event_open: {errno.errorcode.get(number, number)}"
    return f"{what}: {WHY.get(number, os.strerror(number))}"
