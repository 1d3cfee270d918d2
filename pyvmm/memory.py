"""Guest RAM: anonymous host memory, split around the MMIO hole, mapped into the VM."""

from __future__ import annotations

import mmap
import os

from . import layout
from ._core import ffi
from .errors import HostError
from .kvm import Vm

# Not in Python 3.11's mmap module: asm-generic/mman-common.h.
MAP_NORESERVE = 0x4000
MADV_HUGEPAGE = 14


class GuestMemory:
    """All of a guest's RAM. Anonymous, because shared memory costs several times as much to touch."""

    def __init__(self, size: int) -> None:
        """Reserve ``size`` bytes (a multiple of 4096). Pages come when they are touched."""
        self.size = size
        self.regions: list[tuple[int, mmap.mmap]] = []
        for gpa, length in layout.ram_regions(size):
            try:
                region = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
            except OSError as e:
                raise HostError(f"cannot reserve {length >> 20} MiB of memory: {e.strerror}") from None
            region.madvise(MADV_HUGEPAGE)
            self.regions.append((gpa, region))

    def map_into(self, vm: Vm) -> None:
        """Give the VM its memory slots."""
        for slot, (gpa, region) in enumerate(self.regions):
            address = int(ffi.cast("uintptr_t", ffi.from_buffer(region)))
            vm.set_memory(slot, gpa, len(region), address)

    def _at(self, gpa: int, length: int) -> memoryview:
        for start, region in self.regions:
            if start <= gpa and gpa + length <= start + len(region):
                return memoryview(region)[gpa - start : gpa - start + length]
        raise ValueError(f"no RAM at {gpa:#x}+{length:#x}")

    def write(self, gpa: int, data: bytes) -> None:
        """Store ``data`` at a guest-physical address; ValueError outside RAM."""
        self._at(gpa, len(data))[:] = data

    def read(self, gpa: int, length: int) -> bytes:
        """Load ``length`` bytes from a guest-physical address; ValueError outside RAM."""
        return bytes(self._at(gpa, length))

    def load(self, gpa: int, fd: int, offset: int, length: int) -> None:
        """Read ``length`` bytes of a file straight into guest memory."""
        view = self._at(gpa, length)
        done = 0
        while done < length:
            n = os.preadv(fd, [view[done:]], offset + done)
            if n == 0:
                raise HostError(f"kernel or initramfs file ends {length - done} bytes early")
            done += n
