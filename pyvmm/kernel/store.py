"""What a kernel is to pyvmm, and how one is kept in the cache.

Each kernel has a directory of its own under ``kernels/``: ``kernel.json`` (everything that boot
code needs, so that no run parses an ELF), ``vmlinux`` unless the file is used where it lies, and
``modules/``. A directory appears whole, by a rename, or not at all; ``minimal`` and ``stock`` are
symbolic links to the one in use.
"""

from __future__ import annotations

import os

from pyvmm.quick_json import loads
from pyvmm.record import Record

SIDECAR = "kernel.json"
FORMAT = 1  # of the sidecar; another one is as good as none


class Segment(Record):
    """``filesz`` bytes at ``offset`` of the file go to guest-physical ``paddr``.

    ``memsz`` is up to where the kernel says that its memory ends; what is not loaded must be zero.
    """

    offset: int
    filesz: int
    paddr: int
    memsz: int


class Image(Record):
    """What an ELF kernel says about itself. Addresses are guest-physical."""

    version: str
    entry: int
    pvh_entry: int | None
    segments: tuple[Segment, ...]
    acpi: bool


class Kernel(Record):
    """A guest kernel that is ready to be loaded."""

    name: str
    """``minimal``, ``stock``, or the file's path as it was given."""
    path: str
    """The uncompressed ELF vmlinux."""
    version: str
    """As ``uname -r`` prints it, from the kernel's banner."""
    entry: int
    """ELF entry, a physical address (64-bit boot protocol: startup_64)."""
    pvh_entry: int | None
    """Entry by PVH (the Xen note of type 18), None if the kernel has no such note."""
    segments: tuple[Segment, ...]
    acpi: bool
    """Devices are found by ACPI; else by MP table and ``virtio_mmio.device=``."""
    modules: tuple[str, ...]
    """To be inserted in this order; empty if all that is needed is built in."""


def identity(path: str) -> str:
    """Name a file's present content without reading it: any write changes the change time."""
    st = os.stat(path)
    return f"{st.st_dev:x}-{st.st_ino:x}-{st.st_size:x}-{st.st_ctime_ns:x}"


def load(directory: str, name: str) -> Kernel | None:
    """Return the kernel that ``directory`` holds, None if it holds none."""
    directory = os.path.realpath(directory)
    try:
        with open(os.path.join(directory, SIDECAR), "rb") as file:
            known = loads(file.read())
    except FileNotFoundError:
        return None
    if known.pop("format") != FORMAT:
        return None
    return Kernel(
        name=name,
        path=os.path.join(directory, known.pop("path")),
        segments=tuple(Segment(*numbers) for numbers in known.pop("segments")),
        modules=tuple(os.path.join(directory, module) for module in known.pop("modules")),
        **known,
    )
