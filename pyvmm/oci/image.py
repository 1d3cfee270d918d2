"""What an image is, once it has been found and checked."""

from __future__ import annotations

import os

from pyvmm.errors import ImageError
from pyvmm.oci.blob import Blob, DamagedError
from pyvmm.oci.platform import Platform
from pyvmm.oci.source import Source
from pyvmm.record import Record

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from typing import BinaryIO


class ImageConfig(Record):
    """How the image wants its program run (image-spec config.md, "config")."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    stop_signal: str = ""


class Layer(Record):
    """One layer: a tar stream, usually compressed.

    ``digest`` and ``size`` (bytes) are the blob's, ``diff_id`` is the digest of the uncompressed
    stream. In a ``docker save`` archive the blob has no digest of its own: it is the diff_id.
    """

    digest: str
    size: int
    media_type: str
    diff_id: str
    blob: Blob

    def open(self) -> BinaryIO:
        """The file that holds the blob, at its start. DamagedError if it is no longer there."""
        try:
            return self.blob.open()
        except ImageError as error:
            if os.path.exists(self.blob.path):
                raise
            raise DamagedError(str(error), self.digest) from None

    def verify(self) -> None:
        """Read the blob, which has a digest of its own, and compare. Raises DamagedError."""
        self.blob.verify(self.digest)


class Image(Record):
    """An image for one platform.

    ``digest`` is its manifest's; of a ``docker save`` archive, which has none, its configuration's.
    Either covers configuration and layers.
    """

    digest: str
    config: ImageConfig
    layers: tuple[Layer, ...]
    platform: Platform
    source: Source

    def check(self) -> None:
        most = self.source.limits.layers
        if len(self.layers) > most:
            raise ImageError(
                f"{self.source.name}: {len(self.layers)} layers, more than {most} "
                "(--image-limit layers=…)"
            )

    def close(self) -> None:
        """Let go of the image; layers cannot be opened then."""
        self.source.close()

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
