"""The guest's console: the tail of it, in memory that outlives a killed worker.

The C core's serial port writes into a ``struct console_ring`` (csrc/core_cdef.h) in a memfd that
caller and worker share.
"""

from __future__ import annotations

import os
import struct

COUNTER = 8
CAPACITY = 64 << 10
SIZE = COUNTER + CAPACITY


class Console:
    """The caller's end of the ring."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("pyvmm-console")
        os.ftruncate(self.fd, SIZE)
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
