"""Opens an image by its reference, wherever it is."""

from __future__ import annotations

import os

from pyvmm.errors import ImageError
from pyvmm.oci.blob import DamagedError
from pyvmm.oci.fields import Fields
from pyvmm.oci.image import Image
from pyvmm.oci.layout import open_entry, open_layout
from pyvmm.oci.platform import Platform
from pyvmm.oci.reference import REGISTRY, Reference, parse_reference
from pyvmm.oci.source import Archive, Directory, Source
from pyvmm.oci.store import Name, Store

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

_HERE = Platform()


def open_image(
    image: str | os.PathLike[str],
    *,
    platform: Platform = _HERE,
    pull: str = "missing",
    progress: Callable[[str], object] | None = None,
    bars: bool = False,
) -> Image:
    """Open an image by its reference (reference.py); a PathLike is a path.

    An image of a registry is pulled into the store when it is ``"missing"`` there, ``"always"`` or
    ``"never"``; ``progress`` is called with a line when something takes long, but ``bars`` shows
    pulls on stderr if that is a terminal. Manifests and configuration are verified here, layers
    when they are read. Raises ImageError, with one line that names what is wrong.
    """
    reference = parse_reference(image)
    if reference.transport == REGISTRY:
        return _open_pulled(reference, platform, pull, progress, bars)
    return _open_file(reference, platform)


def with_image(
    image: str | os.PathLike[str],
    use: Callable[[Image], T],
    *,
    platform: Platform = _HERE,
    pull: str = "missing",
    progress: Callable[[str], object] | None = None,
    bars: bool = False,
) -> T:
    """Open an image as open_image() does, and return what ``use`` makes of it.

    If it turns out then that the store has a damaged blob, that is fetched again, and ``use``
    called again.
    """
    try:
        with open_image(
            image, platform=platform, pull=pull, progress=progress, bars=bars
        ) as opened:
            return use(opened)
    except DamagedError as error:
        if parse_reference(image).transport != REGISTRY or pull == "never":
            raise
        Store().remove(error.digest)
    with open_image(image, platform=platform, progress=progress, bars=bars) as opened:
        return use(opened)


def _open_pulled(
    reference: Reference,
    platform: Platform,
    pull: str,
    progress: Callable[[str], object] | None,
    bars: bool,
) -> Image:
    store = Store()
    name = store.find(str(reference)) if pull != "always" else None
    if name:
        try:
            return open_name(store, name, platform)
        except DamagedError as error:  # or of another platform, and its blobs are not here
            if pull == "never":
                raise
            store.remove(error.digest)
    elif pull == "never":
        raise ImageError(f"{reference}: not in the store; get it by `pyvmm image pull`")
    from pyvmm.oci.pull import pull as fetch
    from pyvmm.progress import display

    with display(progress or (lambda _: None), bars) as shown:
        name = fetch(reference, platform, store, shown)
    return open_name(store, name, platform)


def open_name(store: Store, name: Name, platform: Platform = _HERE) -> Image:
    """An image of the store. Raises ImageError, DamagedError where a pull may help."""
    entry = {"digest": name.digest, "size": name.size, "mediaType": name.media_type}
    return open_entry(store.source(), Fields(entry, name.reference), platform)


def _open_file(reference: Reference, platform: Platform) -> Image:
    path, name, transport = reference.path, reference.name, reference.transport
    try:
        if transport == "dir":
            return _open_dir(path, platform)
        wants_directory = transport == "oci" or (transport == "path" and os.path.isdir(path))
        source: Source = Directory(path) if wants_directory else Archive(path)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from None
    if transport in ("oci", "oci-archive") or (transport == "path" and source.find("index.json")):
        return open_layout(source, name, platform)
    if not source.find("manifest.json"):
        if transport == "docker-archive":
            raise ImageError(f"{path}: not a docker-save archive: it has no manifest.json")
        raise ImageError(
            f"{path}: not an OCI layout or a docker-save archive: it has neither index.json nor "
            "manifest.json"
        )
    if wants_directory and source.find("version"):
        return _open_dir(path, platform)
    from pyvmm.oci.docker import open_docker_archive

    return open_docker_archive(source, name, platform)


def _open_dir(path: str, platform: Platform) -> Image:
    from pyvmm.oci.dir import open_dir

    return open_dir(path, platform)
