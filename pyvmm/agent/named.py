"""The agent of a machine that another process runs, by its name (names.py)."""

from __future__ import annotations

import socket

from ..errors import GuestError, HostError
from ..names import path_of
from ..vsock_line import Line
from .connection import AGENT_PORT, Connection


def connect(name: str) -> Connection:
    """Begin a session with the agent, as dial()."""
    return Connection(dial(name))


def dial(name: str) -> socket.socket:
    """Connect to the agent of the machine that was started with ``--name NAME``.

    Waits until its program has started. Raises HostError if no such machine runs, UsageError for
    what is no name, GuestError if it ends, or its agent does not answer.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        try:
            sock.connect(path_of(name))
        except OSError:
            raise HostError(f"no machine {name!r} runs here: see pyvmm ps") from None
        answer = Line()
        try:
            sock.sendall(f"CONNECT {AGENT_PORT}\n".encode())
            while not answer.whole:
                text = answer.take(sock)
        except (OSError, EOFError, ValueError):
            text = b""
        if not text.startswith(b"OK "):
            raise GuestError(f"machine {name!r}: its agent takes no session, or it has ended")
        return sock
    except BaseException:
        sock.close()
        raise
