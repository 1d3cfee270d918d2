"""The hardware description: ACPI tables (ACPI 6.5, hardware-reduced), or an MP table.

A kernel with ACPI finds its CPUs in the MADT and its devices in the DSDT; pyvmm's minimal kernel
has no ACPI and reads an MP table (Intel MultiProcessor Specification 1.4), its devices stand on the
command line (``virtio_mmio.device=``).
"""

from __future__ import annotations

import struct

from . import layout

OEM = b"PYVMM "
OEM_TABLE = b"PYVMMVM "

# FADT: flags (§5.2.9), IA-PC boot architecture flags (§5.2.9.3)
HW_REDUCED = 1 << 20
RESET_REG_SUPPORTED = 1 << 10
NO_VGA, NO_MSI, NO_CMOS_RTC = 1 << 2, 1 << 3, 1 << 5


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    header = struct.pack(
        "<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, OEM, OEM_TABLE, 1, b"PYVM", 1
    )
    table = bytearray(header + body)
    table[9] = _checksum(table)
    return bytes(table)


# ---- AML (§20.2): just the terms the DSDT needs ----


def _length(body: bytes) -> bytes:
    """PkgLength, which counts itself."""
    if len(body) + 1 < 0x40:
        return bytes([len(body) + 1]) + body
    total = len(body) + 2
    return bytes([0x40 | total & 0xF, total >> 4]) + body


def _integer(value: int) -> bytes:
    return b"\x0c" + struct.pack("<I", value)


def _string(text: str) -> bytes:
    return b"\x0d" + text.encode() + b"\0"


def _resources(*descriptors: bytes) -> bytes:
    template = b"".join(descriptors) + b"\x79\0"
    return b"\x11" + _length(_integer(len(template)) + template)


def _name(name: str, value: bytes) -> bytes:
    return b"\x08" + name.encode() + value


def _device(name: str, *terms: bytes) -> bytes:
    return b"\x5b\x82" + _length(name.encode() + b"".join(terms))


def _interrupt(gsi: int) -> bytes:
    """Extended Interrupt (§6.4.3.6): consumer, edge, active high, exclusive."""
    return struct.pack("<BHBBI", 0x89, 6, 3, 1, gsi)


def _virtio_device(slot: int) -> bytes:
    address, gsi = layout.device(slot)
    memory = struct.pack("<BHBII", 0x86, 9, 1, address, layout.MMIO_STRIDE)  # Memory32Fixed
    return _device(
        f"V{slot:03d}",
        _name("_HID", _string("LNRO0005")),
        _name("_UID", _integer(slot)),
        _name("_CCA", _integer(1)),
        _name("_CRS", _resources(memory, _interrupt(gsi))),
    )


def _serial_device() -> bytes:
    ports = struct.pack("<BBHHBB", 0x47, 1, layout.PORT_SERIAL, layout.PORT_SERIAL, 1, 8)
    return _device(
        "COM1",
        _name("_HID", _string("PNP0501")),
        _name("_UID", _integer(0)),
        _name("_CRS", _resources(ports, _interrupt(layout.GSI_SERIAL))),
    )


def dsdt(devices: int) -> bytes:
    """The DSDT for ``devices`` virtio-mmio slots."""
    body = b"\\_SB_" + b"".join(_virtio_device(i) for i in range(devices)) + _serial_device()
    return _table(b"DSDT", 6, b"\x10" + _length(body))


def _madt(vcpus: int) -> bytes:
    cpus = b"".join(struct.pack("<BBBBI", 0, 8, i, i, 1) for i in range(vcpus))
    ioapic = struct.pack("<BBBBII", 1, 12, 0, 0, layout.IOAPIC, 0)
    return _table(b"APIC", 5, struct.pack("<II", layout.LAPIC, 0) + cpus + ioapic)


def _fadt(dsdt_at: int) -> bytes:
    fadt = bytearray(276 - 36)

    def put(offset: int, fmt: str, *values: int) -> None:
        struct.pack_into("<" + fmt, fadt, offset - 36, *values)

    put(40, "I", dsdt_at)
    put(109, "H", NO_VGA | NO_MSI | NO_CMOS_RTC)
    put(112, "I", HW_REDUCED | RESET_REG_SUPPORTED)
    put(116, "BBBBQ", 1, 8, 0, 1, layout.PORT_RESET)  # RESET_REG: I/O, 8 bits, byte access
    put(128, "B", 1)
    put(131, "B", 5)  # minor version: 6.5
    put(140, "Q", dsdt_at)
    return _table(b"FACP", 6, bytes(fadt))


def tables(vcpus: int, devices: int) -> list[tuple[int, bytes]]:
    """All ACPI tables as ``(address, bytes)``; the first is the RSDP."""
    at = layout.ACPI_TABLES
    placed: list[tuple[int, bytes]] = []

    def place(table: bytes) -> int:
        nonlocal at
        address, at = at, at + len(table) + 15 & ~15
        placed.append((address, table))
        return address

    dsdt_at = place(dsdt(devices))
    listed = [place(_fadt(dsdt_at)), place(_madt(vcpus))]
    xsdt_at = place(_table(b"XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed)))
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM, 2, 0, 36, xsdt_at, 0))
    rsdp[8] = _checksum(rsdp[:20])
    rsdp[32] = _checksum(rsdp)
    return [(layout.RSDP, bytes(rsdp)), *placed]


def mp_table(vcpus: int, devices: int) -> bytes:
    """The MP floating pointer and configuration table, for layout.MP_TABLE.

    It lists only the interrupt lines in use: a kernel programs every one it is told of, by some
    twenty exits each.
    """
    pins = (0, layout.GSI_SERIAL, *(layout.device(slot)[1] for slot in range(devices)))
    ioapic_id = vcpus
    entries = [
        struct.pack("<BBBBII8x", 0, i, 0x14, 1 | (2 if i == 0 else 0), 0x600, 0x201)
        for i in range(vcpus)
    ]
    entries.append(struct.pack("<BB6s", 1, 0, b"ISA   "))
    entries.append(struct.pack("<BBBBI", 2, ioapic_id, 0x14, 1, layout.IOAPIC))
    entries += [struct.pack("<BBHBBBB", 3, 0, 0, 0, pin, ioapic_id, pin) for pin in pins]
    entries.append(struct.pack("<BBHBBBB", 4, 3, 0, 0, 0, 0, 0))  # ExtINT on LINT0
    entries.append(struct.pack("<BBHBBBB", 4, 1, 0, 0, 0, 0xFF, 1))  # NMI on LINT1 of all
    body = b"".join(entries)
    table = bytearray(
        struct.pack(
            "<4sHBB8s12sIHHIHBB", b"PCMP", 44 + len(body), 4, 0, OEM + b"  ", OEM_TABLE + b"    ",
            0, 0, len(entries), layout.LAPIC, 0, 0, 0,
        )
        + body
    )  # fmt: skip
    table[7] = _checksum(table)
    pointer = bytearray(struct.pack("<4sIBBB5x", b"_MP_", layout.MP_TABLE + 16, 1, 4, 0))
    pointer[10] = _checksum(pointer)
    return bytes(pointer + table)
