"""What a kernel is to pyvmm, and how one is kept in the cache.

Each kernel has a directory of its own under ``kernels/``: ``kernel.json`` (everything that boot
code needs, so that no run parses an ELF), ``vmlinux`` unless the file is used where it lies, and
``modules/``. A directory appears whole, by a rename, or not at all; ``minimal`` and ``stock`` are
symbolic links to the one in use.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyvmm.cache import cache_dir
from pyvmm.record import Record

_SIDECAR = "kernel.json"
_FORMAT = 1  # of the sidecar; another one is as good as none
_STALE_S = 24 * 3600  # what a killed build left behind


class Segment(Record):
    """One PT_LOAD: ``filesz`` bytes at ``offset`` of the file go to guest-physical ``paddr``."""

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
    path: Path
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
    modules: tuple[Path, ...]
    """To be inserted in this order; empty if all that is needed is built in."""


def identity(path: Path) -> str:
    """Name a file's present content without reading it: any write changes the change time."""
    st = path.stat()
    return f"{st.st_dev:x}-{st.st_ino:x}-{st.st_size:x}-{st.st_ctime_ns:x}"


def load(directory: Path, name: str) -> Kernel | None:
    """Return the kernel that ``directory`` holds, None if it holds none."""
    directory = Path(os.path.realpath(directory))
    try:
        with open(directory / _SIDECAR, encoding="utf-8") as file:
            known = json.load(file)
    except FileNotFoundError:
        return None
    if known.pop("format") != _FORMAT:
        return None
    return Kernel(
        name=name,
        path=directory / known.pop("path"),
        segments=tuple(Segment(*numbers) for numbers in known.pop("segments")),
        modules=tuple(directory / module for module in known.pop("modules")),
        **known,
    )


def save(directory: Path, image: Image, path: str, modules: Sequence[str] = ()) -> None:
    """Write the sidecar; ``path`` and ``modules`` are relative to ``directory`` or absolute."""
    known = {
        "format": _FORMAT,
        "path": path,
        "version": image.version,
        "entry": image.entry,
        "pvh_entry": image.pvh_entry,
        "segments": [[s.offset, s.filesz, s.paddr, s.memsz] for s in image.segments],
        "acpi": image.acpi,
        "modules": list(modules),
    }
    (directory / _SIDECAR).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def staging() -> Iterator[Path]:
    """Make a temporary directory in the cache, gone at the end unless it was published."""
    import shutil
    import tempfile

    root = cache_dir("kernels")
    for left in root.glob(".tmp-*"):
        if left.stat().st_mtime < time.time() - _STALE_S:
            shutil.rmtree(left, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=".tmp-", dir=root))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def publish(directory: Path, key: str) -> None:
    """Give a finished directory its place ``kernels/<key>``.

    Of two processes that make the same kernel at once, the later one replaces the earlier.
    """
    import shutil

    place = cache_dir("kernels") / key
    if place.exists():
        shutil.rmtree(place)
    directory.chmod(0o755)  # mkdtemp's is 0700
    directory.rename(place)


def select(name: str, key: str) -> Kernel:
    """Let ``name`` mean the kernel of ``kernels/<key>`` from now on, and return it."""
    root = cache_dir("kernels")
    fresh = root / f".{name}-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(key)
    fresh.replace(root / name)
    kernel = load(root / name, name)
    assert kernel is not None
    return kernel
