"""``machine.files``: what is in the guest's file system, read, written and copied."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import BinaryIO

from .connection import Connection
from .contents import Contents
from .extract import Extractor
from .tar import TarWriter, send_tar
from .tree import CP, EXACT, FOLLOW, GET, INTO, MAKE, PUT, WORD, Entry, Sender, Sink, receive
from .walk import Walk

Path = str | os.PathLike[str]
Data = bytes | bytearray | memoryview

READ_LIMIT = 256 << 20  # bytes
PATH_MAX = 4095  # bytes, Linux's
CHUNK = 1 << 20


class Files:
    """The guest's files, as its root sees them; its paths begin at ``/``.

    Every method raises OSError for what is wrong with a file (as FileNotFoundError), the guest's or
    ours; and GuestError if the machine ends meanwhile. Contents stream: files may be larger than
    memory, and holes stay holes. Extended attributes are not copied.
    """

    def __init__(self, connect: Callable[[], AbstractContextManager[Connection]]) -> None:
        """``connect`` begins a session with the guest's agent."""
        self._connect = connect

    def read(self, path: Path, *, limit: int = READ_LIMIT) -> bytes:
        """What is in a regular file, also in one of /proc; links are followed.

        OSError EFBIG if there are more than ``limit`` bytes.
        """
        parts: list[bytes] = []
        self._get(path, Contents(os.fspath(path), parts.append, limit), follow=True)
        return b"".join(parts)

    def write(self, path: Path, data: Data | BinaryIO, mode: int = 0o644) -> None:
        """Write a file, as open(2) would: one that is there stays the same file, with its mode and
        owner, links are followed, and a new one is root's and has ``mode``."""
        with self._connect() as connection:
            sender = _put(connection, path, EXACT)
            sender.entry(Entry(b"file", stat.S_IFREG | mode))
            if isinstance(data, Data):
                sender.data(bytes(data))
            else:
                while part := data.read(CHUNK):
                    sender.data(part)
            sender.leave()
            sender.finish()

    def pull(
        self, guest: Path, host: Path, *, archive: bool = False, follow: bool = False
    ) -> list[str]:
        """Copy a file or a directory from the guest, as docker cp does.

        A directory ``host`` that is there takes it under its own name; else it becomes ``host``.
        Of a ``guest`` that ends with ``/.`` only what is in the directory is copied. Modes and
        times are kept; with ``archive`` also set-user-ID bits, and owners if we are root. With
        ``follow`` a symbolic link ``guest`` means its target. Hard links become files of their own.

        Returns a line for each device and socket, which are left out.
        """
        guest, host = os.fspath(guest), os.fspath(host)
        if os.path.exists(host) and not (os.path.isfile(host) or os.path.isdir(host)):
            with open(host, "wb", buffering=0) as file:  # a pipe or a device takes the contents
                self._get(guest, Contents(guest, _writer(file)), follow=follow)
            return []
        with Extractor(host, _name(guest), archive=archive) as extractor:
            self._get(guest, extractor, follow=follow)
        return extractor.warnings

    def push(
        self, host: Path, guest: Path, *, archive: bool = False, follow: bool = False
    ) -> list[str]:
        """Copy a file or a directory to the guest, as docker cp does.

        A directory ``guest`` that is there takes it under its own name; else it becomes ``guest``.
        Of a ``host`` that ends with ``/.`` only what is in the directory is copied. Modes, times
        and hard links are kept; the owner is root, unless ``archive`` keeps that, too. With
        ``follow`` a symbolic link ``host`` means its target.

        Returns a line for each socket, which are left out.
        """
        host, guest = os.fspath(host), os.fspath(guest)
        name = _name(os.path.abspath(host)) if _name(host) else b""
        is_directory = stat.S_ISDIR(os.stat(host, follow_symlinks=follow).st_mode)
        how = MAKE if not name else INTO if guest.endswith("/") and not is_directory else CP
        with self._connect() as connection:
            sender = _put(connection, guest, how)
            walk = Walk(sender, archive=archive)
            if name:
                walk.one(host, name, follow=follow)
            else:
                walk.below(host)
            sender.finish()
        return walk.warnings

    def pull_tar(self, guest: Path, file: BinaryIO, *, follow: bool = False) -> list[str]:
        """Write a file or a directory as a tar archive to ``file``, front to back.

        Returns a line for each socket, which are left out. Holes are zeros in the archive.
        """
        tar = TarWriter(_writer(file), _name(os.fspath(guest)))
        self._get(guest, tar, follow=follow)
        tar.finish()
        return tar.warnings

    def push_tar(self, file: BinaryIO, guest: Path) -> None:
        """Unpack a tar archive, compressed or not, in the guest's directory ``guest``.

        ``file`` is read once, front to back. Owners are the archive's. Raises PyvmmError for what
        is no such archive.
        """
        with self._connect() as connection:
            sender = _put(connection, guest, INTO)
            send_tar(file, sender)
            sender.finish()

    def _get(self, path: Path, sink: Sink, *, follow: bool) -> None:
        with self._connect() as connection:
            connection.send(GET, _opening(FOLLOW if follow else 0, path))
            receive(connection, sink)


def _put(connection: Connection, path: Path, how: int) -> Sender:
    connection.send(PUT, _opening(how, path))
    return Sender(connection)


def _opening(word: int, path: Path) -> bytes:
    data = os.fsencode(path)
    if len(data) > PATH_MAX:
        raise OSError(errno.ENAMETOOLONG, "file name too long", os.fspath(path))
    return WORD.pack(word) + data


def _name(path: str) -> bytes:
    """What a copy of it is called; empty if what is in it is meant: ``/``, ``.`` and ``…/.``."""
    if posixpath.basename(path) == ".":
        return b""
    return os.fsencode(posixpath.basename(posixpath.normpath(path)))


def _writer(file: BinaryIO) -> Callable[[bytes], object]:
    """Writes all, also where ``file`` is raw and takes a part at a time."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[file.write(view) or 0 :]

    return write
