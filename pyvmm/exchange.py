"""The exchange with the guest's agent: the host's half of docs/protocol.md, and its deadlines."""

from __future__ import annotations

import os
import select
import struct
import time
from _signal import SIGKILL

from .results import HEADER, MAX_FRAME, Session

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Sequence

    from .config import Config
    from .console import Live
    from .plan import Program

SLOWEST = 1 << 20  # bytes a second that output files must come at, after boot_timeout
KILL_GRACE = 5.0  # seconds for the agent to report after the program was killed
STDIN_WINDOW = 256 << 10  # bytes of STDIN on the way at most, so that a KILL gets through
CHUNK = 1 << 20

CONFIG, STDIN, KILL, AGAIN, RESIZE, GET, PUT, PROBE = range(1, 9)
ARG, ENV, WORKDIR, USER, HOSTNAME, OUTPUT, HAS_STDIN, PRIVILEGED, CLOCK, LIMIT = range(1, 11)
TTY, HOLD, PORT = range(11, 14)


def frame(kind: int, payload: bytes = b"", index: int = 0) -> bytes:
    return HEADER.pack(len(payload), kind, index) + payload


def config_frame(
    argv: Sequence[str],
    env: Sequence[str],
    *,
    workdir: str,
    user: str,
    hostname: str,
    outputs: Sequence[str],
    stdin: bool,
    privileged: bool,
    clock_ns: int,
    limit: int,
    ports: Sequence[int] = (),
) -> bytes:
    """The CONFIG frame."""
    records: list[tuple[int, bytes]] = [(ARG, os.fsencode(a)) for a in argv]
    records += [(ENV, os.fsencode(e)) for e in env]
    records += [(OUTPUT, os.fsencode(o)) for o in outputs]
    if workdir:
        records.append((WORKDIR, os.fsencode(workdir)))
    if user:
        records.append((USER, os.fsencode(user)))
    records.append((HOSTNAME, hostname.encode()))
    records.append((HAS_STDIN, bytes([stdin])))
    records.append((PRIVILEGED, bytes([privileged])))
    records.append((CLOCK, struct.pack("<Q", clock_ns)))
    records.append((LIMIT, struct.pack("<Q", limit)))
    records += [(PORT, struct.pack("<H", port)) for port in ports]
    return frame(CONFIG, b"".join(struct.pack("<HHI", key, 0, len(v)) + v for key, v in records))


class Input:
    """The program's standard input as STDIN frames, never more than the window ahead."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._sent = 0
        self._closed = False

    def frames(self, taken: int) -> bytes:
        """What may be sent now that the guest has taken ``taken`` bytes."""
        out = b""
        until = min(taken + STDIN_WINDOW, len(self._data))
        while self._sent < until:
            part = self._data[self._sent : min(self._sent + MAX_FRAME, until)]
            out += frame(STDIN, part)
            self._sent += len(part)
        if self._sent == len(self._data) and not self._closed:
            self._closed = True
            out += frame(STDIN)
        return out


class Exchange:
    """A run's frames, over the socket whose other end is the guest's connection.

    That end is the worker's: its end of file tells of every end, also a crash's.
    """

    def __init__(
        self, connection: socket, config: Config, program: Program, live: Live | None
    ) -> None:
        """``live``, if any, is served meanwhile."""
        connection.setblocking(False)
        self._connection = connection
        self._config, self._program, self._live = config, program, live
        self._outgoing = bytearray()
        self._configured = False
        self.on_started: Callable[[], object] | None = None
        """called when the program is let go"""
        self.closed = False
        """by the guest, before END"""
        self._begin()

    def _begin(self) -> None:
        config = self._config
        self._input = None if config.stdin is None else Input(config.stdin)
        self.session = Session(
            config.outputs, config.max_output_bytes, config.on_stdout, config.on_stderr
        )

    def again(self) -> bool:
        """Have the program run once more, after a run() or again() that gave True; then as run().

        Raises GuestError if the guest has said more than it may.
        """
        last = self.session
        self._begin()
        self.session.follow(last)
        self._outgoing += frame(AGAIN)
        return self.run()

    def run(self) -> bool:
        """Take frames until END (True), or until there will be no more, or it is too late."""
        session, config = self.session, self._config
        deadline: float | None = time.monotonic() + config.boot_timeout
        phase, ended = "boot", 0.0
        while not session.end:
            if not self._pump(deadline):
                self.closed = not session.end
                return session.end
            if session.hello and not self._configured:  # not before: it has the time of day
                self._configured = True
                self._outgoing += self._config_frame()
            now = time.monotonic()
            if phase == "boot" and session.started_ns is not None:
                phase = "program"
                if self.on_started:
                    self.on_started()
                deadline = now + config.timeout if config.timeout else None
            if phase == "program" and session.ended_ns is not None:
                phase, ended = "files", now
            if phase == "files":  # outputs may be long, but must come
                deadline = ended + config.boot_timeout + session.file_bytes / SLOWEST
            if deadline is None or now < deadline:
                continue
            if phase != "program":
                return False
            # Kill the program, not yet the VM: the agent still reports usage and outputs.
            session.result.timed_out = True
            self._outgoing += frame(KILL, struct.pack("<I", SIGKILL))
            phase, deadline = "killed", now + KILL_GRACE
        return True

    def _pump(self, deadline: float | None) -> bool:
        """Move bytes until the deadline at the latest; False once no more will come."""
        if self._input and self._configured:
            self._outgoing += self._input.frames(self.session.stdin_taken)
        poll = select.poll()
        poll.register(self._connection, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        if self._live:
            self._live.register(poll)
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000 + 1
        events = dict(poll.poll(timeout)).get(self._connection.fileno(), 0)
        if self._live:
            self._live.copy()
        if events & select.POLLOUT and self._outgoing:
            try:
                del self._outgoing[: self._connection.send(self._outgoing)]
            except OSError:
                self._outgoing.clear()  # the guest's end is closed: nobody to tell
        if events & (select.POLLIN | select.POLLHUP):
            return self._take()
        return True

    def _take(self) -> bool:
        try:
            data = self._connection.recv(CHUNK)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        self.session.feed(data)
        return bool(data)

    def _config_frame(self) -> bytes:
        config, program = self._config, self._program
        return config_frame(
            program.argv,
            program.env,
            workdir=program.workdir,
            user=program.user,
            hostname=config.hostname,
            outputs=config.outputs,
            stdin=config.stdin is not None,
            privileged=config.privileged,
            clock_ns=time.time_ns(),
            limit=config.max_output_bytes,
            ports=config.guest_ports,
        )
