"""A layer's uncompressed stream, verified as it flows."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from queue import Queue
from threading import Thread
from typing import Any, BinaryIO, Protocol

from pyvmm.errors import ImageError
from pyvmm.oci.blob import DamagedError
from pyvmm.oci.image import Layer
from pyvmm.oci.limits import RATIO_FREE, Limits

_READ = 128 << 10
_PIECE = 256 << 10  # stays in the caches between decompressor, hash and socket
_AHEAD = 16  # pieces that the hashing may lag behind
_GZIP = b"\x1f\x8b"  # RFC 1952 §2.3.1
_ZSTD = b"\x28\xb5\x2f\xfd"  # RFC 8878 §3.1.1
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # §3.1.2, after a byte of 0x50 to 0x5f
_MAGIC_LENGTH = 4


class _Decompressor(Protocol):
    """Of one gzip member or one zstd frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


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
                for piece in _limited(_decompressed(raw), layer, limits, before):
                    stream.update(piece)
                    yield piece
            except _Malformed as error:
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


class _Malformed(Exception):
    """Not what a decompressor takes."""


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


def _decompressed(raw: Iterator[bytes]) -> Iterator[bytes]:
    data = _start(raw, b"")
    kind = _kind(data)
    if not kind:
        yield data
        yield from raw
        return
    make, library_error = _library(kind)
    # As gzip(1) and pigz(1) have it, what follows a member and is none is nothing.
    while _kind(data) == kind:
        member = make()
        try:
            while not member.eof:
                if piece := member.decompress(data, _PIECE):
                    yield piece
                data = b""
                if member.needs_input and not (member.eof or (data := next(raw, b""))):
                    raise _Malformed("it is truncated")
        except library_error as error:
            raise _Malformed(str(error)) from None
        data = _start(raw, member.unused_data)


def _start(raw: Iterator[bytes], data: bytes) -> bytes:
    """``data`` with what follows it, until that is enough to see what it is."""
    while len(data) < _MAGIC_LENGTH and (more := next(raw, b"")):
        data += more
    return data


def _kind(start: bytes) -> str:
    if start.startswith(_GZIP):
        return "gzip"
    if start.startswith(_ZSTD) or (start[1:4] == _ZSTD_SKIPPABLE and start[0] >> 4 == 5):
        return "zstd"
    return ""


def _library(kind: str) -> tuple[Callable[[], _Decompressor], Any]:
    """What makes decompressors of a kind, and the exception that they raise."""
    if kind == "gzip":
        from isal import igzip_lib  # twice as fast as zlib

        return lambda: igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP), igzip_lib.IsalError
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    return zstd.ZstdDecompressor, zstd.ZstdError


def _limited(pieces: Iterator[bytes], layer: Layer, limits: Limits, before: int) -> Iterator[bytes]:
    total = 0
    most = max(RATIO_FREE, limits.ratio * layer.size)
    for piece in pieces:
        total += len(piece)
        if total > most:
            raise ImageError(
                f"layer {layer.digest}: more than {limits.ratio} times as large uncompressed "
                "(--image-limit ratio=…)"
            )
        if before + total > limits.size:
            raise ImageError(
                f"layer {layer.digest}: with it the image has more than {limits.size} bytes "
                "(--image-limit size=…)"
            )
        yield piece
