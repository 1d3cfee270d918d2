"""Disk throughput through the guest (disk.c), as rows: here more is better."""

from __future__ import annotations

import statistics
import subprocess
from pathlib import Path
from types import ModuleType

import image
import ours
import qemu
from measure import Bench, say
from subject import Subject, prepare
from table import Row

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "bench/disk.c"
PROGRAM = ROOT / "build/bench-disk"
FILE_MIB = 16
RUNS = 3
GOAL = 1.0  # at least so many times the peer's
UNITS = ("MiB/s", "ops/s")
WORDS = {"read": "sequential read", "write": "sequential write",
         "random-read": "random 4 KiB read", "random-write": "random 4 KiB write"}  # fmt: skip


def compile() -> None:
    """Where there is a compiler, which the kvmbox is not."""
    if not PROGRAM.exists() or PROGRAM.stat().st_mtime < SOURCE.stat().st_mtime:
        PROGRAM.parent.mkdir(exist_ok=True)
        subprocess.run(["cc", "-O2", "-static", "-o", PROGRAM, SOURCE], check=True)


def subject(kernel: str, directory: Path) -> Subject:
    """An image with the program and its file, which no hole can be made of."""
    data = bytes(range(1, 256)) * ((FILE_MIB << 20) // 255 + 1)
    files = {"bin/disk": PROGRAM.read_bytes(), "data": data[: FILE_MIB << 20]}
    return prepare(kernel, image.make(directory, files))


def measure(bench: Bench, kernel: str, directory: Path) -> None:
    """Add the rows of one kernel."""
    made = subject(kernel, directory)
    taken: dict[str, list[dict[str, float]]] = {vmm.NAME: [] for vmm in bench.vmms}
    for number in range(RUNS):
        for vmm in bench.vmms:
            taken[vmm.NAME].append(run(vmm, made))
            say(f"{kernel} disk run {number + 1}: {vmm.NAME}")
    for test in taken[ours.NAME][0]:
        name, _, depth = test.rpartition("-")
        both = [
            statistics.median(found[test] for found in taken[vmm]) if vmm in taken else None
            for vmm in (ours.NAME, qemu.NAME)
        ]
        unit, figure = UNITS["random" in name], f"{WORDS[name]}, depth {depth}"
        row = Row(kernel, "disk", figure, unit, both[0], qemu.NAME, both[1], GOAL, more=True)
        bench.rows.append(row)


def run(vmm: ModuleType, subject: Subject) -> dict[str, float]:
    """Test and figure, of one run."""
    said = vmm.output(subject, ["/bin/disk", "/data"])
    return {name: float(value) for name, value in map(str.split, said.splitlines())}
