"""Pulling: an image from a registry into the store."""

from __future__ import annotations

import hashlib
import os
from threading import Event
from time import time

from pyvmm.errors import ImageError
from pyvmm.oci.blob import Blob, DamagedError, checked_digest
from pyvmm.oci.download import CONNECTIONS, Downloads, Progress, Wanted
from pyvmm.oci.fields import DOCUMENT_MAX, Fields, parse
from pyvmm.oci.layout import find_candidate
from pyvmm.oci.platform import Platform
from pyvmm.oci.reference import Reference
from pyvmm.oci.registry import Manifest, Registry
from pyvmm.oci.retry import Retries
from pyvmm.oci.source import Source
from pyvmm.oci.store import Name, Store

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def pull(reference: Reference, platform: Platform, store: Store, progress: Progress) -> Name:
    """Bring the image of ``reference`` for ``platform`` into the store, and name it there.

    Blobs that are there are not fetched. Raises ImageError.
    """
    registry = Registry(reference, CONNECTIONS)
    retries = Retries(Event(), progress.line)
    with store.lock():
        found = retries.run(lambda: registry.manifest(reference.digest or reference.tag))
        name = _named(reference, found)
        _keep(store, name.digest, found.data)
        documents = _Documents(str(reference), registry, retries, store, progress)
        entry = Fields({"digest": name.digest, "size": name.size}, name.reference)
        try:
            chosen = find_candidate(documents, entry, platform)
        except DamagedError as error:  # found in the store
            store.remove(error.digest)
            chosen = find_candidate(documents, entry, platform)
        Downloads(registry, store, _wanted(chosen.manifest.objects("layers")), progress).run()
        store.name(name)
    return name


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


def _wanted(descriptors: list[Fields]) -> list[Wanted]:
    """What descriptors point to, each blob once."""
    found: dict[str, Wanted] = {}
    for descriptor in descriptors:
        digest = checked_digest(descriptor.text("digest"), descriptor.where)
        found[digest] = Wanted(digest, descriptor.size("size"))
    return list(found.values())


def _keep(store: Store, digest: str, data: bytes) -> None:
    with store.receive(digest, len(data)) as incoming:
        if incoming.offset < len(data):
            incoming.restart()
            incoming.write(data)
        incoming.finish()


class _Documents(Source):
    """The manifests, indexes and configurations of a repository, fetched as they are looked for."""

    def __init__(
        self, name: str, registry: Registry, retries: Retries, store: Store, progress: Progress
    ) -> None:
        self.name = name
        self._registry = registry
        self._retries = retries
        self._store = store
        self._progress = progress
        self._configurations: dict[str, Wanted] = {}

    def find(self, name: str) -> Blob | None:
        digest = name.removeprefix("blobs/").replace("/", ":", 1)
        configuration = self._configurations.get(digest)
        if configuration:  # registries have these among the blobs
            if configuration.size > DOCUMENT_MAX:
                raise ImageError(f"{self.name}: {digest}: larger than {DOCUMENT_MAX >> 20} MiB")
            Downloads(self._registry, self._store, [configuration], self._progress).run()
            return self._blob(digest)
        if not os.path.exists(self._store.blob_path(digest)):
            manifest = self._retries.run(lambda: self._registry.manifest(digest))
            _keep(self._store, digest, manifest.data)
        blob = self._blob(digest)
        if blob.size <= DOCUMENT_MAX:
            blob.verify(digest)
            document = Fields(parse(blob.read(), blob.name), blob.name)
            if "config" in document:
                for each in _wanted([document.object("config")]):
                    self._configurations[each.digest] = each
        return blob

    def _blob(self, digest: str) -> Blob:
        path = self._store.blob_path(digest)
        return Blob(f"{self.name}: {digest}", path, 0, os.stat(path).st_size)
