"""What pyvmm itself measures of each run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..counters import EVENTS
from ..results import Result
from .model import Better, Series


class Measure(NamedTuple):
    """A metric that every run has, unless something says why not."""

    name: str
    unit: str
    source: str
    better: Better = "lower"


# The program and its descendants, by the guest's clock and its kernel's accounts (getrusage). What
# says more of the host than of the program is neither good nor bad.
TIME = Measure("time", "s", "guest")
USAGE = (
    (Measure("user", "s", "guest"), "user_us", 1e-6),
    (Measure("system", "s", "guest"), "system_us", 1e-6),
    (Measure("peak_memory", "B", "guest"), "peak_rss", 1),
    (Measure("minor_faults", "", "guest"), "minor_faults", 1),
    (Measure("major_faults", "", "guest"), "major_faults", 1),
    (Measure("voluntary_switches", "", "guest", ""), "voluntary_switches", 1),
    (Measure("involuntary_switches", "", "guest", ""), "involuntary_switches", 1),
    (Measure("block_in", "", "guest"), "block_in", 1),
    (Measure("block_out", "", "guest"), "block_out", 1),
    (Measure("steal", "s", "guest", ""), "steal_ns", 1e-9),
)
# From the mark at the program's start to that at its end (docs/protocol.md, The two I/O ports).
EXITS = (
    (Measure("exits", "", "kvm"), "kvm_exits"),
    (Measure("user_exits", "", "kvm"), "exits"),
)
NO_MARKS = "known only of a run that has a VM of its own (--fresh-vm)"
NO_EXITS = "this host's KVM does not count them: needs Linux 5.14"


def measured(result: Result) -> Iterator[tuple[Measure, float]]:
    """Each metric that the run has, with its value."""
    yield TIME, result.timings["program"]
    for measure, name, scale in USAGE:
        yield measure, getattr(result.usage, name) * scale
    begin, end = result.marks.get("program"), result.marks.get("ended")
    if begin and end:
        for measure, name in EXITS:
            if end[name]:  # 0 of a KVM that does not tell
                yield measure, end[name] - begin[name]
    for name, value in result.counters.items():
        yield Measure(name, "", "perf"), value


def unavailable(result: Result) -> dict[str, str]:
    """Each metric that the run lacks, with the reason."""
    ended = result.marks.get("ended", {})
    if not ended or "program" not in result.marks:
        return dict.fromkeys([*(measure.name for measure, _ in EXITS), *EVENTS], NO_MARKS)
    no_exits = {measure.name: NO_EXITS for measure, name in EXITS if not ended[name]}
    return no_exits | result.counters_unavailable


def series(measure: Measure) -> Series:
    """An empty one for it."""
    return Series(measure.name, measure.unit, measure.better, measure.source)
