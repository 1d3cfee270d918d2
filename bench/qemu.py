"""QEMU's microvm with the same kernel, initramfs, disk and init, and the same conversation."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from subject import IDLE, MEMORY_MIB, TRUE, Run, Subject

from pyvmm import exchange, results

NAME = "QEMU microvm"
PROGRAM = "qemu-system-x86_64"
# The fastest that works (docs/performance.md tells of the others), by whether the kernel has ACPI.
# With it QEMU has no RTC and does not say so, and Linux reads that 40,000 times: give it one.
MACHINES = {
    False: "microvm,acpi=off,kernel-irqchip=on,pic=off,pit=off,rtc=off",
    True: "microvm,acpi=on,rtc=on,pic=off",
}
DRIVE = "aio=io_uring"
GUEST_CID = 3
OUTPUT_LIMIT = 1 << 20
TIMEOUT = 180.0  # a guest that has not connected by then never will


def trouble() -> str:
    """Why QEMU cannot be measured here, or nothing."""
    if not shutil.which(PROGRAM):
        return f"{PROGRAM} is not installed"
    if not os.path.exists("/dev/vhost-vsock"):
        subprocess.run(["modprobe", "vhost_vsock"], check=False, stderr=subprocess.DEVNULL)
    return "" if os.path.exists("/dev/vhost-vsock") else "no /dev/vhost-vsock"


def command(subject: Subject) -> list[str]:
    # QEMU describes its own devices, on the command line or in ACPI.
    words = [w for w in subject.cmdline.split() if not w.startswith("virtio_mmio.device=")]
    options = f"""
        -M {MACHINES[subject.acpi]} -enable-kvm -cpu host
        -m {MEMORY_MIB} -smp 1 -nodefaults -no-user-config -nographic -no-reboot
        -serial null
        -kernel {subject.kernel} -initrd {subject.initramfs}
        -drive if=none,id=root,format=raw,snapshot=on,{DRIVE},file={subject.disk}
        -device virtio-blk-device,drive=root,serial=pyvmm-root
        -device vhost-vsock-device,guest-cid={GUEST_CID}
        -device virtio-rng-device
    """.split()
    return [PROGRAM, *options, "-append", " ".join(words)]


def run(subject: Subject) -> Run:
    """Run /bin/true once."""
    begin = time.monotonic()
    with agent(subject, TRUE) as (process, stream):
        _until_end(stream)
        end = time.monotonic()
        stream.close()
        process.wait(TIMEOUT)
        return Run(begin, end, time.monotonic())


def output(subject: Subject, argv: Sequence[str]) -> str:
    """What a program says."""
    with agent(subject, argv) as (_, stream):
        return _until_end(stream).decode()


@contextmanager
def idle(subject: Subject) -> Iterator[int]:
    """Keep a guest that sleeps; gives the process id of its VMM."""
    with agent(subject, IDLE) as (process, stream):
        said: list[bytes] = []
        session = results.Session([], OUTPUT_LIMIT, said.append)
        while b"ready" not in b"".join(said):
            session.feed(_receive(stream))
        yield process.pid


def _until_end(stream: socket.socket) -> bytes:
    said: list[bytes] = []
    session = results.Session([], OUTPUT_LIMIT, said.append)
    while not session.end:
        session.feed(_receive(stream))
    assert session.finish().exit_code == 0, said
    return b"".join(said)


@contextmanager
def agent(
    subject: Subject, argv: Sequence[str]
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A QEMU whose guest's init has been told to run ``argv``."""
    with (
        listener(results.PORT) as listening,
        _process(subject) as process,
        _accept(listening, process) as stream,
    ):
        stream.sendall(_config(argv))
        yield process, stream


def _config(argv: Sequence[str]) -> bytes:
    return exchange.config_frame(
        argv,
        [],
        workdir="",
        user="",
        hostname="pyvmm",
        outputs=[],
        limit=1 << 20,
        stdin=False,
        privileged=False,
        clock_ns=time.time_ns(),
    )


def listener(port: int) -> socket.socket:
    """Take the guests' connections to a port of their host."""
    listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listening.bind((socket.VMADDR_CID_ANY, port))
    listening.listen()
    listening.settimeout(TIMEOUT)
    return listening


@contextmanager
def _process(subject: Subject) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command(subject), stdin=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _accept(listening: socket.socket, process: subprocess.Popen[bytes]) -> socket.socket:
    try:
        stream = listening.accept()[0]
    except TimeoutError:
        code = process.poll()
        raise SystemExit(f"bench: the guest in QEMU did not connect (exit code {code})") from None
    stream.settimeout(TIMEOUT)
    return stream


def _receive(stream: socket.socket) -> bytes:
    data = stream.recv(1 << 20)
    if not data:
        raise SystemExit("bench: the guest in QEMU ended early")
    return data
