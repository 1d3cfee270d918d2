"""Reads an ext4 filesystem back without libext2fs (Linux, Documentation/filesystems/ext4)."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

BLOCK = 4096
_EXTENTS = 0x80000
_XATTR_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
    7: b"system.",
}


@dataclass(frozen=True)
class Node:
    """An inode, and how to read what it holds."""

    disk: Disk
    number: int
    raw: bytes

    @property
    def mode(self) -> int:
        return self._u16(0)

    @property
    def owner(self) -> tuple[int, int]:
        return self._u16(2) | self._u16(120) << 16, self._u16(24) | self._u16(122) << 16

    @property
    def size(self) -> int:
        return self._u32(4) | self._u32(108) << 32

    @property
    def links(self) -> int:
        return self._u16(26)

    @property
    def mtime_ns(self) -> int:
        (seconds,) = struct.unpack_from("<i", self.raw, 16)
        extra = self._u32(136)
        return (seconds + ((extra & 3) << 32)) * 10**9 + (extra >> 2)

    @property
    def device(self) -> tuple[int, int]:
        old, new = self._u32(40), self._u32(44)
        return (old >> 8, old & 255) if old else (new >> 8 & 0xFFF, new & 255 | new >> 12 & ~255)

    @property
    def blocks(self) -> int:
        """Allocated, in 4 KiB blocks."""
        return (self._u32(28) | self._u16(116) << 32) * 512 // BLOCK

    @cached_property
    def data(self) -> bytes:
        """The contents: of a symbolic link its target."""
        if stat.S_ISLNK(self.mode) and self.size < 60:
            return self.raw[40 : 40 + self.size]
        assert self._u32(32) & _EXTENTS
        data = bytearray(self.size)
        for logical, physical, count in self.disk.extents(self.raw[40:100]):
            piece = self.disk.read(physical * BLOCK, count * BLOCK)
            start = logical * BLOCK
            data[start : start + len(piece)] = piece
        return bytes(data[: self.size])

    @cached_property
    def xattrs(self) -> dict[bytes, bytes]:
        found = {}
        inline = 128 + self._u16(128)
        if self.raw[inline : inline + 4] == b"\0\0\2\xea":
            found.update(_xattrs(self.raw[inline + 4 :], 0))
        if block := self._u32(104):
            found.update(_xattrs(self.disk.read(block * BLOCK, BLOCK), 32))
        return found

    def names(self) -> Iterator[tuple[bytes, int]]:
        """Of a directory: each name and its inode's number."""
        data, position = self.data, 0
        while position < len(data):
            number, length, name_length = struct.unpack_from("<IHB", data, position)
            if number:
                yield data[position + 8 : position + 8 + name_length], number
            position += length

    def _u16(self, offset: int) -> int:
        return int.from_bytes(self.raw[offset : offset + 2], "little")

    def _u32(self, offset: int) -> int:
        return int.from_bytes(self.raw[offset : offset + 4], "little")


def _xattrs(area: bytes, position: int) -> Iterator[tuple[bytes, bytes]]:
    while area[position : position + 4] != b"\0\0\0\0":
        length, index, offset, inode, size = struct.unpack_from("<BBHII", area, position)
        assert inode == 0
        name = area[position + 16 : position + 16 + length]
        yield _XATTR_PREFIXES[index] + name, area[offset : offset + size]
        position += 16 + (length + 3) // 4 * 4


class Disk:
    """A disk image and all paths in it, as bytes without a slash in front; the root is b""."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.superblock = self.read(1024, 1024)
        (self._per_group,) = struct.unpack_from("<I", self.superblock, 40)
        self.paths: dict[bytes, Node] = {}
        self._add(b"", 2)

    def read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def __getitem__(self, path: str | bytes) -> Node:
        return self.paths[path.encode() if type(path) is str else path]

    def tree(self) -> list[str]:
        """All paths, sorted; for comparisons."""
        return sorted(path.decode() for path in self.paths if path)

    def extents(self, node: bytes) -> Iterator[tuple[int, int, int]]:
        magic, count, _, depth = struct.unpack_from("<HHHH", node)
        assert magic == 0xF30A
        for i in range(count):
            if depth:
                _, low, high = struct.unpack_from("<IIH", node, 12 + 12 * i)
                yield from self.extents(self.read((low | high << 32) * BLOCK, BLOCK))
            else:
                logical, length, high, low = struct.unpack_from("<IHHI", node, 12 + 12 * i)
                yield logical, low | high << 32, length

    def _node(self, number: int) -> Node:
        group, index = divmod(number - 1, self._per_group)
        (table,) = struct.unpack("<I", self.read(BLOCK + 32 * group + 8, 4))
        return Node(self, number, self.read(table * BLOCK + 256 * index, 256))

    def _add(self, path: bytes, number: int) -> None:
        node = self.paths[path] = self._node(number)
        if stat.S_ISDIR(node.mode):
            for name, below in node.names():
                if name not in (b".", b".."):
                    self._add(path + b"/" + name if path else name, below)
