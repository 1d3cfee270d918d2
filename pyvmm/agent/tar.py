"""Tar streams, out of a guest and into it. PAX, so that names and sizes may be any."""

from __future__ import annotations

import stat
import struct
import tarfile
from collections.abc import Callable
from typing import BinaryIO

from ..errors import PyvmmError
from .contents import ZEROS, write_zeros
from .tree import KEEP, LINK, Entry, Sender, left_out

TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}
MODES = {kind: mode for mode, kind in TYPES.items()}
CHUNK = 1 << 16
BYTES = "utf-8", "surrogateescape"


class TarWriter:
    """A tree.Sink that writes a tar archive. Holes are zeros there; ``warnings`` has a line for
    each socket, which has no place in one."""

    def __init__(self, write: Callable[[bytes], object], name: bytes) -> None:
        """The tree's top is ``name`` in it; if that is empty what is in it goes to the archive's
        own top."""
        self.warnings: list[str] = []
        self._write = write
        self._name = name
        self._path: list[bytes] = []
        self._size = 0
        self._left = 0
        self._written = 0

    def directory(self, entry: Entry) -> None:
        self._path.append(entry.name or self._name or b".")
        self._header(entry, self._where())

    def leave(self) -> None:
        self._path.pop()

    def file(self, entry: Entry) -> None:
        self._header(entry, self._where(entry))
        self._size = self._left = entry.size

    def data(self, data: bytes) -> None:
        """A file that has grown since its header was written ends where that says."""
        data = data[: self._left]
        self._write(data)
        self._left -= len(data)

    def hole(self, length: int) -> None:
        length = min(length, self._left)
        write_zeros(self._write, length)
        self._left -= length

    def close(self) -> None:
        write_zeros(self._write, self._left + -self._size % tarfile.BLOCKSIZE)
        self._written += self._size + -self._size % tarfile.BLOCKSIZE

    def other(self, entry: Entry) -> None:
        if stat.S_IFMT(entry.mode) in TYPES:
            self._header(entry, self._where(entry))
        else:
            left_out(self.warnings, self._where(entry), entry.mode)

    def finish(self) -> None:
        """The archive's end."""
        end = 2 * tarfile.BLOCKSIZE
        write_zeros(self._write, end + -(self._written + end) % tarfile.RECORDSIZE)

    def _where(self, entry: Entry | None = None) -> str:
        names = [entry.name or self._name] if entry else []
        return b"/".join([*self._path, *names]).decode(*BYTES)

    def _header(self, entry: Entry, path: str) -> None:
        kind = stat.S_IFMT(entry.mode)
        info = tarfile.TarInfo(path)
        info.type = TYPES[kind]
        info.mode = stat.S_IMODE(entry.mode)
        info.uid, info.gid = entry.uid, entry.gid
        if kind == stat.S_IFREG:
            info.size = entry.size
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            number = entry.size & 0xFFFFFFFF
            info.devmajor = number >> 8 & 0xFFF
            info.devminor = number & 0xFF | number >> 12 & 0xFFF00
        info.linkname = entry.target.decode(*BYTES)
        seconds, ns = divmod(entry.mtime_ns, 1_000_000_000)
        info.mtime = seconds
        if ns and seconds >= 0:
            info.pax_headers = {"mtime": f"{seconds}.{ns:09}"}
        header = info.tobuf(tarfile.PAX_FORMAT, *BYTES)
        self._write(header)
        self._written += len(header)


def send_tar(file: BinaryIO, sender: Sender) -> None:
    """What a tar archive has, compressed or not, read once from its begin to its end.

    Raises PyvmmError for what is no such archive, or has names that lead out of it.
    """
    at: list[bytes] = []

    def to(directory: list[bytes]) -> None:
        common = 0
        while common < min(len(at), len(directory)) and at[common] == directory[common]:
            common += 1
        while len(at) > common:
            at.pop()
            sender.leave()
        for name in directory[common:]:
            at.append(name)
            sender.entry(Entry(name, stat.S_IFDIR, flags=KEEP))

    try:
        with tarfile.open(fileobj=file, mode="r|*", encoding=BYTES[0], errors=BYTES[1]) as tar:
            for member in tar:
                path = _parts(member.name)
                if not path:
                    continue  # the top itself
                to(path[:-1])
                if member.isdir():
                    at.append(path[-1])
                    sender.entry(_entry(member, path[-1]))
                    continue
                sender.entry(_entry(member, path[-1]))
                if member.isreg():
                    _contents(tar, member, sender)
                    sender.leave()
            to([])
    except tarfile.TarError as e:
        raise PyvmmError(f"the tar archive: {e}") from None
    except (struct.error, ValueError, OverflowError):
        raise PyvmmError("the tar archive: a number is out of range") from None


def _parts(name: str) -> list[bytes]:
    parts = [p for p in name.encode(*BYTES).split(b"/") if p not in (b"", b".")]
    if b".." in parts:
        raise PyvmmError(f"the tar archive: {name!r} leads out of it")
    return parts


def _entry(member: tarfile.TarInfo, name: bytes) -> Entry:
    if member.islnk():
        path = b"/".join(_parts(member.linkname))
        return Entry(name, stat.S_IFREG, target=path, flags=LINK)
    kind = stat.S_IFREG if member.isreg() else MODES.get(member.type, 0)
    if not kind:
        raise PyvmmError(f"the tar archive: {member.name!r} is of an unknown type")
    size = member.size if member.isreg() else 0
    if member.isdev():
        size = (member.devmajor & 0xFFF) << 8 | member.devminor & 0xFF
        size |= (member.devminor & 0xFFF00) << 12
    target = member.linkname.encode(*BYTES) if member.issym() else b""
    mode = kind | member.mode & 0o7777
    return Entry(name, mode, _mtime_ns(member), size, member.uid, member.gid, target)


def _mtime_ns(member: tarfile.TarInfo) -> int:
    """As exact as the archive has it, which a float is not."""
    seconds, _, fraction = member.pax_headers.get("mtime", "").partition(".")
    if seconds.isdecimal() and fraction.isdecimal():
        return int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))
    return int(member.mtime * 1_000_000_000)


def _contents(tar: tarfile.TarFile, member: tarfile.TarInfo, sender: Sender) -> None:
    file = tar.extractfile(member)
    assert file
    sparse = member.issparse()
    while data := file.read(CHUNK):
        if sparse and data == ZEROS[: len(data)]:
            sender.hole(len(data))
        else:
            sender.data(data)
