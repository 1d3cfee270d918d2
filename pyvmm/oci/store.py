"""The images that were pulled: blobs by digest, and the names that lead to them.

The directory has the ``blobs`` of an OCI image layout (image-spec image-layout.md) and, in place of
its index.json, ``names`` with one small file for each reference, so that processes which pull
different images at once do not write the same file. Whatever is there is complete: files are
written under another name, flushed to the disk and renamed. Digests are checked before that.
"""

from __future__ import annotations

import fcntl
import os

from pyvmm.cache import cache_dir
from pyvmm.errors import ImageError
from pyvmm.oci.blob import Blob, checked_digest, new_hash
from pyvmm.oci.fields import DOCUMENT_MAX, Fields, parse
from pyvmm.quick_json import dumps
from pyvmm.record import Record

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvmm.oci.incoming import Incoming

_ALGORITHMS = "sha256", "sha512"


class Name(Record):
    """What a reference meant when it was pulled.

    ``digest``, ``size`` (bytes) and ``media_type`` are those of the manifest or index that the
    registry gave for it, ``pulled`` is the time, in seconds since 1970.
    """

    reference: str
    digest: str
    size: int
    media_type: str
    pulled: int


class Store:
    """The store at ``path``, by default in the user's cache."""

    def __init__(self, path: str | None = None) -> None:
        self.path = path or cache_dir("images")
        self._names = os.path.join(self.path, "names")
        self._partial = os.path.join(self.path, "partial")

    def blob_path(self, digest: str) -> str:
        """The place of a blob, there or not. ImageError if ``digest`` is none."""
        return os.path.join(
            self.path, "blobs", *checked_digest(digest, self.path).split(":", maxsplit=1)
        )

    def has(self, digest: str, size: int) -> bool:
        """Whether the blob is there, of ``size`` bytes; its contents are not read."""
        try:
            return os.stat(self.blob_path(digest)).st_size == size
        except FileNotFoundError:
            return False

    def read(self, digest: str, size: int) -> bytes:
        """A small blob that is there, verified. Raises ImageError."""
        return Blob(f"blob {digest}", self.blob_path(digest), 0, size).read_verified(digest)

    def receive(self, digest: str, size: int) -> Incoming:
        """A blob to be written: see Incoming. Waits for who else is writing it."""
        from pyvmm.oci.incoming import Incoming

        return Incoming(self._partial, self.blob_path(digest), digest, size)

    def lock(self) -> _Lock:
        """Held while blobs come in that no name leads to yet: prune and verify keep away."""
        return _Lock(self.path, fcntl.LOCK_SH)

    def find(self, reference: str) -> Name | None:
        """What ``reference`` means, or None if it is not in the store."""
        name = self._read_name(self._name_path(reference))
        return name if name and name.reference == reference else None

    def names(self) -> list[Name]:
        """All references that are in the store, in their order."""
        paths = [os.path.join(self._names, file) for file in _listing(self._names)]
        names = [name for path in paths if (name := self._read_name(path))]
        return sorted(names, key=lambda name: name.reference)

    def name(self, name: Name) -> None:
        """Let a reference mean what ``name`` says from now on."""
        from pyvmm.oci.incoming import write_file

        path = self._name_path(name.reference)
        write_file(path, dumps(vars(name)).encode(), self._partial)

    def forget(self, reference: str) -> bool:
        """Take a reference out of the store, not its blobs; False if it was not there."""
        try:
            os.unlink(self._name_path(reference))
        except FileNotFoundError:
            return False
        return True

    def used(self) -> set[str]:
        """The digests of all blobs that the names lead to, there or not."""
        return self.reachable([name.digest for name in self.names()])

    def reachable(self, digests: list[str]) -> set[str]:
        """The digests of all blobs that manifests and indexes lead to, there or not; theirs too."""
        used: set[str] = set()
        waiting = list(digests)
        while waiting:
            digest = waiting.pop()
            if digest in used:
                continue
            used.add(digest)
            document = self._document(digest)
            if document:
                waiting += _digests(document, "manifests")
                used.update(_digests(document, "layers"), _digests(document, "config"))
        return used

    def prune(self, parts: bool = True) -> int:
        """Remove blobs that no name leads to, and ``parts`` of blobs; return the bytes freed.

        Raises ImageError while somebody pulls: what comes in has no name yet.
        """
        freed = 0
        with _Lock(self.path, fcntl.LOCK_EX | fcntl.LOCK_NB):
            used = self.used()
            unused = [path for digest, path in self._blobs() if digest not in used]
            if parts:
                unused += [os.path.join(self._partial, file) for file in _listing(self._partial)]
            for path in unused:
                try:
                    freed += os.stat(path).st_blocks * 512
                    os.unlink(path)
                except FileNotFoundError:  # a run found it damaged, and removed it
                    pass
        return freed

    def verify(self) -> list[str]:
        """Read all blobs, and remove those that are damaged; return their digests.

        The next pull fetches them again. Raises ImageError while somebody pulls.
        """
        damaged = []
        with _Lock(self.path, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for digest, _ in self._blobs():
                if self.remove(digest):
                    damaged.append(digest)
        return damaged

    def remove(self, digest: str) -> bool:
        """Remove a blob if it is damaged, whoever says so; the next pull fetches it again."""
        path = self.blob_path(digest)
        try:
            Blob(path, path, 0, os.stat(path).st_size).verify(digest)
        except ImageError:
            os.unlink(path)
            return True
        except FileNotFoundError:
            pass
        return False

    def _name_path(self, reference: str) -> str:
        # Not the reference itself, which may be longer than a file's name and has slashes.
        hasher = new_hash("sha256", len(reference))
        hasher.update(reference.encode())
        return os.path.join(self._names, hasher.hexdigest())

    def _read_name(self, path: str) -> Name | None:
        """A damaged file is as good as none: the next pull writes it again."""
        try:
            with open(path, "rb") as file:
                fields = Fields(parse(file.read(DOCUMENT_MAX), path), path)
            return Name(
                reference=fields.text("reference"),
                digest=checked_digest(fields.text("digest"), path),
                size=fields.size("size"),
                media_type=fields.text("media_type"),
                pulled=fields.size("pulled"),
            )
        except (OSError, ImageError):
            return None

    def _document(self, digest: str) -> Fields | None:
        """A manifest or index, if it is there and sound."""
        try:
            path = self.blob_path(digest)
            size = os.stat(path).st_size
            if size > DOCUMENT_MAX:
                return None
            return Fields(parse(self.read(digest, size), path), path)
        except (FileNotFoundError, ImageError):
            return None

    def _blobs(self) -> Iterator[tuple[str, str]]:
        for algorithm in _ALGORITHMS:
            directory = os.path.join(self.path, "blobs", algorithm)
            for file in _listing(directory):
                yield f"{algorithm}:{file}", os.path.join(directory, file)


class _Lock:
    """The store's lock, shared or not, for a ``with`` statement."""

    def __init__(self, path: str, kind: int) -> None:
        self._path = path
        self._kind = kind

    def __enter__(self) -> None:
        try:
            os.makedirs(self._path, exist_ok=True)
            self._file = os.open(os.path.join(self._path, "lock"), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ImageError(f"{self._path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._file, self._kind)
        except BlockingIOError:
            os.close(self._file)
            raise ImageError(
                f"{self._path}: in use by another pyvmm, which pulls or verifies; try again later"
            ) from None

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def _digests(document: Fields, name: str) -> list[str]:
    """Those of a document's descriptors, as far as they have any: nobody looked at all of them."""
    try:
        descriptors = [document.object(name)] if name == "config" else document.objects(name)
    except ImageError:
        return []
    found = []
    for each in descriptors:
        try:
            found.append(checked_digest(each.text("digest"), each.where))
        except ImageError:
            pass
    return found


def _listing(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []
