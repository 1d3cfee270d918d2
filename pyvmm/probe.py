"""Learning when a TCP port of the guest's accepts: a session of the agent's (docs/protocol.md)."""

from __future__ import annotations

import socket
import struct

from .agent.connection import AGENT_PORT
from .errors import GuestError
from .exchange import PROBE, frame
from .results import END, HELLO, Frames, hello

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Callable

    from .vsock import Vsock

RETRY = 0.1  # seconds until another session is tried
CHUNK = 4096


class Probe:
    """Asks until it is answered, in the Vsock's thread. One for each question."""

    def __init__(self, vsock: Vsock, port: int, then: Callable[[], object]) -> None:
        """``then`` is called in the thread."""
        self._vsock, self._loop = vsock, vsock.loop()
        self._port, self._then = port, then
        self._sock: socket.socket | None = None
        self._over = False

    def begin(self) -> None:
        """Open a session. In the thread, as all that follows."""
        if self._over:
            return
        self._sock, theirs = socket.socketpair()
        self._frames = Frames()
        self._loop.watch(self._sock, self._read)
        with theirs:
            try:
                self._vsock.hand_over(theirs, AGENT_PORT)
            except OSError:
                pass  # the machine has ended: the thread will, too

    def give_up(self) -> None:
        """Ask no more. From any thread, also once the Vsock's has ended."""
        self._loop.call(self._stop)

    def _stop(self) -> None:
        self._over = True
        self._leave()

    def _leave(self) -> None:
        if self._sock:
            self._loop.forget(self._sock)
            self._sock.close()
            self._sock = None

    def _read(self) -> None:
        assert self._sock
        try:
            data = self._sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            self._frames.feed(data)
            while found := self._frames.next():
                kind, _, payload = found
                if kind == HELLO:
                    hello(payload)
                    self._sock.send(frame(PROBE, struct.pack("<H", self._port)))
                elif kind == END:
                    self._stop()
                    self._then()
                    return
                else:  # FAILED: no room for a process, perhaps; no END after it counts
                    data = b""
                    break
        except (GuestError, struct.error, OSError):
            data = b""
        if not data:
            self._leave()
            self._loop.later(RETRY, self.begin)
