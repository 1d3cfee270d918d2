"""Files on their way into the store: under another name until they are complete and on the disk."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile

from pyvmm.cache import is_file_at
from pyvmm.errors import ImageError

_CHUNK = 1 << 20


class DigestError(ImageError):
    """What came is not what the digest says, and was thrown away."""


class Incoming:
    """The blob ``digest`` of ``size`` bytes, written in order, by one process and thread at a time.

    A ``with`` statement waits for whoever else is writing it. After that ``offset`` is the number
    of bytes that are there already; if it is ``size``, only ``finish`` is left to call. If the
    writer ends before that, in whatever way, the next one resumes where it stopped. All methods
    raise ImageError, also where the host's disk is full.
    """

    offset: int

    def __init__(self, partial: str, path: str, digest: str, size: int) -> None:
        self._part = os.path.join(partial, digest.replace(":", "-"))
        self._path = path
        self._digest = digest
        self._size = size
        self._finished = False

    def __enter__(self) -> Incoming:
        try:
            os.makedirs(os.path.dirname(self._part), exist_ok=True)
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            while True:
                descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                self._file = open(descriptor, "r+b", buffering=0)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if is_file_at(descriptor, self._part):
                    break
                self._file.close()  # whom we waited for renamed or removed it
            self._restore()
        except OSError as error:
            raise _unwritable(self._part, error) from None
        return self

    def __exit__(self, *_: object) -> None:
        if (self._finished or not self.offset) and is_file_at(self._file.fileno(), self._part):
            os.unlink(self._part)
        self._file.close()

    def _restore(self) -> None:
        """Bring ``offset`` and the hash to where the last writer stopped."""
        if os.path.exists(self._path) and os.stat(self._path).st_size == self._size:
            self.offset = self._size
            self._finished = True
            return
        self._hash = hashlib.new(self._digest.partition(":")[0])
        self.offset = 0
        while data := self._file.read(_CHUNK):
            self._hash.update(data)
            self.offset += len(data)
        if self.offset > self._size:
            self.restart()

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        if len(data) > self._size - self.offset:
            self.restart()
            raise DigestError(f"blob {self._digest}: more than its {self._size} bytes came")
        try:
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise _unwritable(self._part, error) from None
        self._hash.update(data)
        self.offset += len(data)

    def restart(self) -> None:
        """Throw away what was written."""
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.new(self._digest.partition(":")[0])
        self.offset = 0

    def finish(self) -> None:
        """Put the blob in its place. DigestError, and all is thrown away, if it is another."""
        if self._finished:
            return
        found = f"{self._digest.partition(':')[0]}:{self._hash.hexdigest()}"
        if self.offset != self._size or found != self._digest:
            what = f"{self.offset} of its {self._size} bytes came, with the digest {found}"
            self.restart()
            raise DigestError(f"blob {self._digest}: damaged: {what}")
        try:
            os.fsync(self._file.fileno())
            os.rename(self._part, self._path)
            os.fchmod(self._file.fileno(), 0o444)  # now: a part that stays behind is written on
            _sync_directory(self._path)
        except OSError as error:
            raise _unwritable(self._path, error) from None
        self._finished = True


def write_file(path: str, data: bytes, partial: str) -> None:
    """Make ``path`` a file of ``data``, at once and for good; ``partial`` is for the time before.

    Raises ImageError.
    """
    try:
        os.makedirs(partial, exist_ok=True)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=partial)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            os.rename(part, path)
        except BaseException:
            os.unlink(part)
            raise
        _sync_directory(path)
    except OSError as error:
        raise _unwritable(path, error) from None


def _sync_directory(path: str) -> None:
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: str, error: OSError) -> ImageError:
    return ImageError(f"{path}: cannot be written: {error.strerror or error}")
