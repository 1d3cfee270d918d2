"""One file's contents, wherever they go."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

from .tree import Entry

ZEROS = bytes(1 << 20)


class Contents:
    """A tree.Sink for one regular file: its bytes go to ``write``, of a hole zeros."""

    def __init__(self, path: str, write: Callable[[bytes], object]) -> None:
        """``path`` is for messages."""
        self._path = path
        self._write = write

    def directory(self, _: Entry) -> None:
        raise IsADirectoryError(errno.EISDIR, "is a directory", self._path)

    def leave(self) -> None: ...

    def file(self, entry: Entry) -> None: ...

    def data(self, data: bytes) -> None:
        self._write(data)

    def hole(self, length: int) -> None:
        write_zeros(self._write, length)

    def close(self) -> None: ...

    def other(self, entry: Entry) -> None:
        what = "a symbolic link" if stat.S_ISLNK(entry.mode) else "no regular file"
        raise OSError(errno.EINVAL, what, self._path)


def write_zeros(write: Callable[[bytes], object], length: int) -> None:
    while length:
        part = min(length, len(ZEROS))
        write(ZEROS[:part])
        length -= part
