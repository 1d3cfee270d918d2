"""What perf counts of a guest, from mark to mark, over all vCPUs."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

from pyvmm import layout
from pyvmm.counters import EVENTS, open_all

from .tiny import FOREVER, RESET, Guest, load_rbx, out, store, text, until_word_is
from .tracepoint import tracepoint

SOFTWARE, DUMMY, NONE = 1, 9, 99  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY
BEGIN, END = out(layout.PORT_MARK, 2), out(layout.PORT_MARK, 3)
TICKETS, GO, DONE = 0x200000, 0x200040, 0x200080


def between(report: dict, number: int) -> int:
    """What the counter counted from the program's begin to its end."""
    marks = report["counters"][number]["marks"]
    return marks["ended"]["count"] - marks["program"]["count"]


def test_one_vcpu(kvm_fd):
    """Each write to a port is one event; that of the second mark, too, before it is noted."""
    events = [tracepoint("kvm_pio"), (SOFTWARE, NONE), (SOFTWARE, DUMMY)]
    code = text(b"not counted") + BEGIN + text(b"counted") + END + text(b"nor this") + RESET
    with Guest(kvm_fd, code, events=events) as guest:
        report = guest.run()
    counters = report["counters"]
    assert [(each["errno"], each["user"]) for each in counters] == [
        (0, 0),
        (errno.ENOENT, 0),
        (0, 0),
    ]
    assert [set(each["marks"]) for each in counters] == [
        {"program", "ended"},
        set(),
        {"program", "ended"},
    ]
    assert (between(report, 0), between(report, 2)) == (8, 0)
    exits = report["marks"]["ended"]["exits"] - report["marks"]["program"]["exits"]
    assert between(report, 0) == exits
    for each in counters[0]["marks"].values():
        assert each["enabled_ns"] == each["running_ns"] > 0


def take_ticket() -> bytes:
    """mov eax, 1; lock xadd [TICKETS], eax; test eax, eax"""
    return load_rbx(TICKETS) + b"\xb8\x01\x00\x00\x00\xf0\x0f\xc1\x03\x85\xc0"


def increment(address: int) -> bytes:
    """lock inc word [address]"""
    return load_rbx(address) + b"\x66\xf0\xff\x03"


def test_all_vcpus(kvm_fd):
    """One writes the marks while the others run: their counts are in what it notes."""
    vcpus = 3
    first = until_word_is(TICKETS, vcpus) + BEGIN + store(GO, 1) + text(b"first")
    first += until_word_is(DONE, vcpus - 1) + END + RESET
    others = until_word_is(GO, 1) + text(b"other") + increment(DONE) + FOREVER
    jump = b"\x0f\x85" + struct.pack("<i", len(first))  # jnz others
    code = text(b"begin") + take_ticket() + jump + first + others
    with Guest(kvm_fd, code, vcpus=vcpus, irqchip=False, events=[tracepoint("kvm_pio")]) as guest:
        report = guest.run()
        assert len(guest.console) == 2 * 5 * vcpus
    assert between(report, 0) == 5 * vcpus + 1


def test_nothing_is_counted_that_was_not_asked_for(kvm_fd):
    with Guest(kvm_fd, BEGIN + END + RESET) as guest:
        assert guest.run()["counters"] == []


def test_hardware():
    """Each either counts, or says why not: no PMU is the reason that Linux has."""
    pmu = Path("/sys/bus/event_source/devices/cpu").exists()
    opened = open_all(EVENTS.values())
    for each in opened:
        if each["fd"] >= 0:
            os.close(each["fd"])
    assert {each["errno"] for each in opened} <= ({0, errno.ENOENT} if pmu else {errno.ENOENT})


def test_without_rights():
    """Whoever may not watch the kernel counts user mode only, or nothing (Debian's level 3)."""
    script = (
        "import os; from pyvmm.counters import open_all;"
        "os.getuid() or os.setresuid(65534, 65534, 65534);"
        f"print([(c['errno'], c['user']) for c in open_all([({SOFTWARE}, {DUMMY})])])"
    )
    line = [sys.executable, "-c", script]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    paranoid = int(Path("/proc/sys/kernel/perf_event_paranoid").read_text())
    expected = (0, 0) if paranoid < 2 else (0, 1) if paranoid == 2 else (errno.EACCES, 1)
    assert done.stdout == f"[{expected}]\n"
