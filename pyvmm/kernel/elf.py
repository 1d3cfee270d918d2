"""What boot code must know of an ELF kernel, read with pyelftools."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Collection

from pyvmm.errors import KernelError
from pyvmm.kernel.store import Image, Segment

# XEN_ELFNOTE_PHYS32_ENTRY, xen/include/public/elfnote.h. An object, because pyelftools turns the
# types that it knows into names, and leaves this one a number.
_PHYS32_ENTRY: object = 18

# Linux carries its driver's name only where the driver is compiled in: module, as messages call it,
# and bytes that are in the image then.
_DRIVERS = (
    ("virtio_mmio", "virtio-mmio", b"virtio-mmio\0"),
    ("virtio_blk", "virtio-blk", b"virtio_blk\0"),
    ("vmw_vsock_virtio_transport", "virtio-vsock", b"vmw_vsock_virtio_transport\0"),
    ("ext4", "ext4", b"EXT4-fs"),
)
_ACPI = b"ACPI: Interpreter enabled"
_COMMAND_LINE_DEVICES = b"virtio_mmio.device\0"

_CHUNK = 32 << 10  # what is skipped is a multiple: to start another read costs as much as a few KiB


def inspect(data: bytes, modules: Collection[str] = ()) -> Image:
    """Read an ELF vmlinux; ``modules`` (names with underscores) come with it.

    Raises KernelError if it is no x86-64 Linux, has no entry that pyvmm knows, or lacks drivers.
    """
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import NoteSegment

    try:
        elf = ELFFile(io.BytesIO(data))
        if elf.elfclass != 64 or elf["e_machine"] != "EM_X86_64":
            raise KernelError(f"not an x86-64 kernel ({elf.get_machine_arch()})")
        loads = list(elf.iter_segments("PT_LOAD"))
        segments = [
            Segment(s["p_offset"], s["p_filesz"], s["p_paddr"], s["p_memsz"]) for s in loads
        ]
        if any(s.offset + s.filesz > len(data) or s.filesz > s.memsz for s in segments):
            raise KernelError("damaged ELF: a segment reaches beyond the file")
        pvh = next(
            (
                int.from_bytes(note["n_descdata"], "little")
                for s in elf.iter_segments()
                if isinstance(s, NoteSegment)
                for note in s.iter_notes()
                if note["n_name"] == "Xen" and note["n_type"] == _PHYS32_ENTRY
            ),
            None,
        )
        entry = elf["e_entry"]
    except KernelError:
        raise
    except Exception as error:  # pyelftools lets all that its parser raises through
        raise KernelError(f"damaged ELF: {error}") from error
    banner = re.search(rb"Linux version (\d\S*) ", data)
    if banner is None:
        raise KernelError("an ELF file, but not a Linux kernel")
    if pvh is None and not any(s.paddr <= entry < s.paddr + s.filesz for s in segments):
        raise KernelError("neither a PVH note nor a 64-bit entry in a loaded segment")
    acpi = _ACPI in data
    missing = [
        name for module, name, mark in _DRIVERS if module not in modules and mark not in data
    ]
    if not missing and not acpi and _COMMAND_LINE_DEVICES not in data:
        missing = ["a way to find devices (ACPI or VIRTIO_MMIO_CMDLINE_DEVICES)"]
    if missing:
        raise KernelError(f"the kernel has no built-in {', '.join(missing)}")
    parts = [
        part
        for segment, load in zip(segments, loads, strict=True)
        for part in _content(data, segment, executable=bool(load["p_flags"] & 1))
    ]
    return Image(banner[1].decode("ascii", "replace"), entry, pvh, tuple(parts), acpi)


def _content(data: bytes, whole: Segment, *, executable: bool) -> list[Segment]:
    """Split a segment around its filler, which no run need copy: together they end as it does.

    Filler is zeros, as guest RAM is anyway, and where code is, the INT3 with which the linker pads
    it to 2 MiB: nothing goes there. A third of the minimal kernel is filler, half of the stock one.
    """
    fillers = (0, 0xCC) if executable else (0,)

    def is_filler(start: int) -> bool:
        end = min(start + _CHUNK, whole.filesz)
        return any(data.count(f, whole.offset + start, whole.offset + end) == end - start
                   for f in fillers)  # fmt: skip

    parts = []
    for filler, run in itertools.groupby(range(0, whole.filesz, _CHUNK), is_filler):
        if not filler:
            starts = list(run)
            size = min(starts[-1] + _CHUNK, whole.filesz) - starts[0]
            parts.append(Segment(whole.offset + starts[0], size, whole.paddr + starts[0], size))
    last = parts.pop() if parts else Segment(whole.offset, 0, whole.paddr, 0)
    rest = whole.paddr + whole.memsz - last.paddr
    return [*parts, Segment(last.offset, last.filesz, last.paddr, rest)]
