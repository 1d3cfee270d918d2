"""Guest RAM: anonymous host memory, split around the MMIO hole, mapped into the VM."""

from __future__ import annotations

import mmap
import os

from . import layout
from ._core import ffi
from .errors import HostError
from .kvm import Vm

MAP_NORESERVE = 0x4000  # not in Python 3.11's mmap module: asm-generic/mman-common.h
HUGE_PAGE = 2 << 20


class Region:
    """Contiguous guest RAM: ``size`` bytes at guest-physical ``gpa``, at ``address`` in ours."""

    def __init__(self, gpa: int, address: int, view: memoryview) -> None:
        self.gpa, self.address, self.view = gpa, address, view
        self.size = len(view)


class GuestMemory:
    """All of a guest's RAM. Anonymous, because shared memory costs several times as much to touch;
    aligned, because KVM maps a huge page only where both its addresses agree modulo its size.
    """

    def __init__(self, size: int) -> None:
        """Reserve ``size`` bytes (a multiple of 4096). Pages come when they are touched."""
        self.size = size
        self.regions = [_reserve(gpa, length) for gpa, length in layout.ram_regions(size)]

    def map_into(self, vm: Vm) -> None:
        """Give the VM its memory slots."""
        for slot, region in enumerate(self.regions):
            vm.set_memory(slot, region.gpa, region.size, region.address)

    def _at(self, gpa: int, length: int) -> memoryview:
        for region in self.regions:
            if region.gpa <= gpa and gpa + length <= region.gpa + region.size:
                return region.view[gpa - region.gpa : gpa - region.gpa + length]
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


def _reserve(gpa: int, length: int) -> Region:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    try:
        mapping = mmap.mmap(-1, length + HUGE_PAGE, flags)
    except OSError as e:
        raise HostError(f"cannot reserve {length >> 20} MiB of memory: {e.strerror}") from None
    mapping.madvise(mmap.MADV_HUGEPAGE)
    address = int(ffi.cast("uintptr_t", ffi.from_buffer(mapping)))
    skip = -address % HUGE_PAGE
    return Region(gpa, address + skip, memoryview(mapping)[skip : skip + length])
