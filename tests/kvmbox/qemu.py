"""Runs one command in the box: starts QEMU, passes the output through, ends with the exit code.

QEMU's software CPU implements AMD SVM, so the box's /dev/kvm is the real thing, only slow. The
flags are those with which the box never hung: one CPU, one thread (two CPUs did hang). Without ERMS
and FSRM the box's kernel copies and clears by words: byte by byte it is several times slower here.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import selectors
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import box
import payload

TIMED_OUT, FAILED = 124, 125
TAIL_LINES = 40
FLAGS = shlex.split(
    "-M q35 -accel tcg,thread=single,tb-size=512 -cpu max,-erms,-fsrm -smp 1"
    " -nodefaults -no-user-config -nographic -no-reboot"
)
# The clock counts what is executed, 2 ns (2^1) an instruction, and jumps to the next timer when
# there is nothing to execute. It knows no caches, no TLB and no price of an exit.
ICOUNT = ("-icount", "shift=1,sleep=off")
PULSE_S = 1.0
POWER_OFF_S = 15.0  # from the command's exit code to QEMU's end


class BoxError(Exception):
    """The box, not the command, went wrong; ``code`` is what to exit with."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests/kvmbox/run",
        description="Run a command where /dev/kvm works, with this checkout's pyvmm installed. "
        f"Exits with the command's code; {TIMED_OUT}: timed out, {FAILED}: the box failed.",
    )
    parser.add_argument("--share", type=Path, default=payload.ROOT, metavar="DIR",
                        help="host directory seen as /share, where the command starts "
                        "(default: the checkout)")  # fmt: skip
    parser.add_argument("--memory", default="4G", help="of the box (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=3600, metavar="SECONDS",
                        help="kill the box after that (default: %(default)s)")  # fmt: skip
    parser.add_argument("--icount", action="store_true",
                        help="the box's clock counts instructions, 2 ns each, and waits pass at "
                        "once: times repeat to 0.1 %%, and tell work, not what hardware makes "
                        "of it")  # fmt: skip
    parser.add_argument("--sanitized", action="store_true",
                        help="with gcc's sanitizers in pyvmm, and a Python for them in the place "
                        "of the box's")  # fmt: skip
    parser.add_argument("--shell", action="store_true", help="a shell on the box's console")
    parser.add_argument("--build", action="store_true", help="only make the box ready")
    parser.add_argument("command", nargs="*", help="after --")
    options = parser.parse_args()
    if not (options.command or options.shell or options.build):
        parser.error("no command")
    arguments = machine(options.share, options.memory, sanitized=options.sanitized)
    if options.icount:
        arguments += ICOUNT
    if options.build:
        return 0
    if options.shell:
        return subprocess.call([*arguments, "-serial", "mon:stdio", *kernel_line("box.shell")])
    script = shlex.join(options.command)
    if options.sanitized:
        script = f"mount --bind /opt/pyvmm/python3 $(realpath /usr/bin/python3) && {script}"
    try:
        return run(arguments, script, options.timeout)
    except BoxError as error:
        print(f"kvmbox: {error}", file=sys.stderr)
        return error.code


def machine(share: Path, memory: str, *, sanitized: bool = False) -> list[str]:
    """Return the command line of a box that leaves no trace: its disks are throw-away copies."""
    with payload.alone():
        made = box.box()
        disks = (made.disk, payload.kernels_disk(), payload.pyvmm_disk(sanitized=sanitized))
    arguments = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", *FLAGS]
    arguments += ["-m", memory, "-kernel", str(made.kernel), "-initrd", str(made.initramfs)]
    for disk in disks:
        arguments += ["-drive", f"file={disk},format=raw,if=virtio,snapshot=on,cache=unsafe"]
    where = str(share.resolve(strict=True)).replace(",", ",,")
    shared = f"local,path={where},mount_tag=share,security_model=none,multidevs=remap"
    return [*arguments, "-virtfs", shared]


def kernel_line(*more: str) -> list[str]:
    line = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on"
    return ["-append", " ".join((line, *more))]


def run(arguments: list[str], script: str, timeout: float) -> int:
    """Run ``script`` in the box and return its exit code.

    Raises BoxError, with the tail of the console: no exit code came within ``timeout`` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="kvmbox-") as directory:
        console = Path(directory, "console")
        console.touch()
        pairs = [socket.socketpair() for _ in range(4)]
        arguments = [*arguments, "-serial", f"file:{console}", *kernel_line()]
        arguments += ["-device", "virtio-serial-pci"]
        for index, (_, theirs) in enumerate(pairs):
            arguments += ["-chardev", f"socket,id=port{index},fd={theirs.fileno()}"]
            arguments += ["-device", f"virtserialport,chardev=port{index}"]
        qemu = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno() for _, theirs in pairs],
        )
        for _, theirs in pairs:
            theirs.close()
        out, err, control, pulse = (ours for ours, _ in pairs)
        pulse.setblocking(False)
        try:
            control.sendall(base64.b64encode(script.encode()) + b"\n")
            return relay(out, err, control, pulse, time.monotonic() + timeout)
        except BoxError as error:
            said = console.read_text(errors="replace").replace("\x1b", "").splitlines()
            lines = (f"{error}; its console:", *said[-TAIL_LINES:])
            raise BoxError("\n".join(lines), error.code) from None
        finally:
            qemu.kill()
            qemu.wait()
            for end in (out, err, control, pulse):
                end.close()


def relay(
    out: socket.socket,
    err: socket.socket,
    control: socket.socket,
    pulse: socket.socket,
    deadline: float,
) -> int:
    """Copy both outputs until QEMU has ended, and return the exit code that came by then.

    The pulse is a byte a second into the box. Now and then QEMU's software CPU loses the timer
    interrupt of a CPU that runs guests, and then sleeps for ever; any other interrupt wakes it.
    (Seen once in some hundred guests: QEMU idle, its CPU halted, and one byte let it go on.)
    """
    answer = b""
    pulsed = 0.0
    with selectors.DefaultSelector() as waiting:
        for end, target in ((out, 1), (err, 2), (control, None)):
            waiting.register(end, selectors.EVENT_READ, target)
        while waiting.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                if answer.endswith(b"\n"):
                    break
                raise BoxError("timed out", TIMED_OUT)
            if time.monotonic() - pulsed >= PULSE_S:
                pulsed = time.monotonic()
                with contextlib.suppress(OSError):
                    pulse.send(b".")
            for key, _ in waiting.select(min(left, PULSE_S)):
                data = os.read(key.fd, 65536)
                if not data:
                    waiting.unregister(key.fileobj)
                elif key.data is None:
                    answer += data
                    deadline = min(deadline, time.monotonic() + POWER_OFF_S)
                else:
                    write_all(key.data, data)
    if not answer.endswith(b"\n"):
        raise BoxError("the box died before the command ended")
    return int(answer)


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
