"""Down into directories and up again, by descriptors: no path is too long, no link is followed."""

from __future__ import annotations

import errno
import os

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Descent:
    """The directory where we are, at any depth, at the cost of two descriptors."""

    def __init__(self, top: int) -> None:
        """``top`` is a directory's descriptor, and closed with this."""
        self.fd = self._top = top
        self._names: list[bytes] = []
        self._above: list[tuple[int, int]] = []  # which directories we came through

    def path(self, name: bytes = b"") -> str:
        """From the top, for messages."""
        return os.fsdecode(b"/".join([*self._names, *([name] if name else [])]))

    @property
    def depth(self) -> int:
        return len(self._names)

    def down(self, name: bytes) -> None:
        """Raises OSError; NotADirectoryError also if ``name`` is a symbolic link."""
        fd = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=self.fd)
        status = os.fstat(self.fd)
        self._above.append((status.st_dev, status.st_ino))
        self._names.append(name)
        self._move(fd)

    def up(self) -> int:
        """Returns the descriptor of the directory that was left, for the caller to close."""
        fd = self._top
        if len(self._above) > 1:
            fd = os.open(b"..", DIRECTORY, dir_fd=self.fd)
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != self._above[-1]:
                os.close(fd)
                raise OSError(errno.ESTALE, "moved meanwhile", self.path())
        self._above.pop()
        self._names.pop()
        left, self.fd = self.fd, fd
        return left

    def _move(self, fd: int) -> None:
        if self.fd != self._top:
            os.close(self.fd)
        self.fd = fd

    def close(self) -> None:
        self._move(self._top)
        os.close(self._top)
