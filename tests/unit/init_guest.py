"""init run natively: PID 1 of new namespaces, driven over a socket pair by a Guest.

The fixtures are for the tests of init; they import them by name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INIT = HERE.parent.parent / "init"

HELLO, STARTED, STDOUT, STDERR, EXIT, FILE_BEGIN, FILE_DATA, FILE_END, FAILED, END, TAKEN = range(
    1, 12
)
CONFIG, STDIN, KILL, AGAIN, RESIZE, GET, PUT, PROBE = range(1, 9)
ARG, ENV, WORKDIR, USER, HOSTNAME, OUTPUT, STDIN_PIPE, PRIVILEGED, CLOCK, LIMIT = range(1, 11)
TTY, HOLD, PORT = range(11, 14)

EXIT_FIELDS = (
    "code",
    "signal",
    "end_ns",
    "user_us",
    "system_us",
    "peak_rss",
    "minor_faults",
    "major_faults",
    "block_in",
    "block_out",
    "voluntary",
    "involuntary",
    "steal_ns",
    "oom_kills",
)

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# a comment, and then lines that no parser should trip over

broken
negative:x:-1:-1::/:
alice:x:1000:1000:Alice:/home/alice:/bin/sh
homeless:x:1001:1001:::
"""
GROUP = """\
root:x:0:
wheel:x:10:root,alice
short
audio:x:29:bob,alice
alice:x:1000:
staff:x:50:alicex
"""


BURN = "python3 -S -c 'import time\nwhile time.process_time() < 1: pass'"
"""Takes a second of CPU time, and little more, however fast the machine is."""


def record(key: int, value: bytes | str | int) -> bytes:
    if isinstance(value, int):
        value = bytes([value])
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<HHI", key, 0, len(data)) + data


def frame(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IHH", len(payload), kind, 0) + payload


@dataclass
class Run:
    """What one run of init sent, in order."""

    frames: list[tuple[int, int, bytes]] = field(default_factory=list)
    marks: bytes = b""
    console: str = ""

    def of(self, kind: int) -> list[bytes]:
        return [payload for k, _, payload in self.frames if k == kind]

    @property
    def stdout(self) -> bytes:
        return b"".join(self.of(STDOUT))

    @property
    def stderr(self) -> bytes:
        return b"".join(self.of(STDERR))

    @property
    def exit(self) -> dict[str, int]:
        (payload,) = self.of(EXIT)
        return dict(zip(EXIT_FIELDS, struct.unpack("<IIQ11Q", payload), strict=True))

    @property
    def failed(self) -> tuple[int, str]:
        (payload,) = self.of(FAILED)
        return struct.unpack("<I", payload[:4])[0], payload[4:].decode()

    def file(self, index: int) -> tuple[int, bytes, int]:
        """The errors at its beginning and end, and its bytes."""
        own = [
            (k, p)
            for k, i, p in self.frames
            if k in (FILE_BEGIN, FILE_DATA, FILE_END) and i == index
        ]
        assert own[0][0] == FILE_BEGIN
        assert own[-1][0] == FILE_END
        first, last = struct.unpack("<i", own[0][1][:4])[0], struct.unpack("<i", own[-1][1])[0]
        return first, b"".join(p for k, p in own[1:-1]), last


class Connection:
    """The host's end of the main connection, or of a session's."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(60)
        self.run = Run()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            got = self.sock.recv(size - len(data))
            if not got:
                raise EOFError(data)
            data += got
        return data

    def receive(self) -> tuple[int, int, bytes]:
        length, kind, index = struct.unpack("<IHH", self._exactly(8))
        assert length <= 65536
        got = (kind, index, self._exactly(length))
        self.run.frames.append(got)
        return got

    def until(self, kind: int) -> bytes:
        while True:
            got, _, payload = self.receive()
            if got == kind:
                return payload
            assert got != END, self.run.frames

    def end(self) -> Run:
        """Reads to END (or to the connection's end)."""
        with contextlib.suppress(EOFError, ConnectionResetError):
            while not self.run.frames or self.run.frames[-1][0] != END:
                self.receive()
        return self.run


class Guest(Connection):
    """One init in its namespaces, and the host's end of its connection."""

    def __init__(self, harness: Path, root: Path) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(ours)
        self.connections: list[Connection] = []  # so that none is closed for want of a name
        marks, marks_write = os.pipe()
        self.marks = marks
        root_fd = os.open(root, os.O_PATH)
        self.ports = Path(tempfile.mkdtemp(prefix="ports", dir=root.parent))
        ports_fd = os.open(self.ports, os.O_PATH)
        # Out of the way of 3 to 6, which the harness wants.
        wanted = (theirs.fileno(), root_fd, marks_write, ports_fd)
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in wanted]

        def place() -> None:
            for at, fd in enumerate(high, 3):
                os.dup2(fd, at)

        self.process = subprocess.Popen(
            [
                "unshare",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount",
                "--net",
                "--uts",
                "--ipc",
                str(harness),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=place,
            pass_fds=(3, 4, 5, 6),
        )
        for fd in (*high, root_fd, marks_write, ports_fd):
            os.close(fd)
        theirs.close()

    def connect(self, port: int) -> Connection:
        """Connects to what would be the guest's vsock port."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.ports / str(port)))
        self.connections.append(Connection(sock))
        return self.connections[-1]

    def session(self, *args: str, records: bytes = b"") -> Connection:
        """Begins a session that runs a program, or only connects."""
        s = self.connect(1024)
        if args:
            s.send(frame(CONFIG, b"".join(record(ARG, a) for a in args) + records))
        return s

    def again(self, more: bytes = b"") -> None:
        """Asks for another run, and says ``more`` with it."""
        self.run = Run()
        self.send(frame(AGAIN) + more)

    def finish(self) -> Run:
        """Reads to the end, closes, and waits for the reset."""
        self.end()
        self.close()
        return self.run

    def close(self) -> None:
        self.sock.close()
        out, _ = self.process.communicate(timeout=60)
        self.run.console = out.decode(errors="replace")
        self.run.marks = os.read(self.marks, 100)
        os.close(self.marks)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """init itself, the harness and the probe."""
    if not shutil.which("make") or not shutil.which("gcc"):
        pytest.skip("needs make and gcc")
    out = tmp_path_factory.mktemp("init")
    make = ["make", "-s", "-C", str(INIT), f"BUILD={out}", f"OUT={out / 'init'}"]
    subprocess.run(make, check=True)
    subprocess.run([*make, f"HARNESS={HERE / 'init_harness.c'}", f"{out}/harness"], check=True)
    subprocess.run(
        ["gcc", "-static", "-O1", "-o", out / "probe", HERE / "init_harness_probe.c"], check=True
    )
    return out


@pytest.fixture
def root(tmp_path: Path, built: Path) -> Path:
    """An image's tree: this machine's /usr, and the rest made here."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare(1) to make namespaces")
    if not Path("/bin").is_symlink():
        pytest.skip("needs a machine whose /bin is in /usr")
    root = tmp_path / "root"
    (root / "usr").mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    (root / "home/alice").mkdir(parents=True)
    shutil.copy(built / "probe", root / "probe")
    # pytest's own directories are closed to others, which alice must not notice.
    root.chmod(0o755)
    return root


@pytest.fixture
def guest(built: Path, root: Path):
    guests: list[Guest] = []

    def start() -> Guest:
        guests.append(Guest(built / "harness", root))
        return guests[-1]

    yield start
    for g in guests:
        g.process.kill()
        g.process.wait()
        assert g.process.stdout
        g.process.stdout.close()
        for c in (g, *g.connections):
            c.sock.close()
