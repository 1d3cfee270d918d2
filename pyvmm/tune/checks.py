"""What on this host disturbs a benchmark: readings, each with a verdict and the mend.

Everything is read below a root, and nothing needs to be root. Meanings: Linux, admin-guide/pm,
admin-guide/kernel-parameters, filesystems/proc.rst.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from typing import Literal

from ..placement import parse_list, ranges
from .knobs import CPU, KERNEL, KNOBS, Knob, look
from .partition import host_layout, interrupts, obstacle
from .session import LATENCY

SAMPLE = 0.5  # seconds, for steal time
APPLY = "pyvmm tune --apply"
HUGE = "sys/kernel/mm/transparent_hugepage/enabled"
CLOCK = "sys/devices/system/clocksource/clocksource0/current_clocksource"
# KVM gives guests a clock that they read without an exit only over these (Linux, virt/kvm/x86).
GOOD_CLOCKS = "tsc", "hyperv_clocksource_tsc_page"


@dataclass(frozen=True)
class Check:
    """One reading."""

    name: str
    reading: str
    verdict: Literal["fine", "disturbs", "unknown"] = "fine"
    why: str = ""
    """how it disturbs, or why it is not known"""
    mend: str = ""


def checks(root: str = "/") -> Iterator[Check]:
    """All of them; takes half a second, for the steal time."""
    seen = set()
    for knob in KNOBS:
        if knob.name not in seen:
            seen.add(knob.name)
            yield _swap(root, knob) if knob.name == "swappiness" else _knob(root, knob.name)
    yield _c_states(root)
    yield _huge_pages(root)
    yield _interrupts(root)
    yield _irqbalance(root)
    yield _isolated(root)
    yield _partition(root)
    yield _load(root)
    yield _throttling(root)
    yield _virtualised(root)
    yield _clock(root)
    yield _halt_poll(root)
    yield _counters(root)
    yield _steal(root)


# ---- knobs ----


def _knob(root: str, name: str) -> Check:
    """A name's knobs: those of them that this host has."""
    counts: dict[str, int] = {}
    bad = False
    knobs = [knob for knob in KNOBS if knob.name == name]
    for knob in knobs:
        for path in knob.paths(root):
            value = look(root, path)
            if value is None:
                return Check(name, "?", "unknown", f"{os.path.join(root, path)} cannot be read")
            counts[value] = counts.get(value, 0) + 1
            bad |= knob.disturbs(root, value)
    if not counts:
        absent = knobs[0].absent
        return Check(name, "absent", "unknown" if absent else "fine", absent)
    many = sum(counts.values()) > 1
    reading = ", ".join(f"{v} ({n} CPUs)" if many else v for v, n in counts.items())
    return Check(name, reading, "disturbs", knobs[0].why, APPLY) if bad else Check(name, reading)


def _swap(root: str, knob: Knob) -> Check:
    areas = (look(root, "proc/swaps") or "").splitlines()[1:]
    found = _knob(root, knob.name)
    return found if areas else Check(knob.name, f"{found.reading}, and no swap")


# ---- CPUs ----


def _c_states(root: str) -> Check:
    name = "C-states"
    driver = look(root, f"{CPU}/cpuidle/current_driver")
    if driver is None:
        return Check(name, "absent", "unknown", "no cpuidle here: the hypervisor may have some")
    states = [
        int(look(root, f"{state}/latency") or 0)
        for state in glob(f"{CPU}/cpu[0-9]*/cpuidle/state[0-9]*", root_dir=root)
        if look(root, f"{state}/disable") != "1"
    ]
    if not any(states):
        return Check(name, driver)
    reading = f"{driver}, up to {max(states)} us to wake up"
    if _latency_limit(root) == 0:
        return Check(name, f"{reading}, held at 0")
    return Check(
        name,
        reading,
        "disturbs",
        "a CPU that slept wakes up late, and slow",
        "pyvmm bench --tune, which holds /dev/cpu_dma_latency at 0; or boot with "
        "intel_idle.max_cstate=0 processor.max_cstate=1",
    )


def _latency_limit(root: str) -> int | None:
    """Microseconds that anybody who holds /dev/cpu_dma_latency allows; None for who is not root."""
    try:
        with open(os.path.join(root, LATENCY), "rb", buffering=0) as file:
            (limit,) = struct.unpack("=i", file.read(4))
            return int(limit)
    except (OSError, struct.error):
        return None


def _isolated(root: str) -> Check:
    name = "isolated CPUs"
    benchmark, housekeeping = host_layout(root)
    isolated = look(root, f"{CPU}/isolated") or "none"
    nohz = (look(root, f"{CPU}/nohz_full") or "none").strip("()").replace("null", "none")
    reading = f"isolcpus {isolated}, nohz_full {nohz}"
    if isolated != "none" and nohz != "none":
        return Check(name, reading)
    why = "the timer tick and other processes' threads run on all CPUs"
    if not housekeeping:
        return Check(name, reading, "disturbs", why, "a host with two cores or more")
    cpus = ranges(sorted(benchmark))
    boot = f"boot with isolcpus={cpus} nohz_full={cpus} rcu_nocbs={cpus}"
    return Check(name, reading, "disturbs", why, boot)


def _partition(root: str) -> Check:
    name = "cpuset partition"
    benchmark, _ = host_layout(root)
    why = obstacle(root, benchmark)
    if why:
        text = "other processes may run on the benchmark's CPUs"
        return Check(name, f"not possible: {why}", "disturbs", text, "boot with cgroup2 alone, "
                     "systemd.unified_cgroup_hierarchy=1, on two cores or more")  # fmt: skip
    return Check(name, f"possible, of CPUs {ranges(sorted(benchmark))}")


def _throttling(root: str) -> Check:
    name = "thermal throttling"
    pattern = f"{CPU}/cpu[0-9]*/thermal_throttle/*_throttle_count"
    counts = [int(look(root, path) or 0) for path in glob(pattern, root_dir=root)]
    if not counts:
        return Check(name, "absent", "unknown", "this host does not count it")
    reading = f"{max(counts)} times since boot"
    if not any(counts):
        return Check(name, reading)
    return Check(name, reading, "disturbs", "a hot CPU is slowed down", "better cooling")


# ---- memory ----


def _huge_pages(root: str) -> Check:
    name = "huge pages"
    text = look(root, HUGE)
    if text is None:
        return Check(name, "absent", "unknown", "this kernel has no transparent huge pages")
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen != "never":
        return Check(name, chosen)  # why madvise is as good: knobs.py
    why = "guest memory is in small pages: its page walks are longer"
    return Check(name, chosen, "disturbs", why, f"echo madvise > /{HUGE}")


# ---- what else runs ----


def _interrupts(root: str) -> Check:
    name = "IRQ affinity"
    benchmark, housekeeping = host_layout(root)
    lists = [parse_list(look(root, path) or "") for path in interrupts(root)]
    if not lists:
        return Check(name, "absent", "unknown", "no interrupts in /proc/irq")
    there = sum(bool(set(cpus) & set(benchmark)) for cpus in lists)
    cpus = ranges(sorted(benchmark))
    reading = f"{there} of {len(lists)} may arrive on the benchmark's CPUs, {cpus}"
    if not there:
        return Check(name, reading)
    mend = APPLY if housekeeping else "a host with two cores or more"
    return Check(name, reading, "disturbs", "interrupts stop the guest", mend)


def _irqbalance(root: str) -> Check:
    name = "irqbalance"
    for path in glob("proc/[0-9]*/comm", root_dir=root):
        if look(root, path) == "irqbalance":
            pid = path.split("/")[1]
            why = "moves interrupts to any CPU, at any time"
            return Check(name, f"runs, pid {pid}", "disturbs", why, "systemctl stop irqbalance")
    return Check(name, "does not run")


def _load(root: str) -> Check:
    name = "load"
    text = look(root, "proc/loadavg")
    if text is None:
        return Check(name, "?", "unknown", "/proc/loadavg cannot be read")
    load = float(text.split()[0])
    cpus = len(parse_list(look(root, f"{CPU}/online") or "0"))
    reading = f"{load:.2f} in the last minute, on {cpus} CPUs"
    if load <= max(0.5, cpus / 20):
        return Check(name, reading)
    return Check(name, reading, "disturbs", "others want the CPUs, too", "stop what else runs: top")


# ---- above and below us ----


def _virtualised(root: str) -> Check:
    name = "virtualised"
    flags: set[str] = set()
    for line in (look(root, "proc/cpuinfo") or "").splitlines():
        if line.startswith("flags"):
            flags.update(line.partition(":")[2].split())
            break
    if not flags:
        return Check(name, "?", "unknown", "/proc/cpuinfo has no flags")
    if "hypervisor" not in flags:
        return Check(name, "no")
    dmi = (look(root, f"sys/class/dmi/id/{file}") for file in ("sys_vendor", "product_name"))
    by = " ".join(word for word in dmi if word)
    return Check(name, f"yes, by {by}" if by else "yes", "disturbs",
                 "other machines share CPUs, caches and disks with this one",
                 "a machine of its own; or compare by pyvmm duet")  # fmt: skip


def _clock(root: str) -> Check:
    name = "clock source"
    clock = look(root, CLOCK)
    if clock is None:
        return Check(name, "?", "unknown", f"/{CLOCK} cannot be read")
    if clock in GOOD_CLOCKS:
        return Check(name, clock)
    return Check(name, clock, "disturbs", "each reading of a guest's clock may be an exit",
                 "dmesg | grep -i tsc says why; boot with tsc=reliable if it is")  # fmt: skip


def _halt_poll(root: str) -> Check:
    name = "KVM halt polling"
    text = look(root, "sys/module/kvm/parameters/halt_poll_ns")
    if text is None:
        return Check(name, "absent", "unknown", "no KVM module with this parameter")
    if text != "0":
        return Check(name, f"{text} ns")
    return Check(name, "0 ns", "disturbs", "each wait of a guest puts its CPU to sleep",
                 "echo 200000 > /sys/module/kvm/parameters/halt_poll_ns")  # fmt: skip


def _counters(root: str) -> Check:
    """What noise cannot move: perf_event_open(2) of guest mode, by others than root, asks for 1."""
    name = "hardware counters"
    text = look(root, f"{KERNEL}/perf_event_paranoid")
    if text is None:
        return Check(name, "absent", "unknown", "this kernel has no perf events")
    reading = f"perf_event_paranoid {text}"
    if int(text) <= 1:
        return Check(name, reading)
    return Check(name, reading, "disturbs", "only root may count a guest's instructions",
                 "sysctl kernel.perf_event_paranoid=1")  # fmt: skip


def _steal(root: str) -> Check:
    name = "steal time"
    before = _times(root)
    time.sleep(SAMPLE)
    share = steal(before, _times(root))
    if share is None:
        return Check(name, "?", "unknown", "/proc/stat did not move")
    reading = f"{share:.1%} of {SAMPLE:g} s"
    if share == 0:
        return Check(name, reading)
    return Check(name, reading, "disturbs", "the hypervisor gave our CPUs to others",
                 "a machine of its own; or compare by pyvmm duet")  # fmt: skip


def _times(root: str) -> list[int]:
    """The ticks of all CPUs: user, nice, system, idle, iowait, irq, softirq, steal."""
    line = (look(root, "proc/stat") or "cpu").partition("\n")[0]
    return [int(word) for word in line.split()[1:9]]


def steal(before: list[int], after: list[int]) -> float | None:
    """The stolen share, 0 to 1, of the CPU time between two _times(); None if there is none."""
    spent = [b - a for a, b in zip(before, after, strict=False)]
    total = sum(spent)
    return spent[7] / total if len(spent) == 8 and total > 0 else None
