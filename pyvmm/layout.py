"""The guest's physical address space: every address the monitor chooses stands here.

::

    0x0000_0500  GDT, then IDT
    0x0000_6000  PVH start_info, its module list, its memory map
    0x0000_7000  zero page (boot_params)
    0x0000_9000  page tables: PML4, PDPT, four PDs (identity map of 4 GiB, 2 MiB pages)
    0x0002_0000  kernel command line
    0x0009_fc00  MP table (kernels without ACPI)      ── end of low RAM ──
    0x000e_0000  RSDP and the ACPI tables             (reserved up to 1 MiB)
    0x0010_0000  RAM: the kernel where its ELF says, the initramfs at the end of low RAM
    0xc000_0000  ── hole: virtio-mmio devices, a page each, from 0xc000_1000 ──
    0xfec0_0000  IOAPIC
    0xfee0_0000  LAPIC
    0xfffb_c000  identity-map page and TSS (VT-x without unrestricted guest)
    0x1_0000_0000 RAM that did not fit below the hole

csrc/core.h repeats MMIO_BASE, MMIO_STRIDE and the ports; tests/unit/test_layout.py compares them.
"""

from __future__ import annotations

GDT = 0x500
IDT = 0x520
PVH_START_INFO = 0x6000
PVH_MODULES = 0x6040
PVH_MEMORY_MAP = 0x6100
ZERO_PAGE = 0x7000
BOOT_STACK = 0x8FF0
PML4 = 0x9000
PDPT = 0xA000
PAGE_DIRECTORIES = 0xB000
CMDLINE = 0x20000
CMDLINE_MAX = 4096
LOW_RAM_END = 0x9FC00
MP_TABLE = LOW_RAM_END
RSDP = 0xE0000
ACPI_TABLES = 0xE0040
HIGH_RAM = 0x100000

HOLE = 0xC0000000
HOLE_END = 0x100000000
MMIO_BASE = 0xC0001000
MMIO_STRIDE = 0x1000
IOAPIC = 0xFEC00000
LAPIC = 0xFEE00000
IDENTITY_MAP = 0xFFFBC000
TSS = 0xFFFBD000

PORT_SERIAL = 0x3F8
PORT_MARK = 0x600
PORT_RESET = 0x604

# Registers of a virtio-mmio device that KVM itself takes (Virtio 1.2 §4.2.2)
QUEUE_NOTIFY = 0x50
INTERRUPT_ACK = 0x64
# Those that the driver only writes, and that mean nothing before it writes another: DriverFeatures
# and its Sel, the queue's size, and its six addresses. (address, bytes)
WRITE_ONLY = ((0x20, 8), (0x38, 4), (0x80, 40))

GSI_SERIAL = 4
GSI_DEVICES = 5

PAGE = 4096


def ram_regions(memory: int) -> list[tuple[int, int]]:
    """Split ``memory`` bytes of RAM around the hole: ``[(address, size), …]``."""
    if memory <= HOLE:
        return [(0, memory)]
    return [(0, HOLE), (HOLE_END, memory - HOLE)]


def e820(memory: int) -> list[tuple[int, int, int]]:
    """Return the memory map for the kernel as ``(address, size, type)``; 1 is RAM, 2 reserved."""
    low = min(memory, HOLE)
    entries = [
        (0, LOW_RAM_END, 1),
        (LOW_RAM_END, HIGH_RAM - LOW_RAM_END, 2),
        (HIGH_RAM, low - HIGH_RAM, 1),
    ]
    if memory > HOLE:
        entries.append((HOLE_END, memory - HOLE, 1))
    return entries


def device(slot: int) -> tuple[int, int]:
    """Return ``(address, GSI)`` of the virtio-mmio device in ``slot``."""
    return MMIO_BASE + slot * MMIO_STRIDE, GSI_DEVICES + slot
