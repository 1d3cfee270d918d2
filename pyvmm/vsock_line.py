"""`CONNECT <port>` and `OK <port>`: what is said before a connection is one with the guest."""

from __future__ import annotations

import socket
from socket import MSG_PEEK

LINE = 32  # bytes of it at most, with the newline


class Line:
    """A line that a peer sends in pieces, and not a byte of what comes after it."""

    def __init__(self) -> None:
        self._have = b""
        self.whole = False

    def take(self, sock: socket.socket) -> bytes:
        """What there is of it now. Raises EOFError at the end of file, ValueError if too long."""
        part = sock.recv(LINE - len(self._have), MSG_PEEK)
        end = part.find(b"\n") + 1
        if not part:
            raise EOFError
        self._have += sock.recv(end or len(part))
        self.whole = bool(end)
        if not end and len(self._have) == LINE:
            raise ValueError("a line without end")
        return self._have
