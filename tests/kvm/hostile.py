"""Builds the hostile kernel (hostile*.[cS]) and runs it as anybody's kernel: through Machine, so
that it has the worker's walls around it. What it must not leave behind is checked here.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyvmm import Machine, Result, launch, machine
from pyvmm.errors import GuestError

sys.path.append(str(Path(__file__).parents[1] / "unit"))

import images

MiB = 1 << 20
MEMORY, DISK = 64 * MiB, 16 * MiB
BESIDE = 64 * MiB
"""What a worker may have beside its guest's RAM: the interpreter, the device's buffers."""
GONE_IN = 60.0  # seconds

FLAGS = (
    *("-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-static"),
    *("-no-pie", "-fno-pic", "-mno-red-zone", "-mgeneral-regs-only", "-fno-stack-protector"),
    *("-fno-asynchronous-unwind-tables", "-fcf-protection=none"),
    "-fno-tree-loop-distribute-patterns",
    "-Wl,-N,-Ttext=0x100000,--build-id=none,--no-warn-rwx-segments",
)

# Programs that take random steps and then end the machine with "NAME done": how many steps, and
# how many CPUs. They take a second or two here, where KVM emulates each instruction.
RANDOM = {
    "ports": (1000, 1),
    "mmio": (500, 1),
    "queues": (200, 1),
    "races": (50, 2),
    "msrs": (500, 1),
    "interrupts": (200, 2),
    "requests": (300, 1),
}


class Host:
    """A kernel, an image, and runs with them."""

    def __init__(self, place: Path) -> None:
        self.kernel = place / "hostile"
        sources = sorted(Path(__file__).parent.glob("hostile*.[cS]"))
        subprocess.run(["gcc", *FLAGS, "-o", self.kernel, *sources], check=True)
        self.image = images.layout(place / "image", images.layer(images.directory("./")))
        self.fine()

    def fine(self) -> None:
        """A guest that only says so: everything is as it should be."""
        assert self.run("fine") == "guest ended early: fine"

    def run(self, program: str, seed: int = 1, count: int = 1, **options: Any) -> str | Result:
        """Run one and look after it; returns the GuestError's text, or the Result."""
        settings: dict[str, Any] = {
            "kernel": str(self.kernel),
            "memory": MEMORY,
            "disk": DISK,
            "cmdline_extra": f"hostile={program} seed={seed} count={count}",
            "boot_timeout": 60,
            "jail": "on",
        }
        vm = Machine(self.image, ["never"], **settings | options)
        ended: str | Result
        with nothing_left(), overlay_inside(vm.config.disk_bytes):
            with vm, watched(vm) as peak:
                try:
                    ended = vm.wait()
                except GuestError as error:
                    ended = str(error)
            assert max(peak) <= vm.config.memory_bytes + BESIDE
        return ended


@contextmanager
def nothing_left() -> Iterator[None]:
    """No descriptor and no process more than before; the server is the one that may stay."""
    gc.disable()  # what other tests have left to it may have descriptors
    before = len(os.listdir("/proc/self/fd")) if workers() is not None else None
    try:
        yield
        deadline = time.monotonic() + GONE_IN
        while workers() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert workers() == []
        if before is not None:
            assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def workers() -> list[str] | None:
    """The process ids of our server's children; None without a server."""
    server = launch.server._pid
    if not server:
        return None
    return Path(f"/proc/{server}/task/{server}/children").read_text().split()


@contextmanager
def overlay_inside(disk: int) -> Iterator[None]:
    """The run's writes to the disk take no more of the host than the disk's size."""
    kept: list[int] = []
    real = machine.open_overlay

    def opened(size: int) -> int:
        fd = real(size)
        kept.append(os.dup(fd))
        return fd

    machine.open_overlay = opened
    try:
        yield
        (fd,) = kept
        status = os.fstat(fd)
        assert status.st_size == disk
        assert status.st_blocks * 512 <= disk
        assert status.st_nlink == 0
    finally:
        machine.open_overlay = real
        for fd in kept:
            os.close(fd)


@contextmanager
def watched(vm: Machine) -> Iterator[list[int]]:
    """The worker's peak memory so far, in bytes, again and again."""
    seen, over = [0], threading.Event()
    status = Path(f"/proc/{vm.pid}/status")

    def look() -> None:
        while not over.wait(0.02):
            try:
                lines = status.read_text().splitlines()
            except OSError:
                return
            seen.extend(int(s.split()[1]) << 10 for s in lines if s.startswith("VmHWM:"))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()
