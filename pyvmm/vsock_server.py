"""Connections for other programs by a Unix socket, by Firecracker's convention.

A client says ``CONNECT <port>\\n`` and, once the guest has accepted, is told ``OK <host port>\\n``;
then it has a connection to that port of the guest's. What it sends after its line belongs to the
connection already. The other way round, Vsock takes the guest's to ``<path>_<port>``.
"""

from __future__ import annotations

from functools import partial

from .vsock_line import Line

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from socket import socket

    from .names import Claim
    from .vsock import Vsock

MAX_CLIENTS = 4096  # that have not said yet where to; the rest wait in the backlog


class Server:
    """The socket, and the clients that have not said their line. It runs in the Vsock's thread."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._clients = 0

    def open(self, vsock: Vsock) -> None:
        """Serve who connects, once the guest's agent is there; until then they wait."""
        self._vsock, self._loop = vsock, vsock.loop()
        vsock.answer_all(self._claim.path)
        vsock.when_started(lambda: self._loop.watch(self._claim.socket, self._accept))

    def close(self) -> None:
        """Remove the socket; not while the thread runs."""
        self._claim.release()

    def _accept(self) -> None:
        for client in self._loop.accept(self._claim.socket, MAX_CLIENTS - self._clients):
            self._clients += 1
            self._loop.watch(client, partial(self._read, client, Line()))

    def _read(self, client: socket, line: Line) -> None:
        try:
            words = line.take(client).split()
        except BlockingIOError:
            return
        except (OSError, EOFError, ValueError):
            words = []
        if words and not line.whole:
            return
        self._loop.forget(client)
        self._clients -= 1
        with client:
            port = _port(words)
            if port is not None:
                try:
                    self._vsock.hand_over(client, port, quiet=False)
                except OSError:
                    pass  # the machine has ended


def _port(words: list[bytes]) -> int | None:
    """What ``CONNECT <port>`` says; None if it is not that."""
    if len(words) != 2 or words[0].upper() != b"CONNECT" or not words[1].isdigit():
        return None
    port = int(words[1])
    return port if port < 1 << 32 else None
