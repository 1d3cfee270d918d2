"""Guest RAM: anonymous host memory, split around the MMIO hole, mapped into the VM."""

from __future__ import annotations

import errno
import mmap
import os

from . import layout
from ._core import ffi, lib
from .errors import HostError
from .kvm import Vm

# Not in Python 3.11's mmap module: asm-generic/mman-common.h
MAP_NORESERVE = 0x4000
MAP_HUGETLB = 0x40000
MAP_HUGE_SHIFT = 26
MADV_POPULATE_WRITE = 23
HUGE_PAGE = 2 << 20


class Region:
    """Contiguous guest RAM: ``size`` bytes at guest-physical ``gpa``, at ``address`` in ours."""

    def __init__(self, gpa: int, size: int, mapping: mmap.mmap, align: int) -> None:
        """``mapping`` is long enough for ``gpa`` and ``address`` to agree modulo ``align``."""
        start = int(ffi.cast("uintptr_t", ffi.from_buffer(mapping)))
        self.gpa, self.size, self.mapping = gpa, size, mapping
        self.skip = (gpa - start) % align
        self.address = start + self.skip
        self.view = memoryview(mapping)[self.skip : self.skip + size]


class GuestMemory:
    """All of a guest's RAM. Anonymous, because shared memory costs several times as much to touch;
    aligned, because KVM maps a huge page only where both its addresses agree modulo its size.
    """

    def __init__(
        self, size: int, *, hugepages: int = 0, node: int | None = None, prefault: bool = False
    ) -> None:
        """Reserve ``size`` bytes (a multiple of 4096). Pages come when they are touched, or now
        (``prefault``); from the host's pool of pages of ``hugepages`` bytes, from NUMA ``node``.
        """
        self.size = size
        # The pool's pages are reserved as a number, wherever they are. That the node has them is
        # only sure once we hold them: else a later touch would be SIGBUS.
        prefault = prefault or (hugepages > 0 and node is not None)
        self.regions = []
        for gpa, length in layout.ram_regions(size):
            region = _reserve(gpa, length, hugepages)
            if node is not None:
                _bind(region, node)
            if prefault:
                _populate(region, hugepages)
            self.regions.append(region)

    def map_into(self, vm: Vm) -> None:
        """Give the VM its memory slots."""
        for slot, region in enumerate(self.regions):
            try:
                vm.set_memory(slot, region.gpa, region.size, region.address)
            except OSError as e:
                # KVM's word for a slot of 8 TiB, and for addresses that the CPU has no bits for.
                if e.errno != errno.EINVAL:
                    raise
                raise HostError(
                    f"memory of {self.size >> 20} MiB: more than KVM can address on this host"
                ) from None

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


def _reserve(gpa: int, length: int, hugepages: int) -> Region:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if hugepages:
        # Reserved here and now (no MAP_NORESERVE); the kernel aligns it, as the hole is: to 1 GiB.
        align, spare = hugepages, 0
        flags |= MAP_HUGETLB | (hugepages.bit_length() - 1) << MAP_HUGE_SHIFT
    else:
        align = spare = HUGE_PAGE
        flags |= MAP_NORESERVE
    try:
        mapping = mmap.mmap(-1, length + spare, flags)
    except OSError as e:
        if not hugepages:
            raise HostError(f"cannot reserve {length >> 20} MiB of memory: {e.strerror}") from None
        raise HostError(
            f"cannot reserve {length // hugepages} huge pages of {_name(hugepages)}: {e.strerror} "
            f"(raise /sys/kernel/mm/hugepages/hugepages-{hugepages >> 10}kB/nr_hugepages)"
        ) from None
    if not hugepages:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return Region(gpa, length, mapping, align)


def _bind(region: Region, node: int) -> None:
    error = -lib.vm_bind_memory(ffi.cast("void *", region.address), region.size, node)
    if error:
        mend = " (a container needs CAP_SYS_NICE for it)" if error == errno.EPERM else ""
        raise HostError(f"cannot bind memory to NUMA node {node}: {os.strerror(error)}{mend}")


def _populate(region: Region, hugepages: int) -> None:
    try:
        region.mapping.madvise(MADV_POPULATE_WRITE, region.skip, region.size)
    except OSError as e:
        why = e.strerror
        if e.errno == errno.EINVAL:
            why = "needs Linux 5.14"
        elif e.errno == errno.EFAULT and hugepages:
            why = f"not enough free huge pages of {_name(hugepages)} where they may come from"
        raise HostError(f"cannot prefault {region.size >> 20} MiB of guest RAM: {why}") from None


def _name(hugepages: int) -> str:
    return "1G" if hugepages >> 30 else "2M"
