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
from pyvmm.oci.stream import uncompressed


def write(image: Image, size: int, path: str, progress: Callable[[str], object]) -> None:
    """Make the file ``path`` the ext4 disk of ``image``. Raises ImageError and DiskError."""
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
