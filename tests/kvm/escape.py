"""Runs escape.c's attempts to get out of a worker, and says what came of them.

As a program, because it is run as several users: it gets a place (make()), a directory of its own,
a mode and a kind of threads, and writes JSON.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path += [str(ROOT), str(HERE.parent / "unit")]

from pyvmm import GuestError, Machine, launch  # noqa: E402

LIBRARY = ROOT / "build" / "escape.so"
"""Made by the host for the kvmbox, which has no compiler."""
KINDS = ("main", "io", "vcpu")
LIMIT = 120.0  # seconds until an attempt is over, with all that is before it; the box is slow
ALL = -1
NAME = f"pyvmm-escape-{os.getpid()}"
KEY = 0x70790000 | os.getpid() & 0xFFFF  # of a shared memory segment
IPC_CREAT, IPC_RMID = 0o1000, 0
ADD_KEY, KEYCTL, JOIN_SESSION_KEYRING, SESSION_KEYRING = 248, 250, 1, -3
NOBODY = 65534

FLAGS = (
    "-std=gnu11",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fPIC",
    "-shared",
    "-ftls-model=initial-exec",
)
# A guest that waits for ever, and what pyvmm looks for in a kernel (pyvmm/kernel/elf.py)
GUEST = b"\xfa\xf4\xeb\xfc" + (  # cli; 1: hlt; jmp 1b
    b"Linux version 6.6.6-escape \0virtio-mmio\0virtio_blk\0vmw_vsock_virtio_transport\0EXT4-fs\0"
    b"virtio_mmio.device\0"
)
START = 0x100000


class Page(ctypes.Structure):
    """escape.c's struct page."""

    _fields_ = (
        ("seccomp", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("only", ctypes.c_int32),
        ("at", ctypes.c_int32),
        ("done", ctypes.c_uint32),
        ("host_pid", ctypes.c_int32),
        ("shm_key", ctypes.c_int32),
        ("port", ctypes.c_uint32),
        ("other_id", ctypes.c_uint32),
        ("abstract", ctypes.c_char * 32),
        ("path", ctypes.c_char * 128),
        ("key", ctypes.c_char * 32),
        ("results", ctypes.c_int64 * 256),
    )


def make(place: Path) -> None:
    """What a run needs: the library, a kernel, an image. ``place`` is for any user then."""
    import images

    if shutil.which("gcc"):
        subprocess.run(["gcc", *FLAGS, "-o", LIBRARY, HERE / "escape.c"], check=True)
    shutil.copy(LIBRARY, place)
    (place / "kernel").write_bytes(kernel())
    images.layout(place / "image", images.layer(images.directory("./")))


def kernel() -> bytes:
    """GUEST in an ELF file (elf(5))."""
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, START, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    size = len(GUEST)
    return head + struct.pack("<IIQQQQQQ", 1, 7, 120, START, START, size, size, 4096) + GUEST


def names(library: Path) -> list[str]:
    """Of the attempts, by number."""
    table = (ctypes.c_char_p * 256).in_dll(ctypes.CDLL(str(library)), "escape_names")
    return [name.decode() for name in iter(iter(table).__next__, None)]


def as_nobody(words: list[str], reachable: list[Path], scratch: Path) -> list[str]:
    """The command line to run ``words`` as a user without rights, with KVM.

    Directories that only root may enter are covered, in a mount namespace of the command's own, by
    empty ones in which there is nothing but ``reachable``. ``scratch`` is where anybody may go.
    """
    assert scratch.parent.stat().st_mode & 1
    old, node = scratch / "root", scratch / "kvm"
    kvm = os.stat("/dev/kvm").st_rdev
    lines = [
        f"mkdir {old} && mount --rbind / {old}",
        f"mknod {node} c {os.major(kvm)} {os.minor(kvm)} && chmod 666 {node}",
        f"mount --bind {node} /dev/kvm",
    ]
    covered = {
        parent
        for path in reachable
        for parent in reversed(path.parents)
        if not parent.stat().st_mode & 1
    }
    for top in sorted(covered):
        if not covered & set(top.parents):
            lines.append(f"mount -t tmpfs -o mode=755 none {top}")
            for path in reachable:
                if top in path.parents:
                    lines.append(f"mkdir -p {path} && mount --rbind {old}{path} {path}")
    lines.append(
        f'exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=-all -- "$@"'
    )
    script = "\n".join(lines)
    return ["unshare", "--mount", "--propagation=private", "sh", "-ec", script, "sh", *words]


class Escape:
    """One thread of a worker after another, each in a run of its own."""

    def __init__(self, place: Path, scratch: Path) -> None:
        """``scratch``: a directory of this user."""
        self.place = place
        os.environ["XDG_CACHE_HOME"] = os.environ["TMPDIR"] = str(scratch)
        self.names = names(place / "escape.so")
        path = scratch / "page"
        path.write_bytes(bytes(ctypes.sizeof(Page)))
        with path.open("r+b") as file:
            self.page = Page.from_buffer(mmap.mmap(file.fileno(), 0))
        self._preload(path)
        self._set_baits(scratch)

    def _preload(self, path: Path) -> None:
        """The server is made without an environment (launch.py): with this one, from here on."""
        real = self._spawn = os.posix_spawn
        ours = {"LD_PRELOAD": str(self.place / "escape.so"), "ESCAPE_PAGE": str(path)}

        def spawn(path: str, argv: list[str], env: dict[str, str], **rest: Any) -> int:
            return real(path, argv, env | ours, **rest)

        os.posix_spawn = spawn

    def _set_baits(self, scratch: Path) -> None:
        """What a worker must not reach."""
        page = self.page
        page.host_pid, page.other_id = os.getpid(), 0 if os.geteuid() == 0 else 1
        page.abstract, page.path = NAME.encode(), str(scratch / "socket").encode()
        self.sockets = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        self.sockets[0].bind(b"\0" + NAME.encode().ljust(32, b"\0"))
        self.sockets[1].bind(page.path)
        inet = socket.socket()
        inet.bind(("127.0.0.1", 0))
        page.port = inet.getsockname()[1]
        self.sockets.append(inet)
        for sock in self.sockets:
            sock.listen()
        libc = ctypes.CDLL(None, use_errno=True)
        page.shm_key = KEY
        self.shm = libc.shmget(KEY, 4096, IPC_CREAT | 0o600)
        page.key = NAME.encode()
        libc.syscall(KEYCTL, JOIN_SESSION_KEYRING, None)
        libc.syscall(ADD_KEY, b"user", page.key, b"secret", 6, SESSION_KEYRING)
        _, self.terminal = os.openpty()
        fcntl.ioctl(self.terminal, termios.TIOCSCTTY, 0)
        self.signals = 0
        signal.signal(signal.SIGURG, self._count)

    def _count(self, _number: int, _frame: object) -> None:
        self.signals += 1

    def close(self) -> None:
        launch.server.close()
        ctypes.CDLL(None).shmctl(self.shm, IPC_RMID, None)

    def run(self, kind: str, only: int = ALL, *, seccomp: bool, **options: Any) -> str:
        """Try; "" if the worker outlives it, else how it ended."""
        page = self.page
        page.seccomp, page.kind, page.only = seccomp, KINDS.index(kind), only
        page.at, page.done = ALL, 0
        deadline = time.monotonic() + LIMIT
        with self._machine(**options) as machine:
            assert machine.pid
            end = select.poll()
            end.register(os.pidfd_open(machine.pid))
            while not page.done and time.monotonic() < deadline:
                if end.poll(1):
                    try:
                        machine.wait()
                    except GuestError as error:
                        return str(error)
        return (
            "" if page.done else f"hangs at {self.names[page.at] if page.at >= 0 else 'its start'}"
        )

    def _machine(self, **options: Any) -> Machine:
        return Machine(
            self.place / "image", ["never"], kernel=str(self.place / "kernel"), memory="64M",
            disk="16M", boot_timeout=LIMIT, **options,
        )  # fmt: skip

    def hold(self) -> None:
        """A worker that nothing is preloaded into: its process id, and wait to be told to go."""
        os.posix_spawn = self._spawn
        with self._machine() as machine:
            print(machine.pid, flush=True)
            sys.stdin.read()

    def result(self, number: int) -> str:
        value = self.page.results[number]
        return errno.errorcode[-value] if value < 0 else str(value)

    def with_seccomp(self, kind: str) -> dict[str, str]:
        """Each attempt in a run of its own."""
        found = {}
        for number, name in enumerate(self.names):
            end = self.run(kind, number, seccomp=True)
            assert self.page.at == number, (name, self.page.at, end)
            found[name] = end or self.result(number)
        return found

    def without_seccomp(self, kind: str) -> dict[str, str]:
        """All in one run, which has the terminal, as with --console. "signals": those we got."""
        self.signals = 0
        end = self.run(kind, seccomp=False, console=self.terminal)
        assert end == "", end
        found = {name: self.result(number) for number, name in enumerate(self.names)}
        return found | {"signals": str(self.signals)}


def main() -> None:
    place, scratch, mode, *kind = sys.argv[1:]
    escape = Escape(Path(place), Path(scratch))
    try:
        if mode == "hold":
            escape.hold()
            return
        trial = escape.with_seccomp if mode == "seccomp" else escape.without_seccomp
        print(json.dumps(trial(*kind)))
    finally:
        escape.close()


if __name__ == "__main__":
    main()
