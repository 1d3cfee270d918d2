"""A host with its noise out, for the time of a benchmark or until it is put back."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from . import knobs, partition
from .journal import Journal, summary

LATENCY = "dev/cpu_dma_latency"


@dataclass
class Tuning:
    """What tuned() has done."""

    changed: list[str] = field(default_factory=list)
    """lines, as ``swappiness: 60 -> 1``"""
    notes: list[str] = field(default_factory=list)
    """lines: what could not be done and why; after the end also what could not be put back"""
    benchmark: list[int] = field(default_factory=list)
    """CPUs for vCPUs and io threads, best first"""
    housekeeping: list[int] = field(default_factory=list)
    """CPUs for all else; empty on a host of one core"""
    cgroup: str = ""
    """the partition, for ``--cgroup``: VMs in it have the benchmark's CPUs; "" without one"""


@contextmanager
def tuned(root: str = "/") -> Iterator[Tuning]:
    """Set this host's knobs, its interrupts and a cpuset partition; put all back at the end.

    Not all may be to be had, as in a container: see Tuning.notes. A process that is killed leaves
    it to the next pyvmm command (recover.py). Raises HostError if another one tunes, and for who is
    not root; nothing is changed then.
    """
    with Journal(root) as journal:
        tuning = Tuning()
        try:
            _apply(journal)
            tuning.benchmark, tuning.housekeeping = partition.host_layout(root)  # SMT may be off
            if tuning.housekeeping:
                tuning.cgroup = partition.isolate(journal, tuning.benchmark)
            tuning.changed = summary(journal.changes)
            with _awake(journal):
                tuning.notes = journal.lines()
                yield tuning
        finally:
            journal.undo()
            tuning.notes = journal.lines()


def apply(root: str = "/") -> tuple[list[str], list[str]]:
    """Set knobs and interrupts until restore(): (what was changed, what not and why).

    Killed meanwhile, it is undone by the next command. Raises as tuned().
    """
    with Journal(root) as journal:
        _apply(journal)
        journal.note("C-states", LATENCY, "last only as long as it is held open: see bench --tune")
        journal.keep()
        return summary(journal.changes), journal.lines()


def restore(root: str = "/") -> tuple[list[str], list[str]]:
    """Put back what apply(), or a killed one, has changed: (what, what not and why)."""
    with Journal(root) as journal:
        journal.restore()
        return summary(journal.restored, back=True), journal.lines()


def _apply(journal: Journal) -> None:
    _, housekeeping = partition.host_layout(journal.root)
    if housekeeping:
        partition.move_work(journal, housekeeping)
    knobs.apply(journal)


@contextmanager
def _awake(journal: Journal) -> Iterator[None]:
    """No CPU sleeps deeper than it wakes from in 0 µs (Linux, power/pm_qos_interface.rst)."""
    try:
        fd = os.open(journal.at(LATENCY), os.O_WRONLY | os.O_CLOEXEC)
    except OSError as e:
        journal.note("C-states", LATENCY, f"cannot be held: {e.strerror}")
        yield
        return
    try:
        os.write(fd, struct.pack("=i", 0))
        yield
    finally:
        os.close(fd)
