"""What is in the cache of base disks: listed, checked, removed."""

from __future__ import annotations

import os

from isal.isal_zlib import crc32  # ten times as fast as zlib's

from pyvmm.cache import cache_dir
from pyvmm.record import Record

_CHUNK = 1 << 18
_ZEROS = bytes(_CHUNK)


class Base(Record):
    """A base disk. ``image`` is the image's digest, ``used`` its bytes on the host's disk."""

    path: str
    image: str
    used: int


def bases() -> list[Base]:
    """All base disks, by name."""
    found = []
    for entry in sorted(os.scandir(cache_dir("disks")), key=lambda entry: entry.name):
        if entry.name.endswith(".ext4"):
            algorithm, digits, _ = entry.name.split("-", 2)
            try:
                used = entry.stat().st_blocks * 512
            except FileNotFoundError:  # removed meanwhile
                continue
            found.append(Base(entry.path, f"{algorithm}:{digits}", used))
    return found


def remove(base: Base) -> None:
    """Take a disk out of the cache. A VM that runs on it keeps it."""
    for path in (base.path, _checksum_path(base.path)):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def is_intact(base: Base) -> bool:
    """Whether every byte is as it was made."""
    try:
        with open(_checksum_path(base.path)) as file:
            return file.read() == _checksum(base.path)
    except FileNotFoundError:
        return False


def note_checksum(part: str, path: str) -> None:
    """Keep the checksum of what will be the base disk ``path`` beside it."""
    with open(_checksum_path(path), "w") as file:
        file.write(_checksum(part))
        file.flush()
        os.fsync(file.fileno())


def _checksum_path(path: str) -> str:
    return f"{path}.crc32"


def _checksum(path: str) -> str:
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
    return f"{value:08x}"
