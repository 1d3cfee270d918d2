"""Opens an image by its path, whatever its kind."""

from __future__ import annotations

import os

from pyvmm.errors import ImageError
from pyvmm.oci.image import Image
from pyvmm.oci.layout import open_layout
from pyvmm.oci.source import Archive, Directory, Source


def open_image(path: str | os.PathLike[str], *, arch: str = "amd64") -> Image:
    """Open the image at ``path``, which may have ``:NAME`` at its end to choose one of several.

    ``path`` is an OCI layout directory, a tar archive of one, or a ``docker save`` archive;
    ``arch`` is a Go architecture name. Manifests and configuration are verified here, layers when
    they are read. Raises ImageError, with one line that names what is wrong.
    """
    place, ref = _split(os.fspath(path))
    try:
        source: Source = Directory(place) if os.path.isdir(place) else Archive(place)
    except OSError as error:
        raise ImageError(f"{place}: cannot be read: {error.strerror}") from None
    if source.find("index.json"):
        return open_layout(source, ref, arch)
    if source.find("manifest.json"):
        from pyvmm.oci.docker import open_docker_archive

        return open_docker_archive(source, ref, arch)
    raise ImageError(
        f"{place}: not an OCI layout or a docker-save archive: it has neither index.json nor "
        "manifest.json"
    )


def _split(path: str) -> tuple[str, str]:
    """A file of the whole name comes first: a colon may be part of it."""
    candidates = [(path, "")]
    candidates += [
        (path[:i], path[i + 1 :]) for i, char in enumerate(path) if char == ":" and i > 0
    ]
    for place, ref in candidates:
        if os.path.isdir(place) or os.path.isfile(place):
            return place, ref
    raise ImageError(f"{path}: no such image")
