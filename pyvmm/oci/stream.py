"""A layer's uncompressed stream, verified as it flows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from queue import Queue
from threading import Thread
from typing import BinaryIO

from pyvmm.errors import ImageError
from pyvmm.oci.blob import DamagedError
from pyvmm.oci.compression import Malformed, decompressed
from pyvmm.oci.image import Layer
from pyvmm.oci.limits import Limits

_READ = 128 << 10
_AHEAD = 16  # pieces that the hashing may lag behind


def uncompressed(layer: Layer, limits: Limits, before: int = 0) -> Iterator[bytes]:
    """Yield the tar stream of a layer (plain, gzip or zstd) in pieces.

    ``before`` is how many bytes the layers below it had. Raises DamagedError if the blob is not
    what its digest and size say; ImageError if it cannot be decompressed, grows beyond its limits
    or, at the end, was not what the image's configuration says (its ``diff_id``).
    """
    blob = _Hash(layer.digest)
    # A plain layer's stream is its blob; so it is in a docker-archive, where blobs have no digest.
    stream = _Hash(layer.diff_id) if layer.digest != layer.diff_id else blob
    hashes = {blob, stream}
    try:
        with layer.open() as file:
            raw = _read(file, layer, blob if blob is not stream else None)
            try:
                for piece in _limited(decompressed(raw), layer, limits, before):
                    stream.update(piece)
                    yield piece
            except Malformed as error:
                for _ in raw:  # what is damaged is said to be damaged
                    pass
                _compare(blob, layer)
                raise ImageError(f"layer {layer.digest}: cannot be decompressed: {error}") from None
            for _ in raw:
                pass
        _compare(blob, layer)
        if stream.end() != layer.diff_id:
            raise ImageError(  # the blob is right: fetched again, it would be no better
                f"layer {layer.digest}: its uncompressed contents are not {layer.diff_id}, "
                "as the image's configuration says"
            )
    finally:
        for each in hashes:
            each.end()


class _Hash:
    """Hashes in a thread of its own: that is as much work as decompressing."""

    def __init__(self, digest: str) -> None:
        self._algorithm = digest.partition(":")[0]
        self._hash = hashlib.new(self._algorithm)
        self._queue: Queue[bytes | None] = Queue(_AHEAD)
        self._thread = Thread(target=self._work, name="pyvmm-hash", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (piece := self._queue.get()) is not None:
            self._hash.update(piece)

    def update(self, piece: bytes) -> None:
        self._queue.put(piece)

    def end(self) -> str:
        """The digest of all that was put in."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        return f"{self._algorithm}:{self._hash.hexdigest()}"


def _compare(blob: _Hash, layer: Layer) -> None:
    found = blob.end()
    if found != layer.digest:
        raise DamagedError(
            f"{layer.blob.name}: damaged: its contents have the digest {found}", layer.digest
        )


def _read(file: BinaryIO, layer: Layer, blob: _Hash | None) -> Iterator[bytes]:
    left = layer.size
    while left:
        data = file.read(min(_READ, left))
        if not data:
            raise DamagedError(
                f"{layer.blob.name}: cut short: {layer.size - left} of {layer.size} bytes",
                layer.digest,
            )
        if blob:
            blob.update(data)
        left -= len(data)
        yield data


def _limited(pieces: Iterator[bytes], layer: Layer, limits: Limits, before: int) -> Iterator[bytes]:
    total = 0
    for piece in pieces:
        total += len(piece)
        limits.check_growth(f"layer {layer.digest}", layer.size, total)
        if before + total > limits.size:
            raise ImageError(
                f"layer {layer.digest}: with it the image has more than {limits.size} bytes "
                "(--image-limit size=…)"
            )
        yield piece
