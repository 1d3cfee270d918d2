"""LZ4 in its legacy frame, as Linux's bzImages use it (the LZ4 block and frame format documents).

In Python, because it runs once per kernel (two seconds for Debian's 53 MB) and so needs nothing
installed.
"""

from __future__ import annotations

MAGIC = b"\x02\x21\x4c\x18"


def decompress(data: bytes) -> bytes:
    """Unpack a legacy frame: blocks of 32-bit length and content, until the data or sense ends.

    What follows the last block is ignored: a bzImage ends with its unpacked size.
    Raises ValueError or IndexError for what is not LZ4.
    """
    if data[:4] != MAGIC:
        raise ValueError("not a legacy LZ4 frame")
    blocks = []
    pos = 4
    while pos + 4 < len(data):
        length = int.from_bytes(data[pos : pos + 4], "little")
        pos += 4
        if length > len(data) - pos:
            raise ValueError("cut short")
        blocks.append(_block(data[pos : pos + length]))
        pos += length
    return b"".join(blocks)


def _block(src: bytes) -> bytearray:
    """Unpack one block: sequences of (token, literals, 16-bit distance back, match)."""
    out = bytearray()
    pos = 0
    end = len(src)
    while pos < end:
        token = src[pos]
        pos += 1
        length = token >> 4
        if length == 15:
            while (more := src[pos]) == 255:
                length += 255
                pos += 1
            length += more
            pos += 1
        out += src[pos : pos + length]
        pos += length
        if pos >= end:  # the last sequence has no match
            break
        distance = src[pos] | src[pos + 1] << 8
        pos += 2
        length = (token & 15) + 4
        if length == 19:
            while (more := src[pos]) == 255:
                length += 255
                pos += 1
            length += more
            pos += 1
        start = len(out) - distance
        if start < 0 or not distance:
            raise ValueError("a match before the start")
        match = out[start : start + length]
        if distance < length:  # the match overlaps what it makes: a repeated pattern
            match = (match * (length // distance + 1))[:length]
        out += match
    return out
