"""From a kernel file to a guest about to start: what lies where, and the tables it is told by.

Two entries: Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst), and PVH (Xen,
docs/misc/pvh.pandoc). The first is the default: entered by PVH, Linux looks for Xen through 256
CPUID leaves, an exit each, and there is no way to hand it a random seed.
"""

from __future__ import annotations

import os
import struct

from . import acpi, cpu, layout
from .kvm import Vcpu
from .memory import GuestMemory

TYPE_CHECKING = False  # see worker.py
if TYPE_CHECKING:
    from typing import Any

PVH_MAGIC = 0x336EC578
SETUP_RNG_SEED = 9
SETUP_RNG_SEED_AT = 0x8000  # struct setup_data, between the zero page and the stack


def load(memory: GuestMemory, spec: dict[str, Any], kernel_fd: int, initrd_fd: int) -> None:
    """Put kernel, initramfs, command line and tables into guest memory."""
    for offset, filesz, paddr, _memsz in spec["segments"]:
        memory.load(paddr, kernel_fd, offset, filesz)
    initrd, size = spec["initrd"]
    memory.load(initrd, initrd_fd, 0, size)
    memory.write(layout.CMDLINE, spec["cmdline"].encode() + b"\0")
    if spec["acpi"]:
        for address, table in acpi.tables(spec["vcpus"], spec["devices"]):
            memory.write(address, table)
    else:
        memory.write(layout.MP_TABLE, acpi.mp_table(spec["vcpus"], spec["devices"]))
    if spec["entry"] == "pvh":
        _write_start_info(memory, spec)
    else:
        _write_zero_page(memory, spec)
        write_page_tables(memory)
    gdt = struct.pack("<4Q", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x008F8B000000FFFF)
    memory.write(layout.GDT, gdt)
    memory.write(layout.IDT, bytes(8))


def enter(vcpu: Vcpu, spec: dict[str, Any]) -> None:
    """Point the first vCPU at the kernel."""
    reset = vcpu.get_sregs()
    if spec["entry"] == "pvh":
        vcpu.set_sregs(cpu.protected_mode(reset))
        vcpu.set_regs(cpu.regs(rip=spec["address"], rbx=layout.PVH_START_INFO))
    else:
        vcpu.set_sregs(cpu.long_mode(reset))
        vcpu.set_regs(
            cpu.regs(
                rip=spec["address"],
                rsi=layout.ZERO_PAGE,
                rsp=layout.BOOT_STACK,
                rbp=layout.BOOT_STACK,
            )
        )


def _write_start_info(memory: GuestMemory, spec: dict[str, Any]) -> None:
    """struct hvm_start_info, version 1 (Xen, include/public/arch-x86/hvm/start_info.h)."""
    address, size = spec["initrd"]
    entries = layout.e820(memory.size)
    memory.write(layout.PVH_MODULES, struct.pack("<QQQQ", address, size, 0, 0))
    memory.write(
        layout.PVH_MEMORY_MAP, b"".join(struct.pack("<QQII", *entry, 0) for entry in entries)
    )
    memory.write(
        layout.PVH_START_INFO,
        struct.pack(
            "<IIIIQQQQII",
            PVH_MAGIC,
            1,
            0,
            1,
            layout.PVH_MODULES,
            layout.CMDLINE,
            layout.RSDP if spec["acpi"] else 0,
            layout.PVH_MEMORY_MAP,
            len(entries),
            0,
        ),
    )


def _write_zero_page(memory: GuestMemory, spec: dict[str, Any]) -> None:
    """struct boot_params (Documentation/arch/x86/zero-page.rst)."""
    page = bytearray(layout.PAGE)
    address, size = spec["initrd"]
    entries = layout.e820(memory.size)

    def put(offset: int, fmt: str, *values: int) -> None:
        struct.pack_into("<" + fmt, page, offset, *values)

    if spec["acpi"]:
        put(0x70, "Q", layout.RSDP)
    put(0x1E8, "B", len(entries))
    put(0x1FE, "H", 0xAA55)
    put(0x202, "I", 0x53726448)  # "HdrS"
    put(0x206, "H", 0x020F)
    put(0x210, "B", 0xFF)  # type_of_loader: none of those with a number
    put(0x211, "B", 1)  # loadflags: LOADED_HIGH
    put(0x218, "II", address, size)
    put(0x228, "I", layout.CMDLINE)
    put(0x230, "I", 0x1000000)  # kernel_alignment
    put(0x238, "I", layout.CMDLINE_MAX)
    put(0x250, "Q", SETUP_RNG_SEED_AT)
    for i, entry in enumerate(entries):
        put(0x2D0 + 20 * i, "QQI", *entry)
    memory.write(layout.ZERO_PAGE, bytes(page))
    memory.write(SETUP_RNG_SEED_AT, struct.pack("<QII", 0, SETUP_RNG_SEED, 32) + os.urandom(32))


def write_page_tables(memory: GuestMemory) -> None:
    """Identity map of the first 4 GiB in 2 MiB pages."""
    present_writable, large = 3, 0x80
    end = layout.PAGE_DIRECTORIES + 4 * layout.PAGE
    directories = range(layout.PAGE_DIRECTORIES | present_writable, end, layout.PAGE)
    # Ranges, because a generator would take longer than all other tables together.
    pages = range(large | present_writable, 1 << 32, 2 << 20)
    memory.write(layout.PML4, struct.pack("<Q", layout.PDPT | present_writable))
    memory.write(layout.PDPT, struct.pack("<4Q", *directories))
    memory.write(layout.PAGE_DIRECTORIES, struct.pack("<2048Q", *pages))
