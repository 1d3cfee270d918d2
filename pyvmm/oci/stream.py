"""A layer's uncompressed stream, verified as it flows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from pyvmm.errors import ImageError
from pyvmm.oci.image import Layer

_CHUNK = 1 << 20


def uncompressed(layer: Layer) -> Iterator[memoryview]:
    """Yield the tar stream of a layer in pieces, each valid until the next.

    Raises ImageError if the blob cannot be decompressed, or at the end if the stream is not what
    the image's configuration says (its ``diff_id``).
    """
    from pyvmm._ext4 import ffi, lib

    algorithm = layer.diff_id.partition(":")[0]
    hasher = hashlib.new(algorithm)
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    with layer.open() as file, ffi.from_buffer(buffer) as target:
        stream = lib.inflate_open(file.fileno(), layer.blob.offset, layer.size)
        if stream == ffi.NULL:
            raise MemoryError
        try:
            while (length := lib.inflate_read(stream, target, _CHUNK)) > 0:
                hasher.update(view[:length])
                yield view[:length]
            if length < 0:
                why = ffi.string(lib.inflate_error(stream)).decode(errors="replace")
                raise ImageError(f"layer {layer.digest}: cannot be decompressed: {why}")
        finally:
            lib.inflate_close(stream)
    if f"{algorithm}:{hasher.hexdigest()}" != layer.diff_id:
        raise ImageError(
            f"layer {layer.digest}: damaged: its uncompressed contents are not {layer.diff_id}; "
            "fetch the image again"
        )
