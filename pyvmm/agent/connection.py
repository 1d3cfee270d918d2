"""A connection to the guest's agent: what all sessions of docs/protocol.md have in common."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from socket import socket

from ..errors import GuestError
from ..exchange import CHUNK, frame
from ..results import END, FAILED, HELLO, Frames, hello

AGENT_PORT = 1024  # the guest's, where its agent listens
HELLO_LIMIT = 30.0  # seconds for an agent that accepted us to greet
ENDED = "the machine ended"
BUSY = "the guest's agent takes no more sessions, or the machine ended"


class Failed(GuestError):
    """The agent's own reason; ``code`` is 125, 126 or 127, of copied files an errno."""

    def __init__(self, payload: bytes) -> None:
        (self.code,) = struct.unpack_from("<I", payload.ljust(4, b"\0"))
        super().__init__(payload[4:].decode("utf-8", "replace"))


class Connection:
    """One session, blocking. ``sock`` is connected to AGENT_PORT, and becomes this object's.

    A context manager; leaving it ends the session, and what it does in the guest.
    """

    def __init__(self, sock: socket) -> None:
        """Waits for the agent's greeting. Raises GuestError for what is not our protocol."""
        self.sock = sock
        self._frames = Frames()
        self._greeted = False
        try:
            self._greet()
        except BaseException:
            sock.close()
            raise

    def _greet(self) -> None:
        self.sock.settimeout(HELLO_LIMIT)
        try:
            kind, _, payload = self._next()
            if kind != HELLO:
                raise GuestError(f"the guest's agent began with frame type {kind}, not HELLO")
            hello(payload)
            self._greeted = True
        except TimeoutError:
            raise GuestError(f"the guest's agent said nothing for {HELLO_LIMIT:g} s") from None
        except struct.error:
            raise GuestError(f"the guest's agent sent a short frame of type {HELLO}") from None
        self.sock.settimeout(None)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Send a frame. What the agent refused is told by frames(), so a closed end is no error."""
        try:
            self.sock.sendall(frame(kind, payload))
        except (BrokenPipeError, ConnectionResetError):
            pass

    def frames(self) -> Iterator[tuple[int, int, bytes]]:
        """Each frame's type, index and payload, until END has come.

        FAILED raises Failed with the agent's reason; a connection that ends before END, and what is
        no frame, GuestError. TimeoutError if the socket has a time-out.
        """
        while True:
            kind, index, payload = self._next()
            if kind == END:
                return
            if kind == FAILED:
                raise Failed(payload)
            yield kind, index, payload

    def _next(self) -> tuple[int, int, bytes]:
        while not (found := self._frames.next()):
            try:
                data = self.sock.recv(CHUNK)
            except ConnectionResetError:
                data = b""
            if not data:
                raise GuestError(ENDED if self._greeted else BUSY)
            self._frames.feed(data)
        return found
