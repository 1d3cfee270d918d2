"""How much an image may ask of this host."""

from __future__ import annotations

from pyvmm.errors import ImageError, UsageError
from pyvmm.record import Record

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Mapping


class Limits(Record):
    """Bounds that a hostile image meets, each with an ImageError that names it.

    The defaults are beyond what real images need; ``--image-limit NAME=VALUE`` sets one.
    """

    size: int = 64 << 30
    """bytes of all layers, uncompressed"""
    ratio: int = 200
    """uncompressed bytes for each compressed one, from `RATIO_FREE` on"""
    layers: int = 500
    entries: int = 3 << 20
    """names in the merged image; each takes some 250 bytes of memory while the disk is made, and as
    much on average for its link target, extended attributes and list of extents"""
    path: int = 4095
    """bytes of a path; more than 4095 is nothing that Linux could open"""
    config: int = 8 << 20
    """bytes of each JSON document"""

    def check(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < 1 << 62:
                raise UsageError(f"image limit {name}={value}: must be more than 0")
        for name in ("path", "entries", "config"):
            value, most = getattr(self, name), getattr(Limits, name)
            if value > most:
                raise UsageError(f"image limit {name}={value}: at most {most}")

    def check_growth(self, name: str, packed: int, unpacked: int) -> None:
        """Raise ImageError for what is too large for its compressed size (both in bytes)."""
        if unpacked > max(RATIO_FREE, self.ratio * packed):
            raise ImageError(
                f"{name}: more than {self.ratio} times as large uncompressed "
                "(--image-limit ratio=…)"
            )


DEFAULT = Limits()
RATIO_FREE = 64 << 20  # bytes: a layer up to this size may be all zeros


def parse_limits(values: Mapping[str, int | str]) -> Limits:
    """Limits from numbers or sizes by their names, as ``{"size": "4G", "entries": 100_000}``."""
    known = vars(Limits())
    checked = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"no image limit {name!r}: there are {', '.join(known)}")
        text = str(value).strip().upper()
        unit = "KMGT".find(text[-1:]) + 1 if text else 0
        digits = text[:-1] if unit else text
        if not (digits.isascii() and digits.isdecimal()):
            raise UsageError(f"image limit {name}={value}: write a number, or a size as 4G")
        checked[name] = int(digits) << 10 * unit
    return Limits(**checked)
