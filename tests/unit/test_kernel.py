"""Kernels: what is read from ELF files and bzImages, and what the cache makes of them."""

from __future__ import annotations

import gzip
import importlib.util
import lzma
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm import kernel
from pyvmm.errors import KernelError
from pyvmm.kernel import Kernel, Segment, bzimage, elf, lz4

BANNER = b"Linux version 6.99.1-test (a@b) #1\0"
DRIVERS = b"virtio-mmio\0virtio_blk\0vmw_vsock_virtio_transport\0EXT4-fs error\0"
BY_COMMAND_LINE = b"virtio_mmio.device\0"
BY_ACPI = b"ACPI: Interpreter enabled"
TEXT_AT = 0x1000000


def make_elf(
    text: bytes = BANNER + DRIVERS + BY_COMMAND_LINE,
    *,
    entry: int = TEXT_AT,
    pvh: int | None = 0x1000040,
    machine: int = 62,
) -> bytes:
    """A vmlinux of one PT_LOAD (in memory a page longer than in the file) and one PT_NOTE."""
    note = b"" if pvh is None else struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", pvh)
    head = b"\x7fELF\2\1\1" + bytes(9)
    start = 64 + 2 * 56
    head += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, entry, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    size = len(text)
    load = struct.pack("<IIQQQQQQ", 1, 5, start, TEXT_AT, TEXT_AT, size, size + 4096, 4096)
    note_at = start + size
    notes = struct.pack("<IIQQQQQQ", 4, 4, note_at, 0, 0, len(note), len(note), 4)
    return head + load + notes + text + note


def make_bzimage(payload: bytes, *, protocol: int = 0x20F, sectors: int = 2) -> bytes:
    """A bzImage whose payload lies 0x20 bytes into the protected-mode code."""
    head = bytearray((sectors + 1) * 512 + 0x20)
    head[0x1F1] = sectors
    head[0x202:0x208] = b"HdrS" + struct.pack("<H", protocol)
    struct.pack_into("<II", head, 0x248, 0x20, len(payload))
    return bytes(head) + payload + b"\xcc" * 100


def with_size(packed: bytes, unpacked: bytes) -> bytes:
    """What Linux's build appends to all payloads but gzip's."""
    return packed + struct.pack("<I", len(unpacked))


def pack_zstd(data: bytes) -> bytes:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    if importlib.util.find_spec(name.split(".")[0]) is None:
        pytest.skip(f"no {name}")
    return with_size(importlib.import_module(name).compress(data), data)


def pack_lz4(data: bytes) -> bytes:
    if shutil.which("lz4") is None:
        pytest.skip("no lz4 command")
    done = subprocess.run(["lz4", "-l", "-9", "-c"], input=data, stdout=subprocess.PIPE, check=True)
    return with_size(done.stdout, data)


PACKERS = {
    "gzip": gzip.compress,
    "xz": lambda data: with_size(lzma.compress(data), data),
    "lzma": lambda data: with_size(lzma.compress(data, lzma.FORMAT_ALONE), data),
    "zstd": pack_zstd,
    "lz4": pack_lz4,
}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", PACKERS)
def test_bzimage_unpacks_to_the_same_bytes(kind: str) -> None:
    # Long runs, short distances and noise: every branch of an LZ4 block.
    data = make_elf() + bytes(100_000) + b"abc" * 1000 + os.urandom(50_000) + b"x" * 19
    assert bzimage.unpack(make_bzimage(PACKERS[kind](data))) == data


@pytest.mark.parametrize("kind", PACKERS)
def test_bzimage_with_a_damaged_payload(kind: str) -> None:
    packed = PACKERS[kind](os.urandom(5000))
    with pytest.raises(KernelError, match=f"damaged {'xz' if kind == 'xz' else kind} data"):
        bzimage.unpack(make_bzimage(packed[: len(packed) // 2]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (make_bzimage(b"\x1f\x8b", protocol=0x207), "bzImage has boot protocol 2.07; 2.08 is the "),
        (make_bzimage(b"ABCDEF"), r"bzImage has an unknown compression \(41424344\)"),
        (make_bzimage(b"\x1f\x8b" * 100)[:1600], "bzImage is cut short"),
        (make_bzimage(b""), "bzImage is cut short"),
        (b"\0" * 100, "bzImage is cut short"),
    ],
)
def test_bzimage_that_is_none(image: bytes, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        bzimage.unpack(image)


def test_bzimage_without_setup_sectors_has_four() -> None:
    image = bytearray(make_bzimage(gzip.compress(b"vmlinux"), sectors=4))
    image[0x1F1] = 0
    assert bzimage.unpack(bytes(image)) == b"vmlinux"


def test_lz4_by_hand() -> None:
    # 3 literals; a match of 6, 3 back, which overlaps itself; 2 last literals
    block = bytes([0x32]) + b"abc" + bytes([3, 0]) + bytes([0x20]) + b"de"
    frame = lz4.MAGIC + struct.pack("<I", len(block)) + block
    assert lz4.decompress(frame) == b"abcabcabcde"


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"\x04\x22\x4d\x18", "not a legacy LZ4 frame"),  # the newer format
        (lz4.MAGIC + struct.pack("<I", 9) + b"short", "cut short"),
        # 2 back after 1 byte, then 0 back
        (lz4.MAGIC + struct.pack("<I", 4) + bytes([0x10, 0x41, 2, 0]), "a match before the start"),
        (lz4.MAGIC + struct.pack("<I", 4) + bytes([0x10, 0x41, 0, 0]), "a match before the start"),
    ],
)
def test_lz4_that_is_none(frame: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lz4.decompress(frame)


def test_elf_with_everything() -> None:
    image = elf.inspect(make_elf())
    size = len(BANNER + DRIVERS + BY_COMMAND_LINE)
    assert image.version == "6.99.1-test"
    assert image.entry == TEXT_AT
    assert image.pvh_entry == 0x1000040
    assert image.segments == (Segment(176, size, TEXT_AT, size + 4096),)
    assert not image.acpi


CHUNK = elf._CHUNK


@pytest.mark.parametrize(
    ("after", "loaded"),
    [
        (bytes(CHUNK) + b"code", [(0, CHUNK), (2 * CHUNK, 4)]),
        (b"\xcc" * CHUNK * 3 + b"code", [(0, CHUNK), (4 * CHUNK, 4)]),
        (bytes(CHUNK - 1) + b"code", [(0, 2 * CHUNK + 3)]),  # less than a chunk of zeros
        (b"\xcc" * (CHUNK - 1) + b"\0code", [(0, 2 * CHUNK + 4)]),
        (bytes(2 * CHUNK), [(0, CHUNK)]),
        (bytes(CHUNK) + b"a" * CHUNK + bytes(10), [(0, CHUNK), (2 * CHUNK, CHUNK)]),
        (b"\xcc" * 10, [(0, CHUNK)]),
    ],
)
def test_filler_is_not_loaded(after: bytes, loaded: list[tuple[int, int]]) -> None:
    text = (BANNER + DRIVERS + BY_COMMAND_LINE).ljust(CHUNK) + after
    data = make_elf(text)
    parts = elf.inspect(data).segments
    assert [(part.paddr - TEXT_AT, part.filesz) for part in parts] == loaded
    assert all(part.offset - 176 == part.paddr - TEXT_AT for part in parts)
    assert max(part.paddr + part.memsz for part in parts) == TEXT_AT + len(text) + 4096


def test_int3_is_loaded_where_no_code_is() -> None:
    data = bytearray(make_elf((BANNER + DRIVERS + BY_COMMAND_LINE).ljust(CHUNK) + b"\xcc" * CHUNK))
    struct.pack_into("<I", data, 64 + 4, 6)  # p_flags: readable, writable
    assert [part.filesz for part in elf.inspect(bytes(data)).segments] == [2 * CHUNK]


def test_a_segment_of_zeros_keeps_its_place() -> None:
    whole = Segment(0, 2 * CHUNK, TEXT_AT, 5 * CHUNK)
    assert elf._content(bytes(2 * CHUNK), whole, executable=False) == [
        Segment(0, 0, TEXT_AT, 5 * CHUNK)
    ]


def test_elf_without_a_pvh_note_is_entered_at_its_entry() -> None:
    assert elf.inspect(make_elf(pvh=None)).pvh_entry is None


def test_elf_with_acpi() -> None:
    assert elf.inspect(make_elf(BANNER + DRIVERS + BY_ACPI)).acpi


def test_modules_stand_in_for_drivers() -> None:
    brought = {"virtio_mmio", "virtio_blk", "vmw_vsock_virtio_transport"}
    assert elf.inspect(make_elf(BANNER + BY_ACPI + b"EXT4-fs"), brought).acpi


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (make_elf(machine=183), r"not an x86-64 kernel \(AArch64\)"),
        (make_elf(pvh=None, entry=0x100), "neither a PVH note nor a 64-bit entry in a loaded segm"),
        (make_elf(DRIVERS), "an ELF file, but not a Linux kernel"),
        (
            make_elf(BANNER + b"virtio_blk\0"),
            "no built-in virtio-mmio, virtio-vsock, ext4$",
        ),
        (
            make_elf(BANNER + DRIVERS),
            r"no built-in a way to find devices \(ACPI or VIRTIO_MMIO_CMDLINE_DEVICES\)",
        ),
        (make_elf()[:200], "damaged ELF: a segment reaches beyond the file"),
        (make_elf()[:100], "damaged ELF"),
    ],
)
def test_elf_that_cannot_be_used(image: bytes, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        elf.inspect(image)


def test_elf_of_32_bits() -> None:
    with pytest.raises(KernelError, match=r"not an x86-64 kernel \(x86\)"):
        elf.inspect(b"\x7fELF\1\1\1" + bytes(9) + struct.pack("<HHI", 2, 3, 1) + bytes(100))


def test_find_by_path_uses_an_elf_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(make_elf())
    found = kernel.find(str(path))
    assert found == Kernel(
        name=str(path),
        path=str(path),
        version="6.99.1-test",
        entry=TEXT_AT,
        pvh_entry=0x1000040,
        segments=elf.inspect(make_elf()).segments,
        acpi=False,
        modules=(),
    )
    assert kernel.find(str(path)) == found


def test_find_unpacks_a_bzimage_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(make_bzimage(gzip.compress(make_elf())))
    found = kernel.find(str(path))
    assert Path(found.path).read_bytes() == make_elf()
    monkeypatch.setattr(bzimage, "unpack", None)
    assert kernel.find(str(path)) == found


def test_find_reads_a_replaced_file_again(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(make_elf())
    assert kernel.find(str(path)).version == "6.99.1-test"
    first = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == first:  # whose clock may tick a hundred times a second only
        path.write_bytes(make_elf(BANNER.replace(b"6.99.1", b"6.99.2") + DRIVERS + BY_COMMAND_LINE))
    assert kernel.find(str(path)).version == "6.99.2-test"


def test_find_names_the_file_in_its_errors(tmp_path: Path) -> None:
    absent, text = tmp_path / "absent", tmp_path / "text"
    text.write_text("hello")
    for path, message in (
        (absent, "No such file or directory"),
        (tmp_path, "Is a directory"),
        (text, "neither an ELF vmlinux nor a bzImage"),
    ):
        with pytest.raises(KernelError) as error:
            kernel.find(str(path))
        assert str(error.value) == f"kernel {path}: {message}"


def test_find_minimal_before_it_is_built() -> None:
    with pytest.raises(KernelError, match="not built yet: run `pyvmm kernel build`"):
        kernel.find("minimal")
    assert kernel.installed() == []


def test_a_second_find_imports_nothing_for_it(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(make_elf())
    kernel.find(str(path))
    code = (
        "import sys, pyvmm.kernel\n"
        f"assert pyvmm.kernel.find({str(path)!r}).version == '6.99.1-test'\n"
        "heavy = {'elftools', 'subprocess', 'tempfile', 'shutil', 'pyvmm.kernel.elf', 'lzma'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, stdout=subprocess.PIPE, check=True
    )
    assert done.stdout == b"[]\n"
