"""Decompression: gzip by isal, zstd by the standard library's or its backport."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

_PIECE = 256 << 10  # stays in the caches between decompressor, hash and socket
_GZIP = b"\x1f\x8b"  # RFC 1952 §2.3.1
_ZSTD = b"\x28\xb5\x2f\xfd"  # RFC 8878 §3.1.1
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # §3.1.2, after a byte of 0x50 to 0x5f
_MAGIC_LENGTH = 4
_MEMBERS_MAX = 300_000  # of a stream; tools that make layers seekable have one for each file


class _Decompressor(Protocol):
    """Of one gzip member or one zstd frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class Malformed(Exception):
    """Not what a decompressor takes."""


def decompressed(raw: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces of ``raw``, uncompressed if they are gzip or zstd, of several members too.

    Raises Malformed.
    """
    data = _start(raw, b"")
    kind = kind_of(data)
    if not kind:
        yield data
        yield from raw
        return
    make, library_error = _library(kind)
    # As gzip(1) and pigz(1) have it, what follows a member and is none is nothing.
    count = 0
    while kind_of(data) == kind:
        count += 1
        if count > _MEMBERS_MAX:
            raise Malformed(f"it has more than {_MEMBERS_MAX} parts")
        member = make()
        try:
            while not member.eof:
                if piece := member.decompress(data, _PIECE):
                    yield piece
                data = b""
                if member.needs_input and not (member.eof or (data := next(raw, b""))):
                    raise Malformed("it is truncated")
        except library_error as error:
            raise Malformed(str(error)) from None
        data = _start(raw, member.unused_data)


def _start(raw: Iterator[bytes], data: bytes) -> bytes:
    """``data`` with what follows it, until that is enough to see what it is."""
    while len(data) < _MAGIC_LENGTH and (more := next(raw, b"")):
        data += more
    return data


def kind_of(start: bytes) -> str:
    """``gzip``, ``zstd`` or "", by the first four bytes."""
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
