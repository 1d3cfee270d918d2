"""KVM's trace events: the same clock and the same counting for every VMM.

Linux, Documentation/trace/events.rst; the events are those of arch/x86/kvm/trace.h. Only what this
process starts is traced (set_event_pid with event-fork), so other VMs on the machine do no harm.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path("/sys/kernel/tracing")
MARK_PORT = 0x600  # docs/protocol.md: 1 init runs, 2 the program is about to start, 3 it has ended
RESET_VECTOR = 0xFFF0
PHASES = ("kernel", "init", "program", "end")  # what runs after 0, 1, 2, 3 marks
COUNTED = ("kvm_exit", "kvm_userspace_exit", "kvm_pio", "kvm_mmio", "kvm_msr")

_LINE = re.compile(r"\s(\d+\.\d+): (\w+): (.*)")
_MARK = re.compile(rf"pio_write at {MARK_PORT:#x} size 1 count 1 val (\S+)")
_PLACES = (
    (0xC0001000, 0xC0001FFF, "virtio-blk"),
    (0xC0002000, 0xC0002FFF, "virtio-vsock"),
    (0xC0003000, 0xC0003FFF, "virtio-rng"),
    (0xFEB00000, 0xFEB02FFF, "virtio"),  # QEMU's microvm: 512 bytes a device
    (0xFEC00000, 0xFEC00FFF, "ioapic"),
    (0xFEE00000, 0xFEE00FFF, "lapic"),
)
_PORTS = (
    (0x20, 0x21, "8259"),
    (0x40, 0x43, "8254"),
    (0x60, 0x64, "8042"),
    (0x70, 0x71, "cmos"),
    (0xA0, 0xA1, "8259"),
    (0x3F8, 0x3FF, "serial"),
    (0x510, 0x51B, "fw_cfg"),
    (MARK_PORT, MARK_PORT, "mark"),
    (0x604, 0x604, "reset"),
    (0xCF8, 0xCFF, "pci"),
)
_REGISTERS = {0x50: "kick", 0x60: "interrupt status", 0x64: "interrupt ack", 0x70: "status"}


@dataclass
class Exits:
    """Exits of one run: by (phase, to user space or not, what for)."""

    counts: Counter[tuple[str, bool, str]] = field(default_factory=Counter)

    def total(self, *, until: str = "end", user: bool = False) -> int:
        """Exits in all phases up to and with ``until``; only those to user space if ``user``."""
        phases = PHASES[: PHASES.index(until) + 1]
        return sum(
            n for (phase, to_user, _), n in self.counts.items()
            if phase in phases and (to_user or not user)
        )  # fmt: skip

    def causes(self, *, user: bool) -> list[tuple[str, int]]:
        """The causes, commonest first; ``user`` chooses those to user space or those in KVM."""
        found: Counter[str] = Counter()
        for (_, to_user, cause), n in self.counts.items():
            if to_user == user:
                found[cause] += n
        return found.most_common()


class Trace:
    """Events of the runs that start inside the ``with`` block."""

    def __init__(self, entries: Sequence[int], *, count: bool) -> None:
        """``entries``: where guests begin. ``count``: every exit too, which costs time."""
        self._count = count
        begins = (RESET_VECTOR, *entries)
        self._filters = {
            "kvm_entry": " || ".join(f"rip == {address:#x}" for address in begins),
            "kvm_pio": f"port == {MARK_PORT:#x}",
        }
        if count:
            self._filters |= dict.fromkeys(COUNTED, "0")
        self._lines: list[str] = []

    def __enter__(self) -> Trace:
        if not (ROOT / "events").exists():
            subprocess.run(["mount", "-t", "tracefs", "tracefs", str(ROOT)], check=True)
        _write("tracing_on", "0")
        _write("trace_clock", "mono")
        _write("buffer_size_kb", "32768" if self._count else "1024")
        _write("options/event-fork", "1")
        _write("set_event_pid", str(os.getpid()))
        _write("trace", "")
        for name, condition in self._filters.items():
            _write(f"events/kvm/{name}/filter", condition)
            _write(f"events/kvm/{name}/enable", "1")
        _write("tracing_on", "1")
        return self

    def __exit__(self, *exc: object) -> None:
        _write("tracing_on", "0")
        for name in self._filters:
            _write(f"events/kvm/{name}/enable", "0")
            _write(f"events/kvm/{name}/filter", "0")
        self._lines = (ROOT / "trace").read_text().splitlines()
        _write("set_event_pid", "")
        _write("trace", "")

    def times(self) -> dict[str, float]:
        """CLOCK_MONOTONIC of ``first`` guest instruction, ``init``, ``program``, ``ended``."""
        found: dict[str, float] = {}
        for time, name, text in self._events():
            if name == "kvm_entry":
                found.setdefault("first", time)
            elif (mark := _MARK.match(text)) and (number := int(mark[1], 0)) in (1, 2, 3):
                found.setdefault(("init", "program", "ended")[number - 1], time)
        return found

    def exits(self) -> Exits:
        """Every exit, and what it was for."""
        exits, phase = Exits(), 0
        reason, detail, user = "", "", False

        def finish() -> None:
            if reason:
                exits.counts[PHASES[min(phase, 3)], user, detail or reason] += 1

        for _, name, text in self._events():
            if name == "kvm_exit":
                finish()
                reason, detail, user = _reason(text), _port(text), False
            elif name == "kvm_userspace_exit":
                user = True
                if "KVM_EXIT_IO" not in text and "KVM_EXIT_MMIO" not in text:
                    detail = detail or text.removeprefix("reason ").split(" (")[0]
            elif name == "kvm_mmio" and not user:
                detail = _mmio(text) or detail
            elif name == "kvm_msr":
                detail = f"msr {text.split()[1]}"
            elif name == "kvm_pio" and (mark := _MARK.match(text)):
                user = True  # the trace says so only after this
                finish()
                reason, phase = "", int(mark[1], 0)
        finish()
        return exits

    def _events(self) -> list[tuple[float, str, str]]:
        return [(float(m[1]), m[2], m[3]) for line in self._lines if (m := _LINE.search(line))]


def _write(name: str, text: str) -> None:
    (ROOT / name).write_text(text + "\n")


def _reason(text: str) -> str:
    match = re.search(r"reason (\S+)", text)
    reason = match[1].lower() if match else "?"
    return {"npf": "RAM page fault", "ept_violation": "RAM page fault"}.get(reason, reason)


def _port(text: str) -> str:
    """The port of an I/O exit: bits 16 to 31 of its information word, on Intel and AMD alike."""
    match = re.search(r"reason (io|IO_INSTRUCTION) .*info1 (0x[0-9a-f]+)", text)
    if not match:
        return ""
    port = int(match[2], 16) >> 16 & 0xFFFF
    name = next((n for low, high, n in _PORTS if low <= port <= high), "")
    return f"port {name}" if name else f"port {port:#x}"


def _mmio(text: str) -> str:
    match = re.match(r"mmio (write|unsatisfied-read|read) len \d+ gpa (0x[0-9a-f]+)", text)
    if not match:
        return ""
    address = int(match[2], 16)
    low, name = next(((lo, n) for lo, high, n in _PLACES if lo <= address <= high), (0, "mmio"))
    if not name.startswith("virtio"):
        return name if low else f"mmio {address:#x}"
    offset = (address - low) % (0x200 if name == "virtio" else 0x1000)
    if offset >= 0x100:
        return f"{name} configuration"
    return f"{name} {_REGISTERS.get(offset, 'set-up')}"
