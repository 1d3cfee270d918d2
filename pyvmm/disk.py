"""Base disks: an image as one read-only ext4 file, made once and kept in the cache.

The disk is the only file ever made on the host: see disk_writer.py; disk_cache.py tidies up.
"""

from __future__ import annotations

import fcntl
import os

from pyvmm.cache import cache_dir, is_file_at
from pyvmm.errors import DiskError

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.oci import Image
    from pyvmm.oci.limits import Limits

FORMAT = 3  # raise it whenever the same image would give other bytes
_BLOCK = 4096


def base_disk(
    image: Image,
    size: int,
    *,
    limits: Limits | None = None,
    progress: Callable[[str], object] | None = None,
) -> str:
    """Return the path of the ext4 disk that holds ``image``, made now if it is not there yet.

    ``size`` is the disk's in bytes, rounded down to whole 4 KiB blocks; the file is sparse. The
    same image and size give the same bytes. Processes that want the same disk at once make it once.
    ``limits`` are of the image, where they are not the default; ``progress`` is called with a line
    for each step. Raises ImageError for a damaged image or one beyond its limits, and DiskError if
    it does not fit or the host's disk cannot be written.
    """
    size -= size % _BLOCK
    name = f"{image.digest.replace(':', '-')}-{size}-v{FORMAT}.ext4"
    path = os.path.join(cache_dir("disks"), name)
    if not _is_whole(path, size):
        from pyvmm.disk_cache import note_checksum  # here: a cached disk needs none of it
        from pyvmm.disk_writer import write
        from pyvmm.oci.limits import Limits

        def make(part: str) -> None:
            write(image, size, part, limits or Limits(), progress or (lambda _: None))
            note_checksum(part, path)

        try:
            _make_once(path, size, make)
        except OSError as error:
            raise DiskError(f"{path}: cannot be made: {error.strerror or error}") from None
    return path


def _is_whole(path: str, size: int) -> bool:
    try:
        return os.stat(path).st_size == size
    except FileNotFoundError:
        return False


def _make_once(path: str, size: int, make: Callable[[str], None]) -> None:
    """Let one process at a time make a part file, which becomes ``path`` when it is complete.

    A process that is killed leaves its part file without a lock, and the next one takes it over.
    """
    part = f"{path}.part"
    while not _is_whole(path, size):
        with open(part, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not is_file_at(file.fileno(), part):  # whom we waited for renamed or removed it
                continue
            try:
                if not _is_whole(path, size):
                    make(part)
                    os.fsync(file.fileno())
                    os.rename(part, path)
                    os.fchmod(file.fileno(), 0o444)  # now: what stays behind is taken over
            finally:
                if is_file_at(file.fileno(), part):
                    os.unlink(part)
                fcntl.flock(file, fcntl.LOCK_UN)  # a child forked meanwhile has the file open, too
