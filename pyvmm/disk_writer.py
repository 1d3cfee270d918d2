"""An image written as ext4: its layers streamed through pyvmm._ext4 (rootfs/)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from threading import Thread
from typing import Any

from pyvmm._ext4 import ffi, lib
from pyvmm.errors import DiskError, ImageError
from pyvmm.oci import Image, Layer
from pyvmm.oci.limits import Limits
from pyvmm.oci.stream import uncompressed


def write(
    image: Image, size: int, path: str, limits: Limits, progress: Callable[[str], object]
) -> None:
    """Make the file ``path`` the ext4 disk of ``image``, for good. Raises ImageError, DiskError."""
    os.truncate(path, 0)
    os.truncate(path, size)
    made = lib.ext4_create(os.fsencode(path), size, limits.entries, limits.path)
    if made == ffi.NULL:
        raise MemoryError
    # Freed by whoever lets go of it last: a signal may end this while the consumer is at work.
    writer = ffi.gc(made, lib.ext4_free)
    total = 0
    _check(writer, lib.ext4_status(writer), size)
    for number, layer in enumerate(image.layers, 1):
        progress(f"layer {number} of {len(image.layers)}: {layer.digest}")
        total += _merge(writer, layer, size, limits, total)
    progress("writing the filesystem")
    _check(writer, lib.ext4_finish(writer), size)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _merge(writer: Any, layer: Layer, size: int, limits: Limits, before: int) -> int:
    """Decompress in this thread, hash in two more (stream.py), parse and write in a fourth.

    Returns the length of the layer's tar stream.
    """
    sender, receiver = socket.socketpair()
    for end in sender, receiver:
        end.setblocking(True)  # whatever socket.setdefaulttimeout() says
    status: list[int] = []
    total = 0

    # Shut down, not only closed: a child that another thread forks meanwhile has the ends, too.
    def consume() -> None:
        with receiver:
            status.append(lib.ext4_layer(writer, receiver.fileno()))
            receiver.shutdown(socket.SHUT_RDWR)

    consumer = Thread(target=consume, name="pyvmm-layer", daemon=True)
    with sender:
        consumer.start()
        try:
            for piece in uncompressed(layer, limits, before):
                total += len(piece)
                try:
                    sender.sendall(piece, socket.MSG_NOSIGNAL)
                except ConnectionError:
                    # The consumer gave up, and its status says why; unless the layer is damaged,
                    # which the rest of the stream will tell.
                    pass
        finally:
            sender.shutdown(socket.SHUT_WR)
            consumer.join()
    _check(writer, status[0], size, f"layer {layer.digest}: ")
    return total


def _check(writer: Any, status: int, size: int, where: str = "") -> None:
    if status == lib.EXT4_OK:
        return
    text = ffi.string(lib.ext4_error(writer)).decode(errors="backslashreplace")
    if status == lib.EXT4_IMAGE:
        raise ImageError(f"{where}{text}")
    if status == lib.EXT4_SPACE:
        raise DiskError(
            f"disk too small for the image: {_mib(size)}, {_mib(lib.ext4_needed(writer))} would do"
        )
    raise DiskError(text)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):g} MiB"
