"""Platforms, and which of an index's entries is for one (image-spec image-index.md)."""

from __future__ import annotations

from pyvmm.errors import UsageError
from pyvmm.record import Record

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from pyvmm.oci.fields import Fields

# What an absent variant means.
_BASIC = {"amd64": "v1", "arm": "v7", "arm64": "v8"}


class Platform(Record):
    """What a program needs to run on, in Go's words: ``linux``, ``amd64``, ``v2``."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    def __str__(self) -> str:
        variant = f"/{self.variant}" if self.variant else ""
        return f"{self.os or '?'}/{self.architecture or '?'}{variant}"

    def runs(self, other: Platform) -> int:
        """How well an image for ``other`` suits this platform: 0 not at all, more is better.

        Variants are levels, each of which runs what is below it: ``v3`` runs an image for ``v2``.
        """
        if (self.os, self.architecture) != (other.os, other.architecture):
            return 0
        ours, theirs = (each.variant or _BASIC.get(each.architecture, "") for each in (self, other))
        if ours == theirs:
            return 1 << 16
        ours, theirs = ours.removeprefix("v"), theirs.removeprefix("v")
        if not (ours + theirs).isascii() or not ours.isdecimal() or not theirs.isdecimal():
            return 0
        return int(theirs[:4]) if int(theirs[:4]) < int(ours[:4]) else 0


def parse_platform(text: str) -> Platform:
    """A platform from ``os/architecture[/variant]``. Raises UsageError."""
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(f"platform {text!r}: write it as linux/amd64 or linux/amd64/v3")
    return Platform(*parts)


def platform_of(entry: Fields) -> Platform | None:
    """The platform that a descriptor names; None if it names none."""
    fields = entry.object("platform")
    found = Platform(fields.text("os"), fields.text("architecture"), fields.text("variant"))
    return found if found.os and found.architecture else None


def suitable(entries: list[Fields], platform: Platform) -> list[Fields]:
    """The entries of an index that may lead to an image for ``platform``, the best first.

    Of equals the first comes first (image-index.md). Those without a platform are last: what they
    lead to tells.
    """
    ranked = []
    for entry in entries:
        offered = platform_of(entry)
        rank = platform.runs(offered) if offered else -1
        if rank:
            ranked.append((-rank, entry))
    ranked.sort(key=lambda pair: pair[0])
    return [entry for _, entry in ranked]
