"""Pulling: an image from a registry into the store."""

from __future__ import annotations

from typing import Protocol

from pyvmm.errors import ImageError
from pyvmm.oci.platform import Platform
from pyvmm.oci.reference import Reference
from pyvmm.oci.store import Name, Store


class Progress(Protocol):
    """What is told of a pull, always in the thread that called it. Sizes are in bytes."""

    def blob(self, digest: str, size: int, at: int) -> None:
        """A blob is fetched from the byte ``at`` on; again if it has to start anew."""

    def advance(self, digest: str, count: int) -> None:
        """``count`` more bytes of it are there."""

    def done(self, digest: str) -> None:
        """It is there and verified."""

    def line(self, text: str) -> None:
        """Something worth a line, such as that a server is asked again."""


def pull(reference: Reference, platform: Platform, store: Store, progress: Progress) -> Name:
    """Bring the image of ``reference`` for ``platform`` into the store, and name it there.

    Blobs that are there are not fetched. Raises ImageError.
    """
    raise ImageError(f"{reference}: pull is not there yet")
