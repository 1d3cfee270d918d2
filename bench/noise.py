#!/usr/bin/env python3
"""Duets on a host that is made noisy: alarms where there is no difference, and a true 3 % found.

    python3 bench/noise.py [EQUAL [DIFFERENT [PAIRS]]]

Prints a line for each duet, then how many of the equal ones raised an alarm and how many of the
others were found. The noise is a process that takes CPU and caches for random times.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import time

from pyvmm.benchmark.calibrate import MORE, amount, measure
from pyvmm.benchmark.statistics import Ratio, differs, paired_ratio
from pyvmm.options import Options

VM: Options = {"memory": "96M", "kernel": "minimal"}
DEFAULTS = "20", "20", "120"
BURST, REST = 0.002, 0.03  # seconds at most that the noise works, and rests


def main() -> None:
    words = (*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :])
    equal, different, pairs = (int(word) for word in words)
    noise = multiprocessing.Process(target=disturb, daemon=True)
    noise.start()
    try:
        work = amount(VM)
        more = round(work * (1 + MORE))
        alarms = sum(found("equal", work, work, pairs) for _ in range(equal))
        seen = sum(found(f"{MORE:.0%} more", work, more, pairs) for _ in range(different))
    finally:
        noise.kill()
    print(f"of {pairs} pairs: {alarms} alarms in {equal} equals, {seen} of {different} found")


def found(what: str, old: int, new: int, pairs: int) -> bool:
    began = time.monotonic()
    report = measure({"A": old, "B": new}, pairs, VM)
    ratio: Ratio = paired_ratio(*(each.series["time"].values for each in report.benchmarks))
    differ = differs(ratio)
    low, high = (ratio.interval.low, ratio.interval.high) if ratio.interval else (0, 0)
    print(
        f"{what:8} {ratio.value:.4f} [{low:.4f}, {high:.4f}] p {ratio.p:.4f} "
        f"{'differs' if differ else 'same':7} {time.monotonic() - began:5.1f} s",
        flush=True,
    )
    return differ


def disturb() -> None:
    """Take the CPU, and its caches, for short times: some 6 % of it on average."""
    chance = random.Random(1)
    block = bytearray(1 << 20)
    while True:
        end = time.monotonic() + chance.random() * BURST
        while time.monotonic() < end:
            block[:] = block[::-1]
        time.sleep(chance.random() * REST)


if __name__ == "__main__":
    main()
