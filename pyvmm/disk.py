"""Base disks: an image as one read-only ext4 file, made once and kept in the cache.

The disk is the only file ever made on the host: see disk_writer.py; disk_cache.py tidies up.
"""

from __future__ import annotations

import os

from pyvmm.cache import cache_dir, make_once, sweep
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
    it does not fit or the host's disk cannot be written. What killed runs left unfinished is
    removed.
    """
    sweep()
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
            make_once(path, lambda: _is_whole(path, size), make)
        except OSError as error:
            raise DiskError(f"{path}: cannot be made: {error.strerror or error}") from None
    return path


def _is_whole(path: str, size: int) -> bool:
    try:
        return os.stat(path).st_size == size
    except FileNotFoundError:
        return False
