"""A guest's tree becomes files here. The guest is not trusted: all is made below the destination,
where no symbolic link is followed, and what it could do harm by is left out."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .descent import DIRECTORY, Descent
from .tree import Entry, left_out

PERMISSIONS = 0o777  # without archive: a guest's set-user-ID file would be the caller's own


class Extractor:
    """A tree.Sink that makes files, as docker cp does.

    Each has its name once it is complete, and an old one is kept until then. Devices and sockets
    are left out: ``warnings`` has a line for each.
    """

    def __init__(self, destination: str, name: bytes, *, archive: bool) -> None:
        """A directory that is there takes the tree under ``name``, or what is in it if that is
        empty; else the tree becomes the destination.

        With ``archive`` owners (if we are root) and set-user-ID bits are kept. Raises OSError.
        """
        self.warnings: list[str] = []
        self._archive = archive
        self._part = f".pyvmm-{secrets.token_hex(8)}.part".encode()
        self._name = name
        self._file_allowed = bool(name)
        self._place = destination
        if not os.path.isdir(destination):
            self._file_allowed = not destination.endswith("/")
            self._place, base = os.path.split(os.path.realpath(destination))
            self._name = os.fsencode(base)
        self._at = Descent(os.open(self._place, os.O_PATH | DIRECTORY))
        self._entries: list[Entry | None] = []  # of the directories where we are
        self._entry = Entry(b"", 0)  # of the file that is open
        self._fd = -1
        self._length = 0
        self._hole = False  # at its end

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *exc: object) -> None:
        """Also after a failure: nothing unfinished stays."""
        if self._fd >= 0:
            os.close(self._fd)
        with suppress(FileNotFoundError):
            os.unlink(self._part, dir_fd=self._at.fd)
        self._at.close()

    def directory(self, entry: Entry) -> None:
        name = entry.name or self._name
        if not name:  # what is in it goes into the destination, which stays as it is
            self._entries.append(None)
            return
        with self._named(name):
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self._at.fd)
            self._at.down(name)
        self._entries.append(entry)

    def leave(self) -> None:
        entry = self._entries.pop()
        if not entry:
            return
        with self._named():
            fd = self._at.up()  # before its mode may forbid that
            try:
                self._set(fd, entry)
            finally:
                os.close(fd)

    def file(self, entry: Entry) -> None:
        self._entry = entry._replace(name=self._no_directory(entry))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._named(self._entry.name):
            self._fd = os.open(self._part, flags, 0o600, dir_fd=self._at.fd)
        self._length, self._hole = 0, False

    def data(self, data: bytes) -> None:
        with self._named(self._entry.name):
            done = os.write(self._fd, data)
            while done < len(data):
                done += os.write(self._fd, data[done:])
        self._length += len(data)
        self._hole = False

    def hole(self, length: int) -> None:
        self._length += length
        self._hole = True
        with self._named(self._entry.name):
            os.lseek(self._fd, self._length, os.SEEK_SET)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        with self._named(self._entry.name):
            try:
                if self._hole:
                    os.ftruncate(fd, self._length)
                self._set(fd, self._entry)
            finally:
                os.close(fd)
            self._rename(self._entry.name)

    def other(self, entry: Entry) -> None:
        name = self._no_directory(entry)
        with self._named(name):
            if stat.S_ISLNK(entry.mode):
                os.symlink(entry.target, self._part, dir_fd=self._at.fd)
            elif stat.S_ISFIFO(entry.mode):
                os.mkfifo(self._part, entry.mode & PERMISSIONS, dir_fd=self._at.fd)
            else:
                left_out(self.warnings, self._path(name), entry.mode)
                return
            if self._archive and os.geteuid() == 0:
                own = {"dir_fd": self._at.fd, "follow_symlinks": False}
                os.chown(self._part, entry.uid, entry.gid, **own)  # type: ignore[arg-type]
            times = (entry.mtime_ns, entry.mtime_ns)
            os.utime(self._part, ns=times, dir_fd=self._at.fd, follow_symlinks=False)
            self._rename(name)

    def _no_directory(self, entry: Entry) -> bytes:
        """The name of what is no directory, which as the first entry not every place can take."""
        if not entry.name and not self._file_allowed:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", self._path(self._name))
        return entry.name or self._name

    def _set(self, fd: int, entry: Entry) -> None:
        if self._archive and os.geteuid() == 0:
            os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, stat.S_IMODE(entry.mode) & (0o7777 if self._archive else PERMISSIONS))
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _rename(self, name: bytes) -> None:
        os.rename(self._part, name, src_dir_fd=self._at.fd, dst_dir_fd=self._at.fd)

    def _path(self, name: bytes = b"") -> str:
        return os.path.join(self._place, self._at.path(name)).rstrip("/")

    @contextmanager
    def _named(self, name: bytes = b"") -> Iterator[None]:
        """Whatever fails names the whole path."""
        try:
            yield
        except OSError as e:
            raise OSError(e.errno, e.strerror, self._path(name)) from None
