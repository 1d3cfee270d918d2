"""The guest's console: the tail of it, in memory that outlives a killed worker.

The C core's serial port writes into a ``struct console_ring`` (csrc/core_cdef.h) in a memfd that
caller and worker share.
"""

from __future__ import annotations

import os
import struct
from fcntl import fcntl

from .host import memory_file

COUNTER = 8
CAPACITY = 64 << 10
SIZE = COUNTER + CAPACITY
F_SETPIPE_SZ = 1031  # fcntl(2)
PIPE = 1 << 20


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
    with a file or a terminal it could do more than write.
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self.fd, self.theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        """our end, -1 once it is closed; the worker's, whose writes wait for nobody"""
        try:
            fcntl(self.fd, F_SETPIPE_SZ, PIPE)
        except OSError:
            pass  # more than this user may have

    def copy(self) -> None:
        """Pass on what is there: as much as the pipe holds, for more may come all the time."""
        if self.fd < 0:
            return
        try:
            data = os.read(self.fd, PIPE)
        except BlockingIOError:
            return
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._to, view) :]
        except BlockingIOError:
            pass  # the rest is lost, as where the pipe is full
        except OSError:
            data = b""  # whoever watched has gone
        if not data:
            self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
