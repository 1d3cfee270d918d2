"""Trees of files as frames (docs/protocol.md, "Files"): what both directions have in common.

A tree is said depth first, by names and not by paths: an ENTRY, and for a directory or a regular
file what is in it, then LEAVE. So no tree is too deep for PATH_MAX, and nothing that a guest says
can mean a place outside of the tree.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from ..errors import GuestError
from ..results import END, HEADER, MAX_FRAME
from .connection import Connection, Failed

GET, PUT = 6, 7  # what opens the session
ENTRY, DATA, HOLE, LEAVE = range(12, 16)  # the same both ways
FOLLOW = 1  # GET's flag: a symbolic link's target is meant
CP, INTO, MAKE, EXACT = range(4)  # PUT: what becomes of its path
LINK, KEEP = 1, 2  # an entry's flags

DATA_MAX = MAX_FRAME - HEADER.size  # with its header as long as vsock's largest packet
DEPTH_MAX = 4096
SIZE_MAX = (1 << 63) - 1
WARNINGS_MAX = 1000
LEFT_OUT = {stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
SECTOR = 512  # st_blocks' unit
WORD = struct.Struct("<I")
HEAD = struct.Struct("<IIIIqQHHI")  # of an ENTRY
LENGTH = struct.Struct("<Q")
# What a guest may say: others, as EAGAIN, would have a meaning for the caller.
ERRNOS = {
    errno.EPERM, errno.ENOENT, errno.EIO, errno.EACCES, errno.EBUSY, errno.EEXIST, errno.ENOTDIR,
    errno.EISDIR, errno.EINVAL, errno.EFBIG, errno.ENOSPC, errno.EROFS, errno.EMLINK,
    errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.ELOOP, errno.EDQUOT, errno.ETXTBSY,
}  # fmt: skip


class Entry(NamedTuple):
    """A file of any kind, without what is in it."""

    name: bytes
    mode: int
    """type and permissions, as stat(2) has them"""
    mtime_ns: int = 0
    size: int = 0
    """bytes of a regular file; the number of a device"""
    uid: int = 0
    gid: int = 0
    target: bytes = b""
    """of a symbolic link; with LINK the path of the entry that this is another name of"""
    flags: int = 0

    def pack(self) -> bytes:
        seconds, ns = divmod(self.mtime_ns, 1_000_000_000)
        head = (self.mode, self.uid, self.gid, ns, seconds, self.size, len(self.name), self.flags)
        return bytes(HEAD.pack(*head, 0)) + self.name + self.target

    @classmethod
    def unpack(cls, payload: bytes) -> Entry:
        """Raises GuestError, not for a wrong name."""
        if len(payload) < HEAD.size:
            raise GuestError("the guest's agent sent an ENTRY that is cut short")
        mode, uid, gid, ns, seconds, size, length, flags, zero = HEAD.unpack_from(payload)
        names = payload[HEAD.size :]
        if length > len(names) or ns >= 1_000_000_000 or flags or zero or size > SIZE_MAX:
            raise GuestError("the guest's agent sent an ENTRY that is malformed")
        name, target = names[:length], names[length:]
        if bool(target) != stat.S_ISLNK(mode) or 0 in target:
            raise GuestError("the guest's agent sent an ENTRY with a wrong target")
        return cls(name, mode, seconds * 1_000_000_000 + ns, size, uid, gid, target)


def frames(connection: Connection) -> Iterator[tuple[int, bytes]]:
    """Until END. Raises OSError with an errno that the guest says, else GuestError."""
    try:
        for kind, _, payload in connection.frames():
            yield kind, payload
    except Failed as e:
        raise OSError(e.code, str(e)) if e.code in ERRNOS else e from None


class Sink(Protocol):
    """Takes a tree: of each regular file file(), data() and hole(), close(); of each directory
    directory(), what is in it, leave()."""

    def directory(self, entry: Entry) -> None: ...
    def leave(self) -> None: ...
    def file(self, entry: Entry) -> None: ...
    def data(self, data: bytes) -> None: ...
    def hole(self, length: int) -> None: ...
    def close(self) -> None: ...
    def other(self, entry: Entry) -> None: ...


def left_out(warnings: list[str], path: str, mode: int) -> None:
    """Note that a file was not copied; only so often, since a guest may have any number of them."""
    if len(warnings) < WARNINGS_MAX:
        what = LEFT_OUT.get(stat.S_IFMT(mode), "of unknown type")
        warnings.append(f"{path}: {what}, left out")


def receive(connection: Connection, sink: Sink) -> None:
    """Give the sink the tree that comes, names and order checked: the first entry has no name.

    Raises GuestError for what is no tree, OSError as the guest or the sink says it.
    """
    depth, entries, size, in_file = 0, 0, 0, False
    for kind, payload in frames(connection):
        if kind == DATA and in_file:
            size += len(payload)
            sink.data(payload)
        elif kind == HOLE and in_file and len(payload) == LENGTH.size:
            (length,) = LENGTH.unpack(payload)
            size += length
            if size > SIZE_MAX:
                raise GuestError("the guest's agent sent a file that is too long")
            sink.hole(length)
        elif kind == LEAVE and in_file:
            in_file = False
            sink.close()
        elif kind == LEAVE and depth:
            depth -= 1
            sink.leave()
        elif kind == ENTRY and not in_file and (depth or not entries):
            entry = Entry.unpack(payload)
            _check_name(entry.name, first=not entries)
            entries += 1
            if stat.S_ISDIR(entry.mode):
                depth += 1
                if depth > DEPTH_MAX:
                    raise GuestError(f"the guest's tree is deeper than {DEPTH_MAX} directories")
                sink.directory(entry)
            elif stat.S_ISREG(entry.mode):
                in_file, size = True, 0
                sink.file(entry)
            else:
                sink.other(entry)
        else:
            raise GuestError(f"the guest's agent sent frame type {kind} out of place")
    if depth or in_file or not entries:
        raise GuestError("the guest's agent said END before all of the files had come")


def _check_name(name: bytes, *, first: bool) -> None:
    if first != (not name) or name in (b".", b"..") or b"/" in name or 0 in name:
        raise GuestError(f"the guest's agent sent a file of the name {os.fsdecode(name)!r}")


class Sender:
    """Sends a tree, many frames to a system call."""

    SIZE = 4 * MAX_FRAME

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._buffer = bytearray(self.SIZE)
        self._view = memoryview(self._buffer)
        self._used = 0
        self._poll = select.poll()
        self._poll.register(connection.sock, select.POLLIN)

    def entry(self, entry: Entry) -> None:
        self._frame(ENTRY, entry.pack())

    def hole(self, length: int) -> None:
        self._frame(HOLE, LENGTH.pack(length))

    def leave(self) -> None:
        self._frame(LEAVE)

    def data(self, data: bytes) -> None:
        for at in range(0, len(data), DATA_MAX):
            self._frame(DATA, data[at : at + DATA_MAX])

    def file(self, fd: int, status: os.stat_result) -> None:
        """A regular file's contents, at most as long as ``status`` has it, and LEAVE.

        But files of /proc and /sys, which are said to be empty, are read to their end.
        """
        at, size = 0, status.st_size
        sparse = status.st_blocks * SECTOR < size
        while at < size or (not size and not at):
            start, end = _extent(fd, at, size) if sparse else (0, size or SIZE_MAX)
            if start > at:
                self.hole(start - at)
            if not self._read(fd, start, end):
                break
            at = end
        self.leave()

    def _read(self, fd: int, at: int, end: int) -> bool:
        """False if the file ends before."""
        while at < end:
            self._room(HEADER.size + DATA_MAX)
            begin = self._used + HEADER.size
            got = os.preadv(fd, [self._view[begin : begin + min(DATA_MAX, end - at)]], at)
            if not got:
                return False
            HEADER.pack_into(self._buffer, self._used, got, DATA, 0)
            self._used = begin + got
            at += got
        return True

    def finish(self) -> None:
        """Say END and wait until the guest has it all. Raises as flush() does."""
        self._frame(END)
        self.flush()
        self._answer()

    def flush(self) -> None:
        """Raises OSError or GuestError if the guest has given up."""
        if self._poll.poll(0):
            self._answer()
            raise GuestError("the guest's agent said END before it had all of the files")
        try:
            self._connection.sock.sendall(self._view[: self._used])
        except (BrokenPipeError, ConnectionResetError):
            self._answer()
            raise
        self._used = 0

    def _answer(self) -> None:
        for kind, _ in frames(self._connection):
            raise GuestError(f"the guest's agent sent frame type {kind} out of place")

    def _frame(self, kind: int, payload: bytes = b"") -> None:
        self._room(HEADER.size + len(payload))
        HEADER.pack_into(self._buffer, self._used, len(payload), kind, 0)
        begin = self._used + HEADER.size
        self._used = begin + len(payload)
        self._buffer[begin : self._used] = payload

    def _room(self, length: int) -> None:
        if self.SIZE - self._used < length:
            self.flush()


def _extent(fd: int, at: int, size: int) -> tuple[int, int]:
    """Where the next data is, and where it ends; (size, size) if there are none."""
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
        return start, min(os.lseek(fd, start, os.SEEK_HOLE), size)
    except OSError as e:
        return (size, size) if e.errno == errno.ENXIO else (at, size)
