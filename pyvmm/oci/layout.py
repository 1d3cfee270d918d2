"""OCI image layouts: from index.json to one image (image-spec image-layout.md)."""

from __future__ import annotations

from pyvmm.errors import ImageError
from pyvmm.oci.blob import Blob, DamagedError, checked_digest
from pyvmm.oci.config import Configuration, read_configuration
from pyvmm.oci.fields import ITEMS_MAX, Fields, listed, parse
from pyvmm.oci.image import Image, Layer
from pyvmm.oci.platform import Platform, platform_of, suitable
from pyvmm.oci.reference import same_name
from pyvmm.oci.source import Source
from pyvmm.record import Record

REF_NAME = "org.opencontainers.image.ref.name"
_IMAGE_NAME = "io.containerd.image.name"  # `docker save` by containerd: the whole name
# Of indexes, manifests and configurations that are read to find an image.
_DOCUMENTS_MAX = 1000
_DOCUMENTS_BYTES_MAX = 64 << 20
_CONFIG_TYPES = (
    "",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",  # Docker's, before 2016
)
_OCI_LAYER = "application/vnd.oci.image.layer"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs"
_LAYER_TYPES = {
    f"{kind}.{compression}"
    for kind in (f"{_OCI_LAYER}.v1", f"{_OCI_LAYER}.nondistributable.v1")
    for compression in ("tar", "tar+gzip", "tar+zstd")
} | {
    f"{kind}.{compression}"
    for kind in (f"{_DOCKER_LAYER}.diff", f"{_DOCKER_LAYER}.foreign.diff")
    for compression in ("tar", "tar.gzip", "tar.zstd")
}


class _Candidate(Record):
    """A manifest that suits."""

    digest: str
    manifest: Fields
    config: Configuration
    platform: Platform


def open_layout(source: Source, ref: str, platform: Platform) -> Image:
    """The image of a layout for ``platform``, of the name ``ref`` if that is not ""."""
    found = source.find("index.json")
    if not found:
        raise ImageError(f"{source.name}: not an OCI layout: it has no index.json")
    index = Fields(parse(source.read(found), found.name), found.name)
    entries = index.objects("manifests")
    if ref:
        entries = [entry for entry in entries if _is_named(entry, ref)]
    if not entries:
        what = f"has no image named {ref!r}{_named(index)}" if ref else "is an empty layout"
        raise ImageError(f"{source.name}: {what}")

    search = _Search(source, platform)
    usable = []
    for entry in entries:
        candidate = search.find(entry)
        if candidate:
            usable.append((_ref_name(entry), platform.runs(candidate.platform), candidate))
    if not usable:
        raise search.foreign(source.name)
    # Several of one name are variants of one image, if they differ in how well they suit.
    best = {name: max(rank for other, rank, _ in usable if other == name) for name, _, _ in usable}
    chosen = {each.digest: each for name, rank, each in usable if rank == best[name]}
    if len(chosen) > 1:
        raise ImageError(
            f"{source.name}: has several images: add :NAME to choose one{_named(index)}"
        )
    return _image(source, next(iter(chosen.values())))


def open_entry(source: Source, entry: Fields, platform: Platform) -> Image:
    """The image for ``platform`` that a descriptor leads to, through indexes of any depth."""
    search = _Search(source, platform)
    found = search.find(entry)
    if not found:
        raise search.foreign(entry.where)
    return _image(source, found)


def blob_name(digest: str) -> str:
    """The file of a blob in a layout."""
    return f"blobs/{digest.replace(':', '/')}"


class _Search:
    """For an image of one platform. ``others`` are the things on the way that do not suit."""

    def __init__(self, source: Source, platform: Platform) -> None:
        self._source = source
        self._platform = platform
        self._documents = 0
        self._entries = 0
        self._bytes = 0
        self.others: list[str] = []

    def find(self, entry: Fields) -> _Candidate | None:
        """The best manifest at or below a descriptor."""
        waiting = self._suitable([entry])
        while waiting:
            entry = waiting.pop()
            digest, document = self._read(entry)
            if "manifests" in document and "config" not in document and "layers" not in document:
                waiting += reversed(self._suitable(document.objects("manifests")))
                continue
            if "manifests" in document or not ("config" in document or "artifactType" in document):
                raise ImageError(f"{document.where}: neither an image manifest nor an index")
            descriptor = document.object("config")
            config_type = descriptor.text("mediaType")
            if "artifactType" in document or config_type not in _CONFIG_TYPES:
                artifact = document.text("artifactType") or config_type
                self.others.append(f"an artifact ({artifact})")
                continue
            config = read_configuration(self._read(descriptor)[1])
            offered = platform_of(entry) or config.platform
            is_so = (offered.os, offered.architecture) == (
                config.platform.os,
                config.platform.architecture,
            )
            if is_so and self._platform.runs(offered):
                return _Candidate(digest, document, config, offered)
            self.others.append(str(config.platform))
        return None

    def foreign(self, where: str) -> ImageError:
        """What to raise when nothing was found."""
        has = listed(self.others) or "no image"
        return ImageError(f"{where}: needs {self._platform}, but the image has {has}")

    def _read(self, descriptor: Fields) -> tuple[str, Fields]:
        digest, blob = _blob(self._source, descriptor)
        self._source.check(blob)
        self._documents += 1
        self._bytes += blob.size
        if self._documents > _DOCUMENTS_MAX or self._bytes > _DOCUMENTS_BYTES_MAX:
            raise ImageError(
                f"{self._source.name}: more than {_DOCUMENTS_MAX} documents, or "
                f"{_DOCUMENTS_BYTES_MAX >> 20} MiB of them, lead to images"
            )
        data = blob.read_verified(digest)
        return digest, Fields(parse(data, blob.name), blob.name)

    def _suitable(self, entries: list[Fields]) -> list[Fields]:
        self._entries += len(entries)
        if self._entries > ITEMS_MAX:
            raise ImageError(f"{self._source.name}: its indexes have more than {ITEMS_MAX} entries")
        for entry in entries:
            offer = platform_of(entry)
            # BuildKit's attestations are for "unknown".
            if offer and offer.os != "unknown" and not self._platform.runs(offer):
                self.others.append(str(offer))
        return suitable(entries, self._platform)


def _ref_name(entry: Fields) -> str:
    return entry.object("annotations").text(REF_NAME)


def _is_named(entry: Fields, ref: str) -> bool:
    name = entry.object("annotations").text(_IMAGE_NAME)
    return ref == _ref_name(entry) or same_name(ref, name)


def _named(index: Fields) -> str:
    names = sorted({_ref_name(entry) for entry in index.objects("manifests")} - {""})
    return f" (there are: {listed(names)})" if names else " (its images have no names)"


def _blob(source: Source, descriptor: Fields) -> tuple[str, Blob]:
    """What a descriptor points to (image-spec descriptor.md), present and of the right size."""
    digest = checked_digest(descriptor.text("digest"), descriptor.where)
    size = descriptor.size("size")
    blob = source.find(blob_name(digest))
    if blob is None:
        raise DamagedError(f"{source.name}: blob {digest} is missing", digest)
    if blob.size != size:
        raise DamagedError(
            f"{source.name}: blob {digest} has {blob.size} bytes, not {size}", digest
        )
    return digest, blob


def _image(source: Source, chosen: _Candidate) -> Image:
    descriptors = chosen.manifest.objects("layers")
    diff_ids = chosen.config.diff_ids
    if len(descriptors) != len(diff_ids):
        raise ImageError(
            f"{chosen.manifest.where}: {len(descriptors)} layers, but its configuration lists "
            f"{len(diff_ids)}"
        )
    layers = []
    for descriptor, diff_id in zip(descriptors, diff_ids, strict=True):
        media_type = descriptor.text("mediaType")
        if media_type not in _LAYER_TYPES:
            raise ImageError(f"{descriptor.where}: unknown layer type {media_type[:100]!r}")
        digest, blob = _blob(source, descriptor)
        layers.append(Layer(digest, blob.size, media_type, diff_id, blob))
    return Image(chosen.digest, chosen.config.run, tuple(layers), chosen.platform, source)
