"""Where an image's files are: a directory, or an archive that is read in place."""

from __future__ import annotations

import os
import posixpath
import stat

from pyvmm.errors import ImageError
from pyvmm.oci.blob import Blob

_LINKS_MAX = 8  # skopeo's docker archives have one link to each layer


class Source:
    """Finds files of an image by their names, which have ``/`` between the parts."""

    name: str

    def find(self, name: str) -> Blob | None:
        """Return the file, or None if there is none of this name."""
        raise NotImplementedError


class Directory(Source):
    """An unpacked image."""

    def __init__(self, path: str) -> None:
        self.name = path
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
    """An image in an uncompressed tar archive: an index of its members, made once."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._path = path
        self._files: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        try:
            self._read_index()
        except ImageError:
            raise
        except OSError as error:
            raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from None
        except Exception as error:  # tarfile raises many kinds at hostile archives
            raise ImageError(
                f"{path}: not an image: neither a directory nor an uncompressed tar archive "
                f"({error})"
            ) from None

    def _read_index(self) -> None:
        import tarfile  # slow to import, and layouts do without

        length = os.stat(self._path).st_size
        with tarfile.open(self._path, "r:") as archive:
            position = -1
            while (member := archive.next()) is not None:
                # A negative size would send tarfile round in circles.
                if member.offset <= position or member.size < 0:
                    raise ImageError(f"{self.name}: damaged archive")
                position = member.offset
                archive.members.clear()  # type: ignore[attr-defined]
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
