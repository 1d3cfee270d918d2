"""Files of the host's, sent to a guest."""

from __future__ import annotations

import os
import stat

from .descent import DIRECTORY, Descent
from .tree import LINK, Entry, Sender, left_out

OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC


class Walk:
    """Sends files depth first, in their names' order.

    What is gone, or another file, once we come to it is left out; so are sockets, of which
    ``warnings`` has a line for each. All but the sender's part may raise OSError with a path.
    """

    def __init__(self, sender: Sender, *, archive: bool) -> None:
        """With ``archive`` files keep their owners; else they are root's."""
        self.warnings: list[str] = []
        self._sender = sender
        self._archive = archive
        self._place = ""
        self._sent: list[bytes] = []  # the directories where we are, by the names they were sent as
        self._links: dict[tuple[int, int], bytes] = {}  # where files of several names were sent

    def one(self, path: str, name: bytes, *, follow: bool) -> None:
        """What is at ``path``, sent as ``name``."""
        os.stat(path, follow_symlinks=follow)  # or nothing at all is sent
        if follow:
            path = os.path.realpath(path)
        place, base = os.path.split(path.rstrip("/"))
        self._walk(place or ("/" if path.startswith("/") else "."), [os.fsencode(base)], name)

    def below(self, path: str) -> None:
        """What is in the directory ``path``."""
        self._walk(path, None)

    def _walk(self, place: str, names: list[bytes] | None, name: bytes = b"") -> None:
        self._place = place
        at = Descent(os.open(place, DIRECTORY if not name else os.O_PATH | DIRECTORY))
        try:
            levels = [names or _names(at)]
            while levels:
                if not levels[-1]:
                    levels.pop()
                    if levels:
                        os.close(at.up())
                        self._sent.pop()
                        self._sender.leave()
                    continue
                each = levels[-1].pop()
                if self._send(at, each, each if self._sent else name or each):
                    levels.append(_names(at))
        finally:
            at.close()

    def _send(self, at: Descent, name: bytes, sent: bytes) -> bool:
        """True if it is a directory, and we are in it now."""
        path = os.path.join(self._place, at.path(name))
        try:
            status = os.stat(name, dir_fd=at.fd, follow_symlinks=False)
            target, fd = b"", -1
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(name, dir_fd=at.fd)
            elif stat.S_ISDIR(status.st_mode):
                at.down(name)
                status = os.fstat(at.fd)
            elif stat.S_ISREG(status.st_mode):
                fd = os.open(name, OPEN, dir_fd=at.fd)
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    os.close(fd)
                    return False
        except FileNotFoundError:
            return False
        except OSError as e:
            raise OSError(e.errno, e.strerror, path) from None
        if stat.S_ISSOCK(status.st_mode):
            left_out(self.warnings, path, status.st_mode)
            return False
        entry = self._entry(sent, status)._replace(target=target)
        if fd < 0:
            self._sender.entry(entry)
        else:
            try:
                self._file(entry, fd, status)
            finally:
                os.close(fd)
        if not stat.S_ISDIR(status.st_mode):
            return False
        self._sent.append(sent)
        return True

    def _file(self, entry: Entry, fd: int, status: os.stat_result) -> None:
        if status.st_nlink > 1:
            path = b"/".join([*self._sent, entry.name])
            first = self._links.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                self._sender.entry(entry._replace(target=first, flags=LINK))
                return
        self._sender.entry(entry)
        self._sender.file(fd, status)

    def _entry(self, name: bytes, status: os.stat_result) -> Entry:
        device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
        return Entry(
            name,
            status.st_mode,
            status.st_mtime_ns,
            status.st_rdev if device else status.st_size if stat.S_ISREG(status.st_mode) else 0,
            status.st_uid if self._archive else 0,
            status.st_gid if self._archive else 0,
        )


def _names(at: Descent) -> list[bytes]:
    """Those in the directory where we are, the first in order last."""
    return sorted(map(os.fsencode, os.listdir(at.fd)), reverse=True)
