"""Programs that attack their guest, and through it the host: hostile.c, and what a shell can do.

Each ends as it should, nothing is left behind (the ``host`` fixture), and the next run, at last a
harmless one, is as if nothing had been.
Kernels that attack are in tests/kvm/test_hostile_kernel.py.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
from harness import RUN_LIMIT, UNTIL_GO, Done, Host, Running

MiB = 1 << 20
GRACE = 5.0  # seconds that a guest has after its program's time (pyvmm/exchange.py)
SLACK = 60.0  # for the box, where everything takes its time


def attack(host: Host, *words: str, **options: str) -> Running:
    settings = {"image": "hostile", "kernel": "minimal", "disk": "64M", "memory": "192M"} | options
    return host.start(*words, **settings)


def privileged(host: Host, *words: str, **options: str) -> Done:
    running = attack(host, "hostile", *words, privileged="", **options)
    return running.finish()


def peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("VmHWM:")]
    return int(line.split()[1]) << 10


def late(running: Running, seconds: float) -> Done:
    """Its end, not long after its time is over."""
    running.until(b"begins\n")
    began = time.monotonic()
    done = running.finish()
    assert time.monotonic() - began < seconds + GRACE + SLACK
    return done


def test_fork_bomb(host: Host) -> None:
    running = attack(host, "sh", "-c", "echo begins; hostile forks", timeout="10")
    done = late(running, 10)
    assert (done.code, done.out) == (124, b"begins\n")
    assert done.err == b"pyvmm: timed out after 10 s\n"


def test_full_disk(host: Host) -> None:
    """The guest has no more room; the host gave no more than the disk."""
    running = attack(host, "sh", "-c", "hostile fill; sleep 3600")
    running.until(b"No space left on device\n")
    overlays = []
    for fd in Path(f"/proc/{running.worker()}/fd").iterdir():
        with suppress(OSError):
            status = fd.stat()
            if os.readlink(fd).endswith("(deleted)") and status.st_size == 64 * MiB:
                overlays.append(status)
    (overlay,) = overlays
    assert 32 * MiB < overlay.st_blocks * 512 <= 64 * MiB
    running.process.terminate()
    assert running.finish().code == 143


def test_output_without_end(host: Host, tmp_path: Path) -> None:
    """Cut where it was told, and no more held than that."""
    running = attack(
        host, "sh", "-c", "echo begins >&2; yes", timeout="20", max_output="1M",
        json=str(tmp_path / "result"),
    )  # fmt: skip
    deadline = time.monotonic() + RUN_LIMIT
    memory, worker = 0, 0
    while running.process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError, ValueError):
            worker = worker or running.worker()
            memory = max(memory, peak(worker))
        time.sleep(0.05)
    done = running.finish(1)
    assert done.code == 124
    assert done.out == b"y\n" * (MiB // 2)
    assert done.err == (
        b"pyvmm: stdout: longer than --max-output 1M, cut there\n"
        b"pyvmm: timed out after 20 s\nbegins\n"
    )
    assert 32 * MiB < memory < 256 * MiB


def test_output_file_without_end(host: Host, tmp_path: Path) -> None:
    """A sparse file of half a terabyte is as good as one of what is kept."""
    running = attack(
        host, "truncate", "-s", "512G", "/out", output=f"/out:{tmp_path}/out", max_output="1M"
    )
    done = running.finish()
    done.check(0, b"", b"pyvmm: /out: longer than --max-output 1M, cut there\n")
    assert (tmp_path / "out").read_bytes() == bytes(MiB)
    os.unlink(tmp_path / "out")


def test_everything_killed(host: Host) -> None:
    """init and who asks are what is left."""
    script = "sleep 3600 & kill -9 1; kill -9 -1; wait; echo alive"
    attack(host, "sh", "-c", script).finish().check(0, b"alive\n")


def test_ports_are_nobody_s(host: Host) -> None:
    done = attack(host, "hostile", "ports").finish()
    done.check(1, b"", b"iopl: Operation not permitted\n")


def test_ports(host: Host, kernel: str) -> None:
    done = privileged(host, "ports", kernel=kernel)
    assert (done.code, done.out) == (125, b"")
    assert done.err.startswith(b"pyvmm: guest ended early: ports done\n")


def test_devices_registers(host: Host) -> None:
    """The minimal kernel has no /dev/mem."""
    done = privileged(host, "registers", kernel="stock", cmdline_extra="iomem=relaxed")
    assert (done.code, done.out) == (125, b"")
    assert done.err.startswith(b"pyvmm: guest ended early: registers done\n")


@pytest.mark.parametrize("rights", [{}, {"privileged": ""}])
def test_vsock(host: Host, kernel: str, rights: dict[str, str]) -> None:
    """Every port is refused, init's own too; the results come over it as ever."""
    done = attack(host, "hostile", "vsock", kernel=kernel, **rights).finish()
    done.check(0, b"500 refused, 0 not\n")


def test_connection_is_init_s_alone(host: Host) -> None:
    done = attack(host, "hostile", "hang-up").finish()
    done.check(1, b"", b"pidfd_getfd: Operation not permitted\n")


def test_connection_stolen_and_closed(host: Host) -> None:
    """The host hears it, and as it ends the machine init hears it too, and says so before."""
    done = privileged(host, "hang-up")
    assert (done.code, done.out) == (125, b"")
    assert done.err.splitlines()[0] in (
        b"pyvmm: the guest did not send its outputs: it closed its connection",
        b"pyvmm: guest ended early: pyvmm-init: host connection: closed by the host",
    )


def test_connection_stolen_and_lied_on(host: Host) -> None:
    done = privileged(host, "forge", "99")
    assert (done.code, done.out) == (125, b"")
    assert done.err.startswith(b"pyvmm: the guest's agent sent an unknown frame type 99\n")


def test_init_halted(host: Host) -> None:
    """Nobody there to kill the program: the machine ends all the same."""
    script = f"echo begins; {UNTIL_GO} hostile halt-init"
    running = attack(host, "sh", "-c", script, privileged="", timeout="15", name="halts")
    running.until(b"begins\n")  # init passes it on
    host.let_go("halts")
    done = late(running, 15)
    assert done.code == 124
    assert done.out in (b"begins\n", b"begins\nattached\n")
    assert done.err == b"pyvmm: timed out after 15 s\n"


def test_a_run_after_all_this_is_fine(host: Host) -> None:
    host.run("echo", "fine", kernel="minimal").check(0, b"fine\n")
