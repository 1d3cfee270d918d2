"""What is in the cache of base disks: listed, checked, removed."""

from __future__ import annotations

import os

from isal.isal_zlib import crc32  # ten times as fast as zlib's

from pyvmm.cache import cache_dir, make_once, part_of, sweep
from pyvmm.disk import FORMAT
from pyvmm.record import Record

_SUFFIX = f"-v{FORMAT}.ext4"
_CHECKSUM = ".crc32"
_CHUNK = 1 << 18
_ZEROS = bytes(_CHUNK)


class Base(Record):
    """A base disk. ``image`` is the image's digest, ``used`` its bytes on the host's disk."""

    path: str
    image: str
    used: int


def bases() -> list[Base]:
    """All base disks that a run could use, by name."""
    found = []
    for entry in _entries():
        algorithm, _, rest = entry.name.removesuffix(_SUFFIX).partition("-")
        digits, dash, _ = rest.partition("-")
        if entry.name.endswith(_SUFFIX) and dash:
            try:
                used = entry.stat().st_blocks * 512
            except FileNotFoundError:  # removed meanwhile
                continue
            found.append(Base(entry.path, f"{algorithm}:{digits}", used))
    return found


def remove_leftovers() -> int:
    """Remove what no run can use: what was not finished, and disks of other versions' formats.
    Returns the bytes freed.
    """
    freed = sweep()
    for entry in _entries():
        disk = entry.path.removesuffix(_CHECKSUM)
        # A checksum is there before its disk.
        is_checksum = disk != entry.path and (os.path.exists(disk) or os.path.exists(part_of(disk)))
        if entry.name.endswith(_SUFFIX) or is_checksum:
            continue
        try:
            used = entry.stat().st_blocks * 512
            os.unlink(entry.path)
            freed += used
        except FileNotFoundError:  # removed meanwhile
            pass
    return freed


def _entries() -> list[os.DirEntry[str]]:
    entries = [entry for entry in os.scandir(cache_dir("disks")) if entry.is_file()]
    return sorted(entries, key=lambda entry: entry.name)


def remove(base: Base) -> None:
    """Take a disk out of the cache. A VM that runs on it keeps it."""
    for path in (base.path, _checksum_path(base.path)):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def is_intact(base: Base) -> bool:
    """Whether every byte is as it was made."""
    return _noted(base.path) == _checksum(base.path)


def note_checksum(part: str, path: str) -> None:
    """Keep the checksum of what will be the base disk ``path`` beside it."""
    value = _checksum(part)

    def write(to: str) -> None:
        with open(to, "wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())

    make_once(_checksum_path(path), lambda: _noted(path) == value, write)


def _noted(path: str) -> bytes | None:
    try:
        with open(_checksum_path(path), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _checksum_path(path: str) -> str:
    return f"{path}{_CHECKSUM}"


def _checksum(path: str) -> bytes:
    """CRC-32 of all blocks that are not zero, and where they are: a hole and zeros are the same."""
    value = 0
    end = os.stat(path).st_size
    with open(path, "rb", buffering=0) as file:
        at = 0
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // _CHUNK * _CHUNK
            except OSError:  # ENXIO: nothing but a hole to the end
                break
            data = os.pread(file.fileno(), _CHUNK, at)
            if data != _ZEROS[: len(data)]:
                value = crc32(data, crc32(at.to_bytes(8, "little"), value))
            at += _CHUNK
    return b"%08x" % value
