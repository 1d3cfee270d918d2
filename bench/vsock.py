"""The vsock device beside vhost-vsock: throughput, round trips, and what they cost, as rows."""

from __future__ import annotations

import json
import statistics
from contextlib import ExitStack
from pathlib import Path

import image
import ours
import qemu
import vsock_output
from measure import MIB, Bench, Clock, say
from subject import prepare
from table import Row
from vsock_guests import GUESTS, PROGRAM, ROOT, Guest, Order, Output, Rate, Taken

WARM = (Order("send", 1, 64 << 10, MIB), Order("receive", 1, 64 << 10, MIB))
WRITES = {4 << 10: "4 KiB", 64 << 10: "64 KiB", 1 << 20: "1 MiB"}
DIRECTIONS = {"send": "guest to host", "receive": "host to guest"}
STREAMS = (1, 8)
# MiB that take a second or so in the kvmbox.
AMOUNTS = {
    ("send", 4 << 10): 4, ("send", 64 << 10): 32, ("send", 1 << 20): 32,
    ("receive", 4 << 10): 16, ("receive", 64 << 10): 32, ("receive", 1 << 20): 48,
}  # fmt: skip
ECHO = Order("echo", 1, 64, 200)
FASTER, SOONER, FEWER = 1.5, 0.8, 0.5  # the goals: at least, at most, at most
COUNTED = {"exits": "exits", "irq_injections": "interrupts"}
Found = dict[str, list[Taken]]  # by VMM


def orders() -> list[Order]:
    streams = [
        Order(kind, streams, size, (mib << 20) // streams)
        for (kind, size), mib in AMOUNTS.items() for streams in STREAMS
    ]  # fmt: skip
    return [*streams, ECHO]


def measure(bench: Bench, kernel: str, directory: Path) -> None:
    """Add the rows of one kernel. Both VMs are there all the time, and take turns."""
    subject = prepare(kernel, image.make(directory, {"bin/vsock": PROGRAM.read_bytes()}))
    output = Output()
    raw = {}
    with ExitStack() as stack:
        guests = {
            vmm.NAME: stack.enter_context(GUESTS[vmm.NAME](subject, output)) for vmm in bench.vmms
        }
        for guest in guests.values():
            for order in WARM:
                guest.move(order)
        for order in orders():
            found = take(guests, order, bench.runs)
            made = echo_rows if order == ECHO else rows_of
            rows = made(kernel, bench.clock, order, found)
            bench.rows += rows
            raw[repr(order)] = {name: [vars(one) for one in had] for name, had in found.items()}
            for row in rows:
                say(row.told())
            for name, had in found.items():
                say(f"  {name}: {spent(had)}")
        if ours.NAME in guests:
            bench.rows += vsock_output.rows(kernel, guests[ours.NAME], output, bench)
    by = "wall" if bench.clock.unit == "ms" else "icount"
    (ROOT / f"build/bench-vsock-{by}.json").write_text(json.dumps(raw))


def take(guests: dict[str, Guest], order: Order, runs: int) -> Found:
    found: Found = {name: [] for name in guests}
    for _ in range(runs):
        for name, guest in guests.items():
            found[name].append(guest.move(order))
    return found


def rows_of(kernel: str, clock: Clock, order: Order, found: Found) -> list[Row]:
    """Throughput, and what a MiB costs."""
    many = "1 stream" if order.streams == 1 else f"{order.streams} streams"
    figure = f"{DIRECTIONS[order.kind]}, {many}, {WRITES[order.size]} writes"
    mib = order.streams * order.amount / MIB
    rate = Rate.of(clock)
    speeds = {name: rate.speed(mib, _median(had, "ns") / 1e9) for name, had in found.items()}
    rows = [_row(kernel, figure, rate.unit, speeds, FASTER, more=True)]
    for key, what in COUNTED.items():
        counts = {name: _median(had, key) / mib for name, had in found.items()}
        rows.append(_row(kernel, f"the same, {what}", "a MiB", counts, FEWER))
    return rows


def echo_rows(kernel: str, clock: Clock, order: Order, found: Found) -> list[Row]:
    """Round trips, all of all rounds; and what one costs."""
    figure, unit = f"round trip of {order.size} bytes", clock.unit
    scale = clock.per_second / 1e9
    took = {
        name: sorted(ns * scale for one in had for ns in one.rounds) for name, had in found.items()
    }
    medians = {name: statistics.median(values) for name, values in took.items()}
    worst = {name: values[len(values) * 99 // 100] for name, values in took.items()}
    rows = [_row(kernel, f"{figure}, median", unit, medians, SOONER)]
    rows.append(_row(kernel, f"{figure}, p99", unit, worst, SOONER))
    for key, what in COUNTED.items():
        counts = {name: _median(had, key) / order.amount for name, had in found.items()}
        rows.append(_row(kernel, f"{figure}, {what}", "each", counts, FEWER))
    return rows


def spent(had: list[Taken]) -> str:
    """What share of the time each thread ran, and how often the host switched."""
    total = sum(one.statistics["ns"] for one in had)
    ran: dict[str, int] = {}
    for one in had:
        for thread, ns in one.cpu.items():
            ran[thread] = ran.get(thread, 0) + ns
    shares = [f"{thread} {ns / total:.0%}" for thread, ns in ran.items() if ns >= total / 100]
    return ", ".join((*shares, f"{_median(had, 'switches'):.0f} context switches"))


def _row(kernel: str, figure: str, unit: str, values: dict[str, float], goal: float,
         more: bool = False) -> Row:  # fmt: skip
    both = values.get(ours.NAME), values.get(qemu.NAME)
    return Row(kernel, "vsock", figure, unit, both[0], qemu.NAME, both[1], goal, more)


def _median(had: list[Taken], name: str) -> float:
    return statistics.median(one.statistics[name] for one in had)
