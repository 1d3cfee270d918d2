"""The exchange with the guest's agent: the host's half of docs/protocol.md, and its deadlines."""

from __future__ import annotations

import os
import select
import struct
import time
from _signal import SIGKILL
from _thread import allocate_lock

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
CHUNK = 1 << 16  # what malloc has at hand; more would be mapped, and cleared, each time

CONFIG, STDIN, KILL, AGAIN, RESIZE, GET, PUT, PROBE = range(1, 9)
ARG, ENV, WORKDIR, USER, HOSTNAME, OUTPUT, HAS_STDIN, PRIVILEGED, CLOCK, LIMIT = range(1, 11)
TTY, HOLD, PORT = range(11, 14)


def frame(kind: int, payload: bytes = b"", index: int = 0) -> bytes:
    return HEADER.pack(len(payload), kind, index) + payload


def config_frame(
    argv: Sequence[str],
    env: Sequence[str],
    *,
    workdir: str = "",
    user: str = "",
    hostname: str = "",
    outputs: Sequence[str] = (),
    stdin: bool = False,
    privileged: bool | None = None,
    clock_ns: int | None = None,
    limit: int | None = None,
    ports: Sequence[int] = (),
    tty: tuple[int, int] | None = None,
    hold: bool = False,
) -> bytes:
    """The CONFIG frame; ``tty`` is a terminal's rows and columns."""
    records: list[tuple[int, bytes]] = [(ARG, os.fsencode(a)) for a in argv]
    records += [(ENV, os.fsencode(e)) for e in env]
    records += [(OUTPUT, os.fsencode(o)) for o in outputs]
    if workdir:
        records.append((WORKDIR, os.fsencode(workdir)))
    if user:
        records.append((USER, os.fsencode(user)))
    if hostname:
        records.append((HOSTNAME, hostname.encode()))
    records.append((HAS_STDIN, bytes([stdin])))
    if privileged is not None:
        records.append((PRIVILEGED, bytes([privileged])))
    if clock_ns is not None:
        records.append((CLOCK, struct.pack("<Q", clock_ns)))
    if limit is not None:
        records.append((LIMIT, struct.pack("<Q", limit)))
    if tty:
        records.append((TTY, struct.pack("<HH", *tty)))
    if hold:
        records.append((HOLD, b"\1"))
    records += [(PORT, struct.pack("<H", port)) for port in ports]
    return frame(CONFIG, b"".join(struct.pack("<HHI", key, 0, len(v)) + v for key, v in records))


class Source:
    """Where frames for the agent come from."""

    fd = -1
    """what to wait for until it is readable, if anything"""
    ready = False
    """whether it is"""

    def frames(self, taken: int) -> bytes:
        """What may be sent now that the guest has taken ``taken`` bytes of STDIN."""
        raise NotImplementedError


class Input(Source):
    """The program's standard input as STDIN frames, never more than the window ahead."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._sent = 0
        self._closed = False

    def frames(self, taken: int) -> bytes:
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


class Link:
    """Moves bytes between a session's socket, its Session and what there is to send."""

    def __init__(self, connection: socket, session: Session, live: Live | None = None) -> None:
        """``live``, if any, is served meanwhile."""
        connection.setblocking(False)
        self._connection, self._live = connection, live
        self.session = session
        self.sources: list[Source] = []
        self.outgoing = bytearray()

    def pump(self, deadline: float | None) -> bool:
        """Wait until the deadline (CLOCK_MONOTONIC) at the latest and move what can be moved.

        False once no more will come. Raises GuestError.
        """
        poll = select.poll()
        for source in self.sources:
            self.outgoing += source.frames(self.session.stdin_taken)
            if source.fd >= 0:
                poll.register(source.fd, select.POLLIN)
        poll.register(self._connection, select.POLLIN | (select.POLLOUT if self.outgoing else 0))
        if self._live:
            self._live.register(poll)
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000 + 1
        ready = dict(poll.poll(timeout))
        for source in self.sources:
            source.ready = source.fd in ready
        if self._live:
            self._live.copy()
        events = ready.get(self._connection.fileno(), 0)
        if events & select.POLLOUT and self.outgoing:
            try:
                del self.outgoing[: self._connection.send(self.outgoing)]
            except BlockingIOError:
                pass
            except OSError:
                self.outgoing.clear()  # the guest's end is closed: nobody to tell
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


class Exchange:
    """A run's frames, over the socket whose other end is the guest's connection.

    That end is the worker's: its end of file tells of every end, also a crash's.
    """

    def __init__(
        self, connection: socket, config: Config, program: Program, live: Live | None
    ) -> None:
        """``live``, if any, is served meanwhile."""
        self._config, self._program = config, program
        self._configured = False
        self.sources: list[Source] = []
        """besides the program's standard input"""
        self.on_started: Callable[[], object] | None = None
        """called when the program is let go"""
        self.on_end: list[Callable[[], object]] = []
        """called when a run is over, however it ended"""
        self.begun = allocate_lock()
        """held until that, or the end"""
        self.closed = False
        """by the guest, before END"""
        self._link = Link(connection, self._begin(), live)

    def _begin(self) -> Session:
        config = self._config
        self.begun.acquire(False)
        self.over = False
        self.session = Session(
            config.outputs, config.max_output_bytes, config.on_stdout, config.on_stderr
        )
        return self.session

    def again(self) -> bool:
        """Have the program run once more, after a run() or again() that gave True; then as run().

        Raises GuestError if the guest has said more than it may.
        """
        last = self.session
        self._link.session = self._begin()
        self.session.follow(last)
        self._link.outgoing += frame(AGAIN)
        self._link.sources = self._sources()
        return self.run()

    def run(self) -> bool:
        """Take frames until END (True), or until there will be no more, or it is too late."""
        try:
            return self._run()
        finally:
            self._announce()
            self.over = True  # first: see ready.py
            for tell in self.on_end:
                tell()

    def _announce(self) -> None:
        if self.begun.locked():
            self.begun.release()

    def _run(self) -> bool:
        session, config, link = self.session, self._config, self._link
        deadline: float | None = time.monotonic() + config.boot_timeout
        phase, ended = "boot", 0.0
        while not session.end:
            if not link.pump(deadline):
                self.closed = not session.end
                return session.end
            if session.hello and not self._configured:  # not before: it has the time of day
                self._configured = True
                link.outgoing += self._config_frame()
                link.sources = self._sources()
            now = time.monotonic()
            if phase == "boot" and session.started_ns is not None:
                phase = "program"
                self._announce()
                if self.on_started:
                    self.on_started()
                deadline = now + config.timeout if config.timeout and not config.hold else None
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
            link.outgoing += frame(KILL, struct.pack("<I", SIGKILL))
            phase, deadline = "killed", now + KILL_GRACE
        return True

    def _sources(self) -> list[Source]:
        given = self._config.stdin
        if given is None:
            return self.sources
        if isinstance(given, bytes):
            return [Input(given), *self.sources]
        from .agent.sources import Piped

        return [Piped(given), *self.sources]

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
            tty=config.terminal,
            hold=config.hold,
        )
