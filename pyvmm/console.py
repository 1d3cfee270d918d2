"""The guest's console: the tail of it, in memory that outlives a killed worker.

The C core's serial port writes into a ``struct console_ring`` (csrc/core_cdef.h) in a memfd that
caller and worker share.
"""

from __future__ import annotations

import os
import select
import struct
import time
from fcntl import fcntl

from .host import memory_file

COUNTER = 8
CAPACITY = 64 << 10
SIZE = COUNTER + CAPACITY
F_SETPIPE_SZ = 1031  # fcntl(2)
PIPE = 1 << 20
PATIENCE = 1.0  # seconds


class Console:
    """The caller's end of the ring."""

    def __init__(self) -> None:
        self.fd = memory_file("pyvmm-console", SIZE)
        self._last = ""

    def text(self) -> str:
        """What the guest wrote so far, at most the last 64 KiB."""
        if self.fd < 0:
            return self._last
        (written,) = struct.unpack("<Q", os.pread(self.fd, COUNTER, 0))
        data = os.pread(self.fd, CAPACITY, COUNTER)
        at = written % CAPACITY
        raw = data[:written] if written <= CAPACITY else data[at:] + data[:at]
        return raw.decode("utf-8", "replace").replace("\r\n", "\n")

    def close(self) -> None:
        """Let go of the memory; text() keeps what was there."""
        if self.fd >= 0:
            self._last = self.text()
            os.close(self.fd)
            self.fd = -1


class Live:
    """The console as it comes, on a descriptor of the caller's. The worker has a pipe's end only:
    with a file or a terminal it could do more than write. Nobody waits for who reads too slowly:
    once the pipe is full, the guest's bytes are lost.
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self._rest = memoryview(b"")
        """read, not yet written"""
        self.fd, self.theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        """our end, -1 once it is closed; the worker's"""
        try:
            fcntl(self.fd, F_SETPIPE_SZ, PIPE)
        except OSError:
            pass  # more than this user may have

    def register(self, poll: select.poll) -> None:
        """Have it wait for what copy() needs."""
        if self._rest:
            poll.register(self._to, select.POLLOUT)
        elif self.fd >= 0:
            poll.register(self.fd, select.POLLIN)

    def copy(self) -> None:
        """Pass on what is there, as far as it is taken at once."""
        if self.fd < 0:
            return
        try:
            if not self._rest:
                self._rest = memoryview(os.read(self.fd, PIPE))
                if not self._rest:
                    self.close()
            poll = select.poll()
            poll.register(self._to, select.POLLOUT)
            while self._rest and poll.poll(0):
                # No more than a pipe that is ready has room for (pipe(7), PIPE_BUF).
                self._rest = self._rest[os.write(self._to, self._rest[: select.PIPE_BUF]) :]
        except BlockingIOError:
            pass
        except OSError:  # whoever watched has gone
            self.close()

    def finish(self) -> None:
        """Pass on the rest, to one who takes it within a second."""
        deadline = time.monotonic() + PATIENCE
        while self.fd >= 0 and (left := deadline - time.monotonic()) > 0:
            self.copy()
            poll = select.poll()
            self.register(poll)
            if not poll.poll(left * 1000 if self._rest else 0):
                return

    def close(self) -> None:
        self._rest = memoryview(b"")
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
