"""OCI image layouts: from index.json to one image (image-spec image-layout.md)."""

from __future__ import annotations

from pyvmm.errors import ImageError
from pyvmm.oci.blob import Blob, checked_digest
from pyvmm.oci.config import Configuration, read_configuration
from pyvmm.oci.fields import DOCUMENT_MAX, Fields, parse
from pyvmm.oci.image import Image, Layer
from pyvmm.oci.source import Source
from pyvmm.record import Record

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Iterator

_REF_NAME = "org.opencontainers.image.ref.name"
_INDEX_DEPTH_MAX = 4
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
    """A manifest that index.json leads to."""

    ref: str
    digest: str
    manifest: Fields
    config: Configuration

    @property
    def platform(self) -> str:
        return f"{self.config.os or '?'}/{self.config.architecture or '?'}"


def open_layout(source: Source, ref: str, arch: str) -> Image:
    """The image of a layout for linux on ``arch``, of the name ``ref`` if that is not ""."""
    found = source.find("index.json")
    if not found:
        raise ImageError(f"{source.name}: not an OCI layout: it has no index.json")
    if found.size > DOCUMENT_MAX:
        raise ImageError(f"{found.name}: larger than {DOCUMENT_MAX >> 20} MiB")
    index = Fields(parse(found.read(), found.name), found.name)
    entries = index.objects("manifests")
    if ref:
        entries = [entry for entry in entries if _ref_name(entry) == ref]
    if not entries:
        what = f"has no image named {ref!r}{_named(index)}" if ref else "is an empty layout"
        raise ImageError(f"{source.name}: {what}")

    usable: dict[str, _Candidate] = {}
    others: list[str] = []
    for entry in entries:
        for candidate in _candidates(source, entry, _ref_name(entry), 0):
            if candidate.platform == f"linux/{arch}":
                usable.setdefault(candidate.digest, candidate)
                break  # image-index.md: of several that match, the first
            others.append(candidate.platform)
    if not usable:
        has = ", ".join(dict.fromkeys(others)) or "no image"
        raise ImageError(f"{source.name}: needs linux/{arch}, but the image has {has}")
    if len(usable) > 1:
        raise ImageError(
            f"{source.name}: has several images: add :NAME to choose one{_named(index)}"
        )
    return _image(source, next(iter(usable.values())))


def _ref_name(entry: Fields) -> str:
    return entry.object("annotations").text(_REF_NAME)


def _named(index: Fields) -> str:
    names = sorted({_ref_name(entry) for entry in index.objects("manifests")} - {""})
    return f" (there are: {', '.join(names)})" if names else " (its images have no names)"


def _candidates(source: Source, entry: Fields, ref: str, depth: int) -> Iterator[_Candidate]:
    """All manifests at and below an index's entry that are images."""
    platform = entry.object("platform")
    if platform.text("os") == "unknown":  # BuildKit's attestations
        return
    digest, document = _document(source, entry)
    if "manifests" in document:
        if depth >= _INDEX_DEPTH_MAX:
            raise ImageError(f"{source.name}: indexes nest more than {_INDEX_DEPTH_MAX} deep")
        for below in document.objects("manifests"):
            if _may_be_absent(source, below):
                continue
            yield from _candidates(source, below, ref, depth + 1)
        return
    if "config" not in document:
        raise ImageError(f"{document.where}: neither an image manifest nor an index")
    _, config = _document(source, document.object("config"))
    yield _Candidate(ref, digest, document, read_configuration(config))


def _may_be_absent(source: Source, entry: Fields) -> bool:
    """A copy of one platform keeps the index of all: of the others only descriptors are there."""
    digest = checked_digest(entry.text("digest"), entry.where)
    return "platform" in entry and source.find(_blob_name(digest)) is None


def _blob_name(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _blob(source: Source, descriptor: Fields) -> tuple[str, Blob]:
    """What a descriptor points to (image-spec descriptor.md), present and of the right size."""
    digest = checked_digest(descriptor.text("digest"), descriptor.where)
    size = descriptor.size("size")
    blob = source.find(_blob_name(digest))
    if blob is None:
        raise ImageError(f"{source.name}: blob {digest} is missing; fetch the image again")
    if blob.size != size:
        raise ImageError(
            f"{source.name}: blob {digest} has {blob.size} bytes, not {size}; fetch the image again"
        )
    return digest, blob


def _document(source: Source, descriptor: Fields) -> tuple[str, Fields]:
    digest, blob = _blob(source, descriptor)
    if blob.size > DOCUMENT_MAX:
        raise ImageError(f"{blob.name}: larger than {DOCUMENT_MAX >> 20} MiB")
    blob.verify(digest)
    return digest, Fields(parse(blob.read(), blob.name), blob.name)


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
            raise ImageError(f"{descriptor.where}: unknown layer type {media_type!r}")
        digest, blob = _blob(source, descriptor)
        layers.append(Layer(digest, blob.size, media_type, diff_id, blob))
    return Image(chosen.digest, chosen.config.run, tuple(layers))
