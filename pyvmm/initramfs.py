"""The guest's first file system: init, and the modules that it inserts.

Uncompressed cpio of the "newc" kind (Linux's Documentation/driver-api/early-userspace/
buffer-format.rst): the host would spend longer packing it than the guest reading it.
"""

from __future__ import annotations

import os
import stat

from pyvmm.cache import cache_dir, make_once
from pyvmm.kernel.store import Kernel, identity
from pyvmm.record import Record

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Entry(Record):
    """A file, directory or device; ``mode`` includes its type, ``device`` is (major, minor)."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio(entries: Iterable[Entry]) -> bytes:
    """Return the archive of ``entries`` (parents first), all owned by root and of time 0."""
    out = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.path.lstrip("/").encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        # inode, mode, uid, gid, links, time, size, archive's device, device, name's length, check
        start = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0)
        fields = (*start, *entry.device, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += bytes(-len(out) % 4)
        out += entry.data
        out += bytes(-len(out) % 4)
    return bytes(out)


def build(init: bytes, modules: Sequence[bytes] = ()) -> bytes:
    """Return the initramfs: /init, /dev/console, the mount point /root, /modules/00.ko and on."""
    entries = [
        Entry("/dev", stat.S_IFDIR | 0o755),
        Entry("/dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("/root", stat.S_IFDIR | 0o755),
        Entry("/init", stat.S_IFREG | 0o755, init),
        Entry("/modules", stat.S_IFDIR | 0o755),
    ]
    entries += [
        Entry(f"/modules/{index:02}.ko", stat.S_IFREG | 0o644, module)
        for index, module in enumerate(modules)
    ]
    return cpio(entries)


def initramfs_for(kernel: Kernel, init: str) -> str:
    """Return a file with the initramfs of ``kernel`` and ``init``, made if the cache has none."""
    # Modules lie in the directory that the store keeps for one build of one kernel.
    modules = kernel.modules[0].split("/")[-3] if kernel.modules else "none"
    path = os.path.join(cache_dir("initramfs"), f"{modules}-{identity(init)}.cpio")
    if not os.path.exists(path):

        def write(part: str) -> None:
            with open(part, "wb") as file:
                file.write(build(_content(init), [_content(module) for module in kernel.modules]))

        make_once(path, lambda: os.path.exists(path), write)
    return path


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
