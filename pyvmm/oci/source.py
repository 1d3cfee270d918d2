"""Where an image's files are: a directory, or an archive that is read in place."""

from __future__ import annotations

import errno
import os
import posixpath
import stat

from pyvmm.errors import ImageError
from pyvmm.oci.blob import Blob
from pyvmm.oci.limits import DEFAULT, Limits

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from typing import BinaryIO

_LINKS_MAX = 8  # skopeo's docker archives have one link to each layer
_CHUNK = 1 << 20
_EXTENDED = b"x", b"g", b"X", b"L", b"K"  # pax headers and GNU's long names
_EXTENDED_MAX = 8192  # bytes; of what images are saved in they have some hundred


class Source:
    """Finds files of an image by their names, which have ``/`` between the parts."""

    name: str
    limits: Limits = DEFAULT

    def find(self, name: str) -> Blob | None:
        """Return the file, or None if there is none of this name."""
        raise NotImplementedError

    def check(self, blob: Blob) -> None:
        """Raise ImageError for a document that is larger than the limit."""
        if blob.size > self.limits.config:
            raise ImageError(
                f"{blob.name}: has {blob.size} bytes, more than {self.limits.config} "
                "(--image-limit config=…)"
            )

    def read(self, blob: Blob) -> bytes:
        """A document. Raises ImageError."""
        self.check(blob)
        return blob.read()

    def close(self) -> None:
        """Let go of what is open; blobs cannot be read then."""


class Directory(Source):
    """An unpacked image."""

    def __init__(self, path: str, limits: Limits = DEFAULT) -> None:
        self.name = path
        self.limits = limits
        self._path = path

    def find(self, name: str) -> Blob | None:
        path = os.path.join(self._path, name)
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return Blob(path, path, 0, status.st_size)


class Archive(Source):
    """An image in a tar archive: an index of its members, made once.

    One that is compressed, by gzip or zstd, is unpacked first, to an unnamed file in the cache.
    """

    def __init__(self, path: str, limits: Limits = DEFAULT) -> None:
        from pyvmm.oci.compression import kind_of

        self.name = path
        self.limits = limits
        self._path = path
        self._unpacked: BinaryIO | None = None
        self._files: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        try:
            with open(path, "rb") as file:
                if kind_of(file.read(4)):
                    self._unpacked = _unpack(path, limits)
                    self._path = f"/proc/self/fd/{self._unpacked.fileno()}"
            self._read_index()
        except ImageError:
            raise
        except OSError as error:
            raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from None
        except Exception as error:  # tarfile raises many kinds at hostile archives
            raise ImageError(
                f"{path}: not an image: neither a directory nor a tar archive, plain, gzip or zstd "
                f"(unpack any other): {error}"
            ) from None

    def close(self) -> None:
        if self._unpacked:
            self._unpacked.close()

    def _read_index(self) -> None:
        import tarfile  # slow to import, and layouts do without

        path = self.name

        class Member(tarfile.TarInfo):
            """Python reads extended headers whole, and some versions in quadratic time."""

            def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
                if self.type in _EXTENDED and self.size > _EXTENDED_MAX:
                    raise ImageError(f"{path}: extended header of {self.size} bytes")
                return super()._proc_member(archive)  # type: ignore[misc, no-any-return]

        length = os.stat(self._path).st_size
        with tarfile.open(self._path, "r:", tarinfo=Member) as archive:
            position = -1
            while (member := archive.next()) is not None:
                # A negative size would send tarfile round in circles.
                if member.offset <= position or member.size < 0:
                    raise ImageError(f"{self.name}: damaged archive")
                position = member.offset
                # What tarfile keeps, and copies for each member, is no use here.
                archive.members.clear()  # type: ignore[attr-defined]
                archive.pax_headers = {}
                name = posixpath.normpath(member.name)
                if member.issym():
                    self._links[name] = posixpath.join(posixpath.dirname(name), member.linkname)
                elif member.islnk():
                    self._links[name] = member.linkname
                elif member.isreg() and not member.issparse():
                    if member.offset_data + member.size > length:
                        raise ImageError(f"{self.name}: truncated archive")
                    self._files[name] = (member.offset_data, member.size)

    def find(self, name: str) -> Blob | None:
        key = posixpath.normpath(name)
        for _ in range(_LINKS_MAX):
            if key in self._files:
                offset, size = self._files[key]
                return Blob(f"{self.name}: {name}", self._path, offset, size)
            if key not in self._links:
                return None
            key = posixpath.normpath(self._links[key])
        return None


def _unpack(path: str, limits: Limits) -> BinaryIO:
    """What is in a compressed file, as an unnamed file."""
    import tempfile

    from pyvmm.cache import cache_dir
    from pyvmm.oci.compression import Malformed, decompressed

    size = os.stat(path).st_size
    unpacked = tempfile.TemporaryFile(dir=cache_dir())  # noqa: SIM115
    try:
        with open(path, "rb") as packed:
            for data in decompressed(iter(lambda: packed.read(_CHUNK), b"")):
                unpacked.write(data)
                limits.check_growth(path, size, unpacked.tell())
        unpacked.flush()
    except Malformed as error:
        raise ImageError(f"{path}: cannot be decompressed: {error}") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ImageError(f"{path}: no space to unpack it in {cache_dir()}") from None
        raise
    return unpacked
