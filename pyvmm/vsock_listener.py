"""What Vsock.listen() gives away: a Unix socket that only the switch's thread connects to."""

from __future__ import annotations

import os
import socket
import weakref
from socket import AF_UNIX
from tempfile import TemporaryDirectory

BACKLOG = 4096  # which the host's somaxconn may lower


class Listener:
    """What listen() has given away, as the thread connects to it.

    It is bound in a directory of our own that is gone at once, so that nobody else on this host can
    connect to it and be taken for the guest; we can, by a descriptor of the name.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Binds ``sock``; whoever has it may close it."""
        self._sock = weakref.ref(sock)
        with TemporaryDirectory(prefix="pyvmm-") as directory:
            place = os.open(directory, os.O_PATH | os.O_CLOEXEC)  # its path may be too long
            try:
                sock.bind(f"/proc/self/fd/{place}/s")
            finally:
                os.close(place)
            self._name = os.open(os.path.join(directory, "s"), os.O_PATH | os.O_CLOEXEC)
        self.address = f"/proc/self/fd/{self._name}"
        sock.listen(BACKLOG)

    @property
    def open(self) -> bool:
        """Whether whoever has the socket has not closed it."""
        sock = self._sock()
        return sock is not None and sock.fileno() >= 0

    def end(self) -> None:
        """Have accept() fail, and let go of the name."""
        sock = self._sock()
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # whoever has it has closed it
        os.close(self._name)


def connected(address: str, kind: int) -> socket.socket | None:
    """A socket that is connected at once, or none: nobody is there, or its backlog is full."""
    try:
        sock = socket.socket(AF_UNIX, kind)
    except OSError:  # no descriptor left
        return None
    try:
        sock.setblocking(False)
        sock.connect(address)
    except OSError:
        sock.close()
        return None
    return sock
