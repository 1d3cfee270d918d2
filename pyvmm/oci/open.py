"""Opens an image by its reference, wherever it is."""

from __future__ import annotations

import os

from pyvmm.errors import ImageError
from pyvmm.oci.blob import DamagedError
from pyvmm.oci.fields import Fields
from pyvmm.oci.image import Image
from pyvmm.oci.layout import open_entry, open_layout
from pyvmm.oci.limits import DEFAULT, Limits
from pyvmm.oci.platform import Platform
from pyvmm.oci.reference import REGISTRY, Reference, parse_reference
from pyvmm.oci.source import Archive, Directory, Source

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from pyvmm.oci.store import Name, Store

    T = TypeVar("T")

_HERE = Platform()


class _Stored(Directory):
    """An image of the store; messages name it by its reference."""

    def __init__(self, store: Store, name: Name, limits: Limits) -> None:
        super().__init__(store.path, limits)
        self.name = name.reference


def open_image(
    image: str | os.PathLike[str],
    *,
    platform: Platform = _HERE,
    pull: str = "missing",
    limits: Limits = DEFAULT,
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
    if reference.transport != REGISTRY:
        return _open_file(reference, platform, limits)
    from pyvmm.oci.store import Store  # here: a file's image needs none of it

    store = Store()
    name = store.find(str(reference)) if pull != "always" else None
    if name:
        try:
            return open_name(store, name, platform, limits)
        except DamagedError as error:  # or only another platform's blobs are here
            if pull == "never":
                raise
            store.remove(error.digest)
    elif pull == "never":
        raise ImageError(f"{reference}: not in the store; get it by `pyvmm image pull`")
    from pyvmm.oci.pull import pull as fetch
    from pyvmm.progress import display

    with display(progress or (lambda _: None), bars) as shown:
        shown.line(f"pulling {reference}")  # which a mistyped path may have been taken for
        name = fetch(reference, platform, store, shown, limits)
    return open_name(store, name, platform, limits)


def with_image(opened: Callable[[], Image], use: Callable[[Image], T]) -> T:
    """Call ``use`` with an image that ``opened`` gives, close it, and return what came out.

    If it turns out then that a blob of the store is damaged or missing, all is done once more, for
    each such blob: ``opened`` fetches what is not there.
    """
    seen = set()
    while True:
        with opened() as image:
            try:
                return use(image)
            except DamagedError as error:
                if not isinstance(image.source, _Stored) or error.digest in seen:
                    raise
                seen.add(error.digest)
                from pyvmm.oci.store import Store

                Store().remove(error.digest)


def open_name(
    store: Store, name: Name, platform: Platform = _HERE, limits: Limits = DEFAULT
) -> Image:
    """An image of the store. Raises ImageError, DamagedError where a pull may help."""
    entry = {"digest": name.digest, "size": name.size, "mediaType": name.media_type}
    return open_entry(_Stored(store, name, limits), Fields(entry, name.reference), platform)


def _open_file(reference: Reference, platform: Platform, limits: Limits) -> Image:
    path, name, transport = reference.path, reference.name, reference.transport
    if transport == "dir":
        return _open_dir(path, platform, limits)
    is_directory = transport == "oci" or (transport == "path" and os.path.isdir(path))
    source: Source = Directory(path, limits) if is_directory else Archive(path, limits)
    if transport in ("oci", "oci-archive") or (transport == "path" and source.find("index.json")):
        return open_layout(source, name, platform)
    if not source.find("manifest.json"):
        if transport == "docker-archive":
            raise ImageError(f"{path}: not a docker-save archive: it has no manifest.json")
        raise ImageError(
            f"{path}: not an OCI layout or a docker-save archive: it has neither index.json nor "
            "manifest.json"
        )
    if is_directory and source.find("version"):
        return _open_dir(path, platform, limits)
    from pyvmm.oci.docker import open_docker_archive

    return open_docker_archive(source, name, platform)


def _open_dir(path: str, platform: Platform, limits: Limits) -> Image:
    from pyvmm.oci.dir import open_dir

    return open_dir(path, platform, limits)
