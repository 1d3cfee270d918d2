"""The worker's end of a switch channel, played by a test (pyvmm/vsock.py)."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from pyvmm.vsock import ASKED, MESSAGE, Vsock

LIMIT = 60.0  # seconds: nobody waits for ever
Message = tuple[int, int, int, int]


class Worker:
    """What a worker hears and says."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        channel.settimeout(LIMIT)

    def take(self) -> tuple[Message, socket.socket | None]:
        """The next message, and the socket that came with it."""
        data, fds, _flags, _ = socket.recv_fds(self.channel, 100, 2)
        assert len(data) == MESSAGE.size
        assert len(fds) <= 1
        sock = socket.socket(fileno=fds[0]) if fds else None
        if sock:
            sock.settimeout(LIMIT)
        return MESSAGE.unpack(data), sock

    def takes(self, *message: int) -> None:
        """The next message is this one, without a socket."""
        assert self.take() == (message, None)

    def takes_socket(self, *message: int) -> socket.socket:
        """The next message is this one, with a socket."""
        taken, sock = self.take()
        assert taken == message
        assert sock
        return sock

    def ask(self, number: int, port: int, flags: int = 0) -> None:
        self.channel.send(MESSAGE.pack(ASKED, number, port, flags))

    def hears_nothing(self) -> None:
        """Nothing is there, now that what was before it has been seen."""
        self.channel.setblocking(False)
        try:
            assert self.channel.recv(100) is None
        except BlockingIOError:
            self.channel.settimeout(LIMIT)


@contextmanager
def switch() -> Iterator[tuple[Vsock, Worker]]:
    """A Vsock and its worker; what was opened is closed again."""
    gc.disable()  # what other tests have left to it may have descriptors
    before = sorted(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    vsock = Vsock(ours)
    try:
        with theirs:
            yield vsock, Worker(theirs)
            vsock.close()
        assert sorted(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


@contextmanager
def meanwhile(function, *args, **options):  # type: ignore[no-untyped-def]
    """Call ``function`` in another thread; gives the future."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(function, *args, **options)
