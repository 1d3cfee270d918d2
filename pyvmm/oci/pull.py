"""Pulling: an image from a registry into the store."""

from __future__ import annotations

import hashlib
import os
from threading import Event
from time import time

from pyvmm.errors import ImageError
from pyvmm.oci.blob import Blob, DamagedError
from pyvmm.oci.download import CONNECTIONS, Downloads, Progress
from pyvmm.oci.fields import Fields, parse
from pyvmm.oci.image import Image
from pyvmm.oci.layout import open_entry
from pyvmm.oci.limits import DEFAULT, Limits
from pyvmm.oci.platform import Platform
from pyvmm.oci.reference import Reference
from pyvmm.oci.registry import Manifest, Registry
from pyvmm.oci.retry import Retries
from pyvmm.oci.source import Source
from pyvmm.oci.store import Name, Store

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def pull(
    reference: Reference,
    platform: Platform,
    store: Store,
    progress: Progress,
    limits: Limits = DEFAULT,
) -> Name:
    """Bring the image of ``reference`` for ``platform`` into the store, and name it there.

    Blobs that are there are not fetched. Raises ImageError.
    """
    registry = Registry(reference, CONNECTIONS)
    retries = Retries(Event(), progress.line)
    with store.lock():
        found = retries.run(lambda: registry.manifest(reference.digest or reference.tag))
        name = _named(reference, found)
        _keep(store, name.digest, found.data)
        documents = _Documents(name.reference, registry, retries, store, progress)
        documents.limits = limits
        entry = Fields({"digest": name.digest, "size": name.size}, name.reference)
        image = _open(documents, entry, platform, store)
        size = sum(layer.size for layer in image.layers)
        if size > limits.size:
            raise ImageError(
                f"{reference}: its layers have {size} bytes, more than {limits.size} "
                "(--image-limit size=…)"
            )
        wanted = {layer.digest: layer.size for layer in image.layers}
        Downloads(registry, store, wanted, progress).run()
        store.name(name)
    return name


def _open(documents: _Documents, entry: Fields, platform: Platform, store: Store) -> Image:
    """The image, once each damaged document that the store had was fetched again."""
    seen = set()
    while True:
        try:
            return open_entry(documents, entry, platform)
        except DamagedError as error:
            if error.digest in seen:
                raise
            seen.add(error.digest)
            store.remove(error.digest)


def _named(reference: Reference, found: Manifest) -> Name:
    """What the reference means, checked."""
    wanted = reference.digest or found.digest
    algorithm = wanted.partition(":")[0] or "sha256"
    digest = f"{algorithm}:{hashlib.new(algorithm, found.data).hexdigest()}"
    if wanted not in ("", digest):
        raise ImageError(
            f"{reference}: damaged on its way: it has the digest {digest}, not {wanted}"
        )
    fields = Fields(parse(found.data, str(reference)), str(reference))
    if "fsLayers" in fields:
        raise ImageError(
            f"{reference}: has a manifest of Docker's schema 1, from before 2017; push it again "
            "with a newer tool"
        )
    media_type = fields.text("mediaType") or found.media_type
    if not media_type.startswith("application/vnd."):
        media_type = _INDEX if "manifests" in fields else _MANIFEST
    return Name(str(reference), digest, len(found.data), media_type, int(time()))


def _keep(store: Store, digest: str, data: bytes) -> None:
    with store.receive(digest, len(data)) as incoming:
        if incoming.offset < len(data):
            incoming.restart()
            incoming.write(data)
        incoming.finish()


class _Documents(Source):
    """A repository, whose manifests, indexes and configurations are fetched as they are looked for.

    Of its layers only the size is known, so that an image is chosen and checked before they come.
    """

    def __init__(
        self, name: str, registry: Registry, retries: Retries, store: Store, progress: Progress
    ) -> None:
        self.name = name
        self._registry = registry
        self._retries = retries
        self._store = store
        self._progress = progress
        self._configurations: dict[str, int] = {}
        self._layers: dict[str, int] = {}

    def find(self, name: str) -> Blob | None:
        digest = name.removeprefix("blobs/").replace("/", ":", 1)
        if digest in self._configurations:  # registries keep these among the blobs
            blob = self._blob(digest, self._configurations[digest])
            self.check(blob)
            wanted = {digest: blob.size}
            Downloads(self._registry, self._store, wanted, self._progress).run()
            return blob
        if digest in self._layers:
            return self._blob(digest, self._layers[digest])
        path = self._store.blob_path(digest)
        if not os.path.exists(path):
            manifest = self._retries.run(lambda: self._registry.manifest(digest))
            _keep(self._store, digest, manifest.data)
        blob = self._blob(digest, os.stat(path).st_size)
        self.check(blob)
        self._note(Fields(parse(blob.read_verified(digest), blob.name), blob.name))
        return blob

    def _blob(self, digest: str, size: int) -> Blob:
        return Blob(f"{self.name}: {digest}", self._store.blob_path(digest), 0, size)

    def _note(self, document: Fields) -> None:
        """What a manifest leads to."""
        if "config" in document:
            config = document.object("config")
            self._configurations[config.text("digest")] = config.size("size")
        for layer in document.objects("layers"):
            self._layers[layer.text("digest")] = layer.size("size")
