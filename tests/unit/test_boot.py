"""What the kernel is told: command line, zero page, PVH start_info, where the initramfs lies."""

from __future__ import annotations

import os
import struct

import pytest

from pyvmm import acpi, boot, layout, plan
from pyvmm.errors import KernelError
from pyvmm.memory import GuestMemory

MiB, GiB = 1 << 20, 1 << 30
KERNEL = bytes(range(256)) * 20
INITRD = b"initramfs" * 1000


@pytest.fixture(params=[64 * MiB, 5 * GiB], ids=["64M", "5G"])
def memory(request):
    return GuestMemory(request.param)


@pytest.fixture
def load(memory, tmp_path):
    """Load a made-up kernel; returns the memory's reader."""

    def load(**changes):
        spec = {
            "vcpus": 2, "devices": 3, "acpi": True, "entry": "linux64", "cmdline": "quiet",
            "segments": [[100, 1000, 0x1000000, 5000], [2000, 3000, 0x1200000, 3000]],
            "initrd": [0x2000000, len(INITRD)],
        } | changes  # fmt: skip
        for name, content in (("kernel", KERNEL), ("initrd", INITRD)):
            (tmp_path / name).write_bytes(content)
        fds = [os.open(tmp_path / name, os.O_RDONLY) for name in ("kernel", "initrd")]
        boot.load(memory, spec, *fds)
        for fd in fds:
            os.close(fd)

    return load


def at(memory: GuestMemory, address: int, fmt: str):
    return struct.unpack("<" + fmt, memory.read(address, struct.calcsize("<" + fmt)))


class TestLoad:
    def test_files(self, memory, load):
        load()
        assert memory.read(0x1000000, 5000) == KERNEL[100:1100] + bytes(4000)
        assert memory.read(0x1200000, 3000) == KERNEL[2000:5000]
        assert memory.read(0x2000000, len(INITRD)) == INITRD

    def test_command_line(self, memory, load):
        load(cmdline="quiet x=ü")
        assert memory.read(layout.CMDLINE, 11) == "quiet x=ü".encode() + b"\0"

    def test_acpi_or_mp_table(self, memory, load):
        load(acpi=False)
        table = acpi.mp_table(2, 3)
        assert memory.read(layout.MP_TABLE, len(table)) == table
        assert memory.read(layout.RSDP, 8) == bytes(8)
        load()
        for address, table in acpi.tables(2, 3):
            assert memory.read(address, len(table)) == table

    def test_descriptor_tables(self, memory, load):
        load()
        gdt = at(memory, layout.GDT, "4Q")
        assert gdt == (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x008F8B000000FFFF)

    def test_truncated_kernel(self, load):
        with pytest.raises(Exception, match="ends 4880 bytes early"):
            load(segments=[[0, len(KERNEL) + 4880, 0x1000000, 20000]])


class TestZeroPage:
    def test_fields(self, memory, load):
        load()
        page = layout.ZERO_PAGE
        assert at(memory, page + 0x70, "Q") == (layout.RSDP,)
        assert at(memory, page + 0x1FE, "H2xIH") == (0xAA55, 0x53726448, 0x020F)
        assert at(memory, page + 0x210, "BB") == (0xFF, 1)
        assert at(memory, page + 0x218, "II") == (0x2000000, len(INITRD))
        assert at(memory, page + 0x228, "I") == (layout.CMDLINE,)
        assert at(memory, page + 0x230, "I") == (0x1000000,)
        assert at(memory, page + 0x238, "I") == (layout.CMDLINE_MAX,)

    def test_memory_map(self, memory, load):
        load()
        expected = layout.e820(memory.size)
        assert at(memory, layout.ZERO_PAGE + 0x1E8, "B") == (len(expected),)
        for i, entry in enumerate(expected):
            assert at(memory, layout.ZERO_PAGE + 0x2D0 + 20 * i, "QQI") == entry

    def test_random_seed_differs_each_time(self, memory, load):
        seeds = set()
        for _ in range(2):
            load()
            (address,) = at(memory, layout.ZERO_PAGE + 0x250, "Q")
            assert at(memory, address, "QII") == (0, 9, 32)
            seeds.add(memory.read(address + 16, 32))
        assert len(seeds) == 2
        assert bytes(32) not in seeds

    def test_no_rsdp_without_acpi(self, memory, load):
        load(acpi=False)
        assert at(memory, layout.ZERO_PAGE + 0x70, "Q") == (0,)

    def test_page_tables_map_4_gib_to_itself(self, memory, load):
        load()
        assert at(memory, layout.PML4, "512Q") == (layout.PDPT | 3, *[0] * 511)
        pdpt = at(memory, layout.PDPT, "512Q")
        assert pdpt == (*(layout.PAGE_DIRECTORIES + 4096 * i | 3 for i in range(4)), *[0] * 508)
        directories = at(memory, layout.PAGE_DIRECTORIES, "2048Q")
        assert directories == tuple((i << 21) | 0x83 for i in range(2048))


class TestPvh:
    def test_start_info(self, memory, load):
        load(entry="pvh")
        entries = layout.e820(memory.size)
        assert at(memory, layout.PVH_START_INFO, "IIIIQQQQII") == (
            0x336EC578, 1, 0, 1, layout.PVH_MODULES, layout.CMDLINE, layout.RSDP,
            layout.PVH_MEMORY_MAP, len(entries), 0,
        )  # fmt: skip
        module = at(memory, layout.PVH_MODULES, "QQQQ")
        assert module == (0x2000000, len(INITRD), 0, 0)
        for i, entry in enumerate(entries):
            assert at(memory, layout.PVH_MEMORY_MAP + 24 * i, "QQII") == (*entry, 0)

    def test_no_rsdp_without_acpi(self, memory, load):
        load(entry="pvh", acpi=False)
        assert at(memory, layout.PVH_START_INFO + 32, "Q") == (0,)

    def test_no_zero_page(self, memory, load):
        load(entry="pvh")
        assert memory.read(layout.ZERO_PAGE, 4096) == bytes(4096)


class TestCommandLine:
    def test_devices_only_without_acpi(self):
        line = plan.cmdline(acpi_kernel=False, devices=2, extra="")
        devices = [word for word in line.split() if word.startswith("virtio_mmio")]
        assert devices == [
            "virtio_mmio.device=4K@0xc0001000:5",
            "virtio_mmio.device=4K@0xc0002000:6",
        ]
        assert "virtio_mmio" not in plan.cmdline(acpi_kernel=True, devices=2, extra="")

    def test_no_pci_only_where_linux_would_look_for_it(self):
        assert "pci=off" in plan.cmdline(acpi_kernel=True, devices=2, extra="").split()
        assert "pci=off" not in plan.cmdline(acpi_kernel=False, devices=2, extra="").split()

    def test_only_the_console_comes_after_extra(self):
        line = plan.cmdline(acpi_kernel=True, devices=0, extra="a b")
        assert line.endswith(" a b 8250.nr_uarts=0 earlyprintk=ttyS0,115200,keep")
        line = plan.cmdline(acpi_kernel=True, devices=0, extra="a b", live=True)
        assert line.endswith(" a b console=ttyS0 8250.nr_uarts=1 8250.skip_txen_test=1")

    def test_longest(self):
        room = 4095 - len(plan.cmdline(acpi_kernel=True, devices=0, extra="")) - 1
        line = plan.cmdline(acpi_kernel=True, devices=0, extra="x" * room)
        assert len(line) == 4095
        with pytest.raises(KernelError, match="4096 bytes: at most 4095"):
            plan.cmdline(acpi_kernel=True, devices=0, extra="x" * (room + 1))


class TestPlaceInitrd:
    SEGMENTS = ([0, 0, 16 * MiB, 4 * MiB],)

    def place(self, memory: int, size: int, vcpus: int = 1) -> int:
        return plan.place_initrd(memory, vcpus, list(self.SEGMENTS), size, "k")

    @pytest.mark.parametrize(
        ("memory", "size", "address"),
        [
            (64 * MiB, 4096, 64 * MiB - 4096),
            (64 * MiB, 4097, 64 * MiB - 8192),
            (64 * MiB, 1, 64 * MiB - 4096),
            (8 * GiB, 1 * MiB, 3 * GiB - 1 * MiB),
            (64 * MiB + 4096, 4096, 64 * MiB),
            (3 * GiB + 4096, 4096, 3 * GiB - 4096),
            (31 * MiB, 1 * MiB, 30 * MiB),
        ],
    )
    def test_at_the_end_of_low_memory(self, memory, size, address):
        assert self.place(memory, size) == address

    @pytest.mark.parametrize(
        ("size", "vcpus", "least"),
        [
            (1, 1, 30),
            (512 * 1024, 1, 30),
            (512 * 1024 + 1, 1, 31),
            (1 * MiB, 2, 31),
            (1 * MiB, 3, 32),
            (1 * MiB, 64, 62),
        ],
    )
    def test_too_little_memory_says_how_much_is_enough(self, size, vcpus, least):
        self.place(least * MiB, size, vcpus)
        for memory, amount in (
            (least * MiB - 4096, f"{least * MiB - 4096} bytes"),
            (1 * MiB, "1 MiB"),
            (4096, "4096 bytes"),
        ):
            with pytest.raises(KernelError) as caught:
                self.place(memory, size, vcpus)
            assert str(caught.value) == (
                f"memory of {amount} is too small for kernel k: "
                f"it needs at least {least}M (--memory)"
            )


class TestGuestMemory:
    def test_outside_ram(self):
        memory = GuestMemory(1 * MiB)
        for address, size in ((1 * MiB, 1), (1 * MiB - 1, 2), (4 * GiB, 1), (layout.HOLE, 1)):
            with pytest.raises(ValueError, match="no RAM at"):
                memory.read(address, size)
            with pytest.raises(ValueError, match="no RAM at"):
                memory.write(address, bytes(size))

    def test_not_across_the_hole(self):
        memory = GuestMemory(5 * GiB)
        with pytest.raises(ValueError, match="no RAM at"):
            memory.read(3 * GiB - 1, 2)
        memory.write(3 * GiB - 1, b"a")
        memory.write(4 * GiB, b"b")
        assert memory.read(3 * GiB - 1, 1) + memory.read(4 * GiB, 1) == b"ab"
