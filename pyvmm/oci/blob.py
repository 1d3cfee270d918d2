"""Blobs: stretches of files that have a digest."""

from __future__ import annotations

import sys

from pyvmm.errors import ImageError
from pyvmm.record import Record

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from typing import Any, BinaryIO

# image-spec descriptor.md, "Registered Algorithms". The digest names a file: nothing else may pass.
_DIGITS = {"sha256": 64, "sha512": 128}
_CHUNK = 1 << 20
_SMALL = 1 << 18


def checked_digest(text: str, where: str) -> str:
    """Return ``text`` if it is a digest of a known algorithm; ImageError otherwise."""
    algorithm, _, digits = text.partition(":")
    if len(digits) != _DIGITS.get(algorithm) or digits.strip("0123456789abcdef"):
        raise ImageError(f"{where}: {text[:100]!r} is not a sha256 or sha512 digest")
    return text


def new_hash(algorithm: str, size: int) -> Any:
    """A hash object. Not hashlib's for a small document: that would load OpenSSL first, which
    takes longer than all the hashing of a run whose disk is cached.
    """
    if algorithm == "sha256" and size < _SMALL and sys.version_info < (3, 12):
        from _sha256 import sha256

        return sha256()
    import hashlib

    return hashlib.new(algorithm)


class DamagedError(ImageError):
    """A blob is missing, or not what its digest says. Fetched again, it may be right."""

    def __init__(self, message: str, digest: str) -> None:
        super().__init__(f"{message}; fetch the image again")
        self.digest = digest


class Blob(Record):
    """``size`` bytes at ``offset`` of the file ``path``. ``name`` is for messages."""

    name: str
    path: str
    offset: int
    size: int

    def open(self) -> BinaryIO:
        """Open the file, at the blob's first byte."""
        try:
            file = open(self.path, "rb")  # noqa: SIM115
        except OSError as error:
            raise ImageError(f"{self.name}: cannot be read: {error.strerror}") from None
        file.seek(self.offset)
        return file

    def read(self) -> bytes:
        """All of the blob. The caller has looked at ``size``."""
        with self.open() as file:
            data = file.read(self.size)
        if len(data) != self.size:
            raise ImageError(f"{self.name}: cut short: {len(data)} of {self.size} bytes")
        return data

    def read_verified(self, digest: str) -> bytes:
        """The same, of a blob that has this digest; DamagedError if it has another."""
        hasher = new_hash(digest.partition(":")[0], self.size)
        with self.open() as file:
            data = file.read(self.size)
        hasher.update(data)
        self._compare(hasher, digest)
        return data

    def verify(self, digest: str) -> None:
        """Compare a blob of any size with its digest; DamagedError if it differs."""
        hasher = new_hash(digest.partition(":")[0], self.size)
        left = self.size
        with self.open() as file:
            while left and (data := file.read(min(left, _CHUNK))):
                hasher.update(data)
                left -= len(data)
        self._compare(hasher, digest)

    def _compare(self, hasher: Any, digest: str) -> None:
        found = f"{digest.partition(':')[0]}:{hasher.hexdigest()}"
        if found != digest:
            raise DamagedError(
                f"{self.name}: damaged: its contents have the digest {found}", digest
            )
