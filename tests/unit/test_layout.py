"""The map of the guest's physical addresses: nothing overlaps, and C agrees with it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from pyvmm import layout

MiB, GiB = 1 << 20, 1 << 30
HEADER = Path(__file__).parents[2] / "csrc" / "core.h"


@pytest.mark.parametrize(
    "name", ["MMIO_BASE", "MMIO_STRIDE", "PORT_MARK", "PORT_RESET", "PORT_SERIAL"]
)
def test_constants_equal_the_core_s(name):
    match = re.search(rf"^#define {name}\s+(0x[0-9a-f]+)u?$", HEADER.read_text(), re.MULTILINE)
    assert match
    assert int(match[1], 16) == getattr(layout, name)


def test_regions_do_not_overlap():
    regions = [
        (layout.GDT, 32),
        (layout.IDT, 8),
        (layout.PVH_START_INFO, 56),
        (layout.PVH_MODULES, 32),
        (layout.PVH_MEMORY_MAP, 24 * 4),
        (layout.ZERO_PAGE, layout.PAGE),
        (0x8000, 48),  # boot.SETUP_RNG_SEED_AT
        (layout.BOOT_STACK - 256, 256),
        (layout.PML4, layout.PAGE),
        (layout.PDPT, layout.PAGE),
        (layout.PAGE_DIRECTORIES, 4 * layout.PAGE),
        (layout.CMDLINE, layout.CMDLINE_MAX),
        (layout.MP_TABLE, 284 + 20 * 64),
        (layout.RSDP, 36),
        (layout.ACPI_TABLES, layout.HIGH_RAM - layout.ACPI_TABLES),
        (layout.HIGH_RAM, 1),
        (layout.HOLE, 1),
        *((layout.device(slot)[0], layout.MMIO_STRIDE) for slot in range(8)),
        (layout.IOAPIC, layout.PAGE),
        (layout.LAPIC, layout.PAGE),
        (layout.IDENTITY_MAP, layout.PAGE),
        (layout.TSS, 3 * layout.PAGE),
        (layout.HOLE_END, 1),
    ]
    assert regions == sorted(regions)
    for (start, size), (after, _) in pairwise(regions):
        assert start + size <= after, hex(start)


@pytest.mark.parametrize(
    ("memory", "regions"),
    [
        (4096, [(0, 4096)]),
        (512 * MiB, [(0, 512 * MiB)]),
        (3 * GiB, [(0, 3 * GiB)]),
        (3 * GiB + 4096, [(0, 3 * GiB), (4 * GiB, 4096)]),
        (5 * GiB, [(0, 3 * GiB), (4 * GiB, 2 * GiB)]),
    ],
)
def test_ram_is_split_around_the_hole(memory, regions):
    assert layout.ram_regions(memory) == regions


LOW = [(0, 0x9FC00, 1), (0x9FC00, 0x60400, 2)]


@pytest.mark.parametrize(
    ("memory", "high"),
    [
        (512 * MiB, [(MiB, 511 * MiB, 1)]),
        (64 * MiB + 4096, [(MiB, 63 * MiB + 4096, 1)]),
        (3 * GiB - 4096, [(MiB, 3 * GiB - MiB - 4096, 1)]),
        (3 * GiB, [(MiB, 3 * GiB - MiB, 1)]),
        (3 * GiB + 4096, [(MiB, 3 * GiB - MiB, 1), (4 * GiB, 4096, 1)]),
        (5 * GiB, [(MiB, 3 * GiB - MiB, 1), (4 * GiB, 2 * GiB, 1)]),
    ],
)
def test_memory_map(memory, high):
    assert layout.e820(memory) == LOW + high


def test_devices_have_a_page_and_an_interrupt_line_each():
    assert [layout.device(slot) for slot in range(3)] == [
        (0xC0001000, 5),
        (0xC0002000, 6),
        (0xC0003000, 7),
    ]
