"""Skopeo's ``dir:``: a manifest and blobs side by side, named by their digests (no standard)."""

from __future__ import annotations

from pyvmm.errors import ImageError
from pyvmm.oci.blob import Blob, new_hash
from pyvmm.oci.fields import Fields
from pyvmm.oci.image import Image
from pyvmm.oci.layout import open_entry
from pyvmm.oci.limits import Limits
from pyvmm.oci.platform import Platform
from pyvmm.oci.source import Directory

_MANIFEST = "manifest.json"


def open_dir(path: str, platform: Platform, limits: Limits) -> Image:
    """The image of the directory for ``platform``."""
    directory = Directory(path, limits)
    found = directory.find(_MANIFEST)
    if not found:
        raise ImageError(f"{path}: not an image that skopeo copied: it has no {_MANIFEST}")
    hasher = new_hash("sha256", found.size)
    hasher.update(directory.read(found))
    digest = hasher.hexdigest()
    entry = Fields({"digest": f"sha256:{digest}", "size": found.size}, path)
    return open_entry(_Copy(path, limits, digest), entry, platform)


class _Copy(Directory):
    """Finds by a layout's names. ``root`` has the hexadecimal digits of manifest.json's digest."""

    def __init__(self, path: str, limits: Limits, root: str) -> None:
        super().__init__(path, limits)
        self._root = root

    def find(self, name: str) -> Blob | None:
        digits = name.rpartition("/")[2]
        if digits == self._root:
            return super().find(_MANIFEST)
        # The manifests that an index lists have names of their own.
        return super().find(digits) or super().find(f"{digits}.{_MANIFEST}")
