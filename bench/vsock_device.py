"""The vsock device alone (vsock_device.c): driven through its queues, without a guest and a KVM."""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path

from measure import say
from table import Row

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "bench/vsock_device.c"
PROGRAM = ROOT / "build/bench-vsock-device"
NOT_ITS = {"jail.c", "_core.c"}
WAYS = {"to-host": "guest to host", "to-guest": "host to guest"}
PACKETS = {64: 64 << 20, 4096: 2 << 30, 65536: 2 << 30}  # bytes each: bytes in all
LARGE = 65536
GOAL = 0.5  # of memcpy, in large packets


def measure(runs: int) -> list[Row]:
    """On this host, whatever its KVM can."""
    _compile()
    rows = []
    for way, words in WAYS.items():
        for size, amount in PACKETS.items():
            found = [_run(way, size, amount) for _ in range(runs)]
            rows += _rows(f"device alone, {words}, packets of {size}", size, found)
    for row in rows:
        say(row.told())
    return rows


def _rows(figure: str, size: int, found: list[dict[str, float]]) -> list[Row]:
    def median(name: str) -> float:
        return statistics.median(each[name] for each in found)

    speed, copied = (median(f"{name}bytes_per_second") / 1e9 for name in ("", "memcpy_"))
    goal = GOAL if size == LARGE else None
    return [
        Row("no", "vsock", figure, "GB/s", speed, "memcpy", copied, goal, more=True),
        Row("no", "vsock", f"{figure}: how many", "k/s", median("packets_per_second") / 1e3),
    ]


def _run(way: str, size: int, amount: int) -> dict[str, float]:
    done = subprocess.run(
        [PROGRAM, way, str(size), str(amount)], check=True, stdout=subprocess.PIPE
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _compile() -> None:
    sources = [SOURCE, *(each for each in (ROOT / "csrc").glob("*.c") if each.name not in NOT_ITS)]
    PROGRAM.parent.mkdir(exist_ok=True)
    flags = ["-O2", "-std=c11", "-D_GNU_SOURCE", f"-I{ROOT / 'csrc'}", "-pthread"]
    subprocess.run(["cc", *flags, "-o", PROGRAM, *sources], check=True)
