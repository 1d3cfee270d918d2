"""Base disks: an image as one read-only ext4 file, made once and kept in the cache.

Layers are streamed into the filesystem by pyvmm._ext4 (rootfs/): the only file ever made on the
host is the disk.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

from pyvmm.cache import cache_dir
from pyvmm.errors import DiskError, ImageError
from pyvmm.oci import Image, Layer

FORMAT = 1  # raise it whenever the same image would give other bytes
_BLOCK = 4096


def base_disk(image: Image, size: int, *, progress: Callable[[str], object] | None = None) -> Path:
    """Return the path of the ext4 disk that holds ``image``, made now if it is not there yet.

    ``size`` is the disk's in bytes, rounded down to whole 4 KiB blocks; the file is sparse. The
    same image and size give the same bytes. Processes that want the same disk at once make it once.
    ``progress`` is called with a line for each step. Raises ImageError for a damaged image, and
    DiskError if it does not fit or the host's disk cannot be written.
    """
    size -= size % _BLOCK
    name = f"{image.digest.replace(':', '-')}-{size}-v{FORMAT}.ext4"
    path = cache_dir("disks") / name
    if not path.exists():
        try:
            _make_once(path, lambda part: _make(image, size, part, progress or (lambda _: None)))
        except OSError as error:
            raise DiskError(f"{path}: cannot be made: {error.strerror or error}") from None
    return path


def _make_once(path: Path, make: Callable[[Path], None]) -> None:
    """Let one process at a time make a part file, which becomes ``path`` when it is complete.

    A process that is killed leaves its part file without a lock, and the next one takes it over.
    """
    part = path.with_name(f"{path.name}.part")
    while not path.exists():
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_file_at(file.fileno(), part):  # whom we waited for renamed or removed it
                continue
            try:
                if not path.exists():
                    make(part)
                    os.fchmod(file.fileno(), 0o444)
                    os.fsync(file.fileno())
                    part.rename(path)
            finally:
                part.unlink(missing_ok=True)


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _make(image: Image, size: int, path: Path, progress: Callable[[str], object]) -> None:
    from pyvmm._ext4 import ffi, lib  # here: who finds the disk in the cache needs no C

    os.truncate(path, 0)
    os.truncate(path, size)
    writer = lib.ext4_create(os.fsencode(path), size)
    if writer == ffi.NULL:
        raise MemoryError
    try:
        _check(writer, lib.ext4_status(writer), size)
        for number, layer in enumerate(image.layers, 1):
            progress(f"layer {number} of {len(image.layers)}: {layer.digest}")
            _merge(writer, layer, size)
        progress("writing the filesystem")
        _check(writer, lib.ext4_finish(writer), size)
    finally:
        lib.ext4_free(writer)


def _merge(writer: Any, layer: Layer, size: int) -> None:
    """Decompress and hash in this thread, parse and write in another."""
    from pyvmm._ext4 import lib
    from pyvmm.oci.stream import uncompressed

    layer.verify()
    sender, receiver = socket.socketpair()
    for end in sender, receiver:
        end.setblocking(True)  # whatever socket.setdefaulttimeout() says
    status: list[int] = []

    def consume() -> None:
        with receiver:
            status.append(lib.ext4_layer(writer, receiver.fileno()))

    consumer = Thread(target=consume, name="pyvmm-layer")
    consumer.start()
    try:
        with sender:
            for piece in uncompressed(layer):
                sender.sendall(piece, socket.MSG_NOSIGNAL)
    except ConnectionError:
        pass  # the consumer gave up, and its status says why
    finally:
        consumer.join()
    _check(writer, status[0], size, f"layer {layer.digest}: ")


def _check(writer: Any, status: int, size: int, where: str = "") -> None:
    from pyvmm._ext4 import ffi, lib

    if status == lib.EXT4_OK:
        return
    text = ffi.string(lib.ext4_error(writer)).decode(errors="backslashreplace")
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    if status == lib.EXT4_IMAGE:
        raise ImageError(f"{where}{text}")
    if status == lib.EXT4_SPACE:
        raise DiskError(
            f"disk too small for the image: {_mib(size)}, {_mib(lib.ext4_needed(writer))} would do"
        )
    raise DiskError(text)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):g} MiB"
