"""One file's contents, wherever they go."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

from .tree import SIZE_MAX, Entry

ZEROS = bytes(1 << 20)


class Contents:
    """A tree.Sink for one regular file: its bytes go to ``write``, of a hole zeros."""

    def __init__(self, path: str, write: Callable[[bytes], object], limit: int = SIZE_MAX) -> None:
        """``path`` is for messages. More than ``limit`` bytes are OSError EFBIG."""
        self._path = path
        self._write = write
        self._left = self._limit = limit

    def directory(self, _: Entry) -> None:
        raise IsADirectoryError(errno.EISDIR, "is a directory", self._path)

    def leave(self) -> None: ...

    def file(self, entry: Entry) -> None: ...

    def data(self, data: bytes) -> None:
        self._count(len(data))
        self._write(data)

    def hole(self, length: int) -> None:
        self._count(length)
        write_zeros(self._write, length)

    def close(self) -> None: ...

    def other(self, entry: Entry) -> None:
        what = "a symbolic link" if stat.S_ISLNK(entry.mode) else "no regular file"
        raise OSError(errno.EINVAL, what, self._path)

    def _count(self, length: int) -> None:
        self._left -= length
        if self._left < 0:
            raise OSError(errno.EFBIG, f"longer than {self._limit} bytes", self._path)


def write_zeros(write: Callable[[bytes], object], length: int) -> None:
    while length:
        part = min(length, len(ZEROS))
        write(ZEROS[:part])
        length -= part
