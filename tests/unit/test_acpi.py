"""The hardware description: ACPI tables as iasl reads them, the MP table as its spec says."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess

import pytest

from pyvmm import acpi, layout

needs_iasl = pytest.mark.skipif(
    not shutil.which("iasl"), reason="no iasl: apt-get install acpica-tools"
)
VCPUS = [1, 2, 64]
PINS = [0, 4, 5, 6, 7]  # of three devices: timer, serial, and one each


def place(vcpus: int = 1, devices: int = 3) -> dict[bytes, bytes]:
    """The tables by signature."""
    return {table[:4]: table for _, table in acpi.tables(vcpus, devices)}


class TestTables:
    @pytest.mark.parametrize("vcpus", VCPUS)
    @pytest.mark.parametrize("devices", [0, 1, 3, 8])
    def test_checksums_lengths_and_places(self, vcpus, devices):
        placed = acpi.tables(vcpus, devices)
        assert placed[0][0] == layout.RSDP
        end = layout.ACPI_TABLES
        for address, table in placed[1:]:
            assert address % 16 == 0
            assert address >= end
            assert sum(table) % 256 == 0
            assert struct.unpack_from("<I", table, 4) == (len(table),)
            end = address + len(table)
        assert end <= layout.HIGH_RAM

    def test_rsdp_points_to_xsdt(self):
        placed = acpi.tables(2, 3)
        rsdp = placed[0][1]
        assert len(rsdp) == 36
        assert rsdp[:8] == b"RSD PTR "
        assert sum(rsdp[:20]) % 256 == 0
        assert sum(rsdp) % 256 == 0
        revision, rsdt, length, xsdt = struct.unpack_from("<BIIQ", rsdp, 15)
        assert (revision, rsdt, length) == (2, 0, 36)
        assert dict(placed)[xsdt][:4] == b"XSDT"

    def test_xsdt_lists_fadt_and_madt(self):
        placed = dict(acpi.tables(2, 3))
        xsdt = next(t for t in placed.values() if t[:4] == b"XSDT")
        entries = struct.unpack(f"<{(len(xsdt) - 36) // 8}Q", xsdt[36:])
        assert [placed[entry][:4] for entry in entries] == [b"FACP", b"APIC"]

    def test_fadt(self):
        placed = acpi.tables(1, 3)
        (dsdt_at,) = (address for address, table in placed if table[:4] == b"DSDT")
        fadt = place()[b"FACP"]
        assert len(fadt) == 276
        assert fadt[8] == 6
        assert fadt[131] == 5
        assert struct.unpack_from("<I", fadt, 40) == (dsdt_at,)
        assert struct.unpack_from("<Q", fadt, 140) == (dsdt_at,)
        (flags,) = struct.unpack_from("<I", fadt, 112)
        assert flags == 1 << 20 | 1 << 10  # hardware-reduced, reset register
        assert struct.unpack_from("<BBBBQ", fadt, 116) == (1, 8, 0, 1, layout.PORT_RESET)

    @pytest.mark.parametrize("vcpus", VCPUS)
    def test_madt(self, vcpus):
        madt = place(vcpus)[b"APIC"]
        assert struct.unpack_from("<II", madt, 36) == (layout.LAPIC, 0)
        cpus = [struct.unpack_from("<BBBBI", madt, 44 + 8 * i) for i in range(vcpus)]
        assert cpus == [(0, 8, i, i, 1) for i in range(vcpus)]
        ioapic = struct.unpack_from("<BBBBII", madt, 44 + 8 * vcpus)
        assert ioapic == (1, 12, 0, 0, layout.IOAPIC, 0)
        assert len(madt) == 44 + 8 * vcpus + 12


@needs_iasl
class TestIasl:
    @pytest.fixture
    def disassemble(self, tmp_path):
        def disassemble(table: bytes) -> str:
            binary = tmp_path / "table.aml"
            binary.write_bytes(table)
            done = subprocess.run(
                ["iasl", "-d", binary.name], cwd=tmp_path, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            return (tmp_path / "table.dsl").read_text()

        return disassemble

    @pytest.mark.parametrize("devices", [1, 3, 8])
    def test_dsdt_shows_the_devices(self, disassemble, devices):
        source = re.sub(r"\s+", " ", disassemble(acpi.dsdt(devices)))
        for slot in range(devices):
            address, gsi = layout.device(slot)
            start = source.index(f"Device (V{slot:03d})")
            device = source[start : source.index("Device (", start + 1)]
            assert 'Name (_HID, "LNRO0005")' in device
            assert f"0x{address:08X}, // Address Base 0x00001000, // Address Length" in device
            interrupt = "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, )"
            assert f"{interrupt} {{ 0x{gsi:08X}, }}" in device
        serial = source[source.index("Device (COM1)") :]
        assert 'Name (_HID, "PNP0501"' in serial
        assert "IO (Decode16, 0x03F8, // Range Minimum 0x03F8, // Range Maximum" in serial
        assert "0x00000004, }" in serial
        assert source.count("Device (") == devices + 1

    @pytest.mark.parametrize("devices", [1, 3, 8])
    def test_dsdt_compiles_back(self, disassemble, tmp_path, devices):
        """The compiler writes the shortest integers, so its bytes differ; what they say does not:
        its output disassembles to the same text."""
        first = disassemble(acpi.dsdt(devices))
        done = subprocess.run(
            ["iasl", "-on", "-p", "again", "table.dsl"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert " 0 Errors" in done.stdout, done.stdout
        second = disassemble((tmp_path / "again.aml").read_bytes())

        def terms(source: str) -> str:
            """Without comments and header, in one line, numbers in one form."""
            source = re.sub(r"/\*.*?\*/|//[^\n]*", "", source, flags=re.DOTALL)
            source = re.sub(r"\bZero\b", "0x0", re.sub(r"\bOne\b", "0x1", source))
            source = re.sub(r"0x0*(?=[0-9A-F])", "0x", source[source.index("{") :])
            return re.sub(r"\s+", " ", source)

        assert terms(first) == terms(second)

    @pytest.mark.parametrize("signature", [b"FACP", b"APIC", b"XSDT"])
    def test_other_tables_have_no_errors(self, disassemble, signature):
        source = disassemble(place(2)[signature])
        assert "Invalid" not in source
        assert "Incorrect checksum" not in source
        assert "Unknown" not in source


class TestMpTable:
    @pytest.mark.parametrize("vcpus", VCPUS)
    def test_checksums_and_lengths(self, vcpus):
        table = acpi.mp_table(vcpus, 3)
        assert table[:4] == b"_MP_"
        assert sum(table[:16]) % 256 == 0
        assert struct.unpack_from("<IBB", table, 4) == (layout.MP_TABLE + 16, 1, 4)
        config = table[16:]
        assert config[:4] == b"PCMP"
        assert sum(config) % 256 == 0
        assert struct.unpack_from("<H", config, 4) == (len(config),)
        assert len(table) == 16 + 44 + 20 * vcpus + 8 + 8 + 8 * len(PINS) + 2 * 8

    @pytest.mark.parametrize("vcpus", VCPUS)
    def test_entries(self, vcpus):
        config = acpi.mp_table(vcpus, 3)[16:]
        (count,) = struct.unpack_from("<H", config, 34)
        assert struct.unpack_from("<I", config, 36) == (layout.LAPIC,)
        sizes = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}
        entries, at = [], 44
        while at < len(config):
            size = sizes[config[at]]
            entries.append(config[at : at + size])
            at += size
        assert at == len(config)
        assert len(entries) == count

        cpus = [e for e in entries if e[0] == 0]
        assert [e[1] for e in cpus] == list(range(vcpus))
        assert [e[3] for e in cpus] == [3] + [1] * (vcpus - 1)  # enabled; the first boots
        (bus,) = (e for e in entries if e[0] == 1)
        assert bus == b"\1\0ISA   "
        (ioapic,) = (e for e in entries if e[0] == 2)
        assert ioapic[1] == vcpus  # an id that no CPU has
        assert struct.unpack_from("<BBI", ioapic, 2) == (0x14, 1, layout.IOAPIC)
        lines = [struct.unpack("<BBHBBBB", e) for e in entries if e[0] == 3]
        assert lines == [(3, 0, 0, 0, pin, vcpus, pin) for pin in PINS]
        local = [struct.unpack("<BBHBBBB", e) for e in entries if e[0] == 4]
        assert local == [(4, 3, 0, 0, 0, 0, 0), (4, 1, 0, 0, 0, 0xFF, 1)]
