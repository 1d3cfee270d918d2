"""The vmlinux inside a bzImage (Linux's Documentation/arch/x86/boot.rst, the setup header)."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable

from pyvmm.errors import KernelError

_SETUP_SECTS = 0x1F1  # 512-byte sectors of real-mode code after the first; 0 means 4
_MAGIC = 0x202  # "HdrS", then the protocol's version
_PAYLOAD = 0x248  # u32 offset from the protected-mode code, u32 length
_HEADER_END = 0x250
_PROTOCOL_2_08 = 0x208  # the first that tells where the payload is


def is_bzimage(head: bytes) -> bool:
    """Tell a bzImage by the first 0x250 bytes of the file."""
    return head[_MAGIC : _MAGIC + 4] == b"HdrS"


def unpack(data: bytes) -> bytes:
    """Return the ELF vmlinux that the bzImage carries.

    Raises KernelError: too old a boot protocol, an unknown or damaged compression.
    """
    if len(data) < _HEADER_END:
        raise KernelError("bzImage is cut short")
    (protocol,) = struct.unpack_from("<H", data, _MAGIC + 4)
    if protocol < _PROTOCOL_2_08:
        version = f"{protocol >> 8}.{protocol & 0xFF:02}"
        raise KernelError(f"bzImage has boot protocol {version}; 2.08 is the oldest known")
    offset, length = struct.unpack_from("<II", data, _PAYLOAD)
    start = ((data[_SETUP_SECTS] or 4) + 1) * 512 + offset
    payload = data[start : start + length]
    if len(payload) < length or not length:
        raise KernelError("bzImage is cut short")
    known = (format for format in _FORMATS if payload.startswith(format[0]))
    _, name, decompress = next(known, (b"", "", None))
    if decompress is None:
        raise KernelError(f"bzImage has an unknown compression ({payload[:4].hex()})")
    try:
        vmlinux = decompress(payload)
    except KernelError:
        raise
    except Exception as error:  # each decompressor has its own
        raise KernelError(f"bzImage has damaged {name} data: {error}") from error
    # Linux's build appends the unpacked size, except to gzip, whose format ends with it anyway.
    if len(vmlinux) != int.from_bytes(payload[-4:], "little"):
        raise KernelError(f"bzImage has damaged {name} data: it ends too early")
    return vmlinux


# Objects instead of functions where those would take the appended size for a second stream.


def _gzip(data: bytes) -> bytes:
    import zlib

    return zlib.decompress(data, wbits=31)


def _xz(data: bytes) -> bytes:
    import lzma

    return lzma.LZMADecompressor().decompress(data)


def _bzip2(data: bytes) -> bytes:
    import bz2

    return bz2.BZ2Decompressor().decompress(data)


def _zstd(data: bytes) -> bytes:
    for module in ("compression.zstd", "backports.zstd"):  # the first is Python 3.14's own
        try:
            zstd = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            pass
    else:
        raise KernelError("this bzImage needs zstd: pip install backports.zstd")
    unpacked: bytes = zstd.ZstdDecompressor().decompress(data)
    return unpacked


def _lz4(data: bytes) -> bytes:
    from pyvmm.kernel import lz4

    return lz4.decompress(data)


_FORMATS: tuple[tuple[bytes, str, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"\x5d\0\0", "lzma", _xz),
    (b"BZh", "bzip2", _bzip2),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\x02\x21\x4c\x18", "lz4", _lz4),
)
