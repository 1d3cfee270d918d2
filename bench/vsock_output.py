"""A program's output on its way to the caller: how fast, and what it costs the program."""

from __future__ import annotations

import statistics

from measure import MIB, Bench, say
from table import Row
from vsock_guests import Guest, Order, Output, Rate

PLAIN = "a plain vsock stream"
SILENT = "the same, silent"
SIZE = 64 << 10
AMOUNT = 32 * MIB
CHUNKS = 214  # of 64 KiB: 14 MB
AS_FAST, AS_LONG = 0.8, 1.02  # the goals: at least, at most


def rows(kernel: str, guest: Guest, output: Output, bench: Bench) -> list[Row]:
    return [_speed(kernel, guest, output, bench), *_cost(kernel, guest, output, bench)]


def _speed(kernel: str, guest: Guest, output: Output, bench: Bench) -> Row:
    """on_stdout beside a stream of the same bytes, which C reads."""
    plain, printed = [], []
    for _ in range(bench.runs):
        plain.append(guest.move(Order("send", 1, SIZE, AMOUNT)).statistics["ns"] / 1e9)
        output.expect(AMOUNT)
        guest.order(Order("print", 1, SIZE, AMOUNT))
        printed.append(output.seconds())
        assert guest.answer() == "done"
    rate = Rate.of(bench.clock)
    both = [rate.speed(AMOUNT / MIB, statistics.median(taken)) for taken in (printed, plain)]
    row = Row(kernel, "vsock", "standard output, 64 KiB writes", rate.unit, both[0],
              PLAIN, both[1], AS_FAST, more=True)  # fmt: skip
    say(row.told())
    return row


def _cost(kernel: str, guest: Guest, output: Output, bench: Bench) -> list[Row]:
    """CPU time by the guest's own count, from which it takes what KVM says was stolen."""
    taken: dict[int, list[tuple[float, float]]] = {0: [], SIZE: []}
    for _ in range(bench.runs):
        for size, had in taken.items():
            output.expect(size * CHUNKS)
            guest.order(Order("compute", 1, size, CHUNKS))
            work, whole = guest.answer().split()
            output.seconds()
            scale = bench.clock.per_second / 1e9
            had.append((int(work) * scale, int(whole) * scale))
    figures = "CPU time of computing meanwhile, 14 MB of output", "the same, and of its write(2)s"
    made = []
    for index, (figure, goal) in enumerate(zip(figures, (AS_LONG, None), strict=True)):
        both = [statistics.median(one[index] for one in taken[size]) for size in (SIZE, 0)]
        made.append(Row(kernel, "vsock", figure, bench.clock.unit, both[0], SILENT, both[1], goal))
        say(made[-1].told())
    return made
