"""``docker save`` archives: manifest.json, a configuration and a tar file for each layer."""

from __future__ import annotations

from pyvmm.errors import ImageError
from pyvmm.oci.blob import Blob
from pyvmm.oci.config import read_configuration
from pyvmm.oci.fields import DOCUMENT_MAX, Fields, parse
from pyvmm.oci.image import Image, Layer
from pyvmm.oci.source import Source

_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar"


def open_docker_archive(source: Source, ref: str, arch: str) -> Image:
    """The image of the archive, of the repository tag ``ref`` if that is not ""."""
    listing = _read(source, "manifest.json")
    value = parse(listing, f"{source.name}: manifest.json")
    images = Fields({"images": value}, f"{source.name}: manifest.json").objects("images")
    tags = sorted({tag for image in images for tag in image.texts("RepoTags")})
    if ref:
        images = [image for image in images if ref in image.texts("RepoTags")]
    if len(images) != 1:
        what = f"no image named {ref!r}" if ref and not images else f"{len(images)} images"
        raise ImageError(
            f"{source.name}: has {what}: add :NAME to choose one (there are: {', '.join(tags)})"
        )
    return _image(source, images[0], arch)


def _find(source: Source, name: str) -> Blob:
    blob = source.find(name) if name else None
    if blob is None:
        raise ImageError(f"{source.name}: {name or 'a file'} is missing; save the image again")
    return blob


def _read(source: Source, name: str) -> bytes:
    blob = _find(source, name)
    if blob.size > DOCUMENT_MAX:
        raise ImageError(f"{blob.name}: larger than {DOCUMENT_MAX >> 20} MiB")
    return blob.read()


def _image(source: Source, fields: Fields, arch: str) -> Image:
    name = fields.text("Config")
    data = _read(source, name)
    # The configuration lists the layers' diff_ids, so its digest (Docker's image ID) covers all.
    import hashlib

    digest = hashlib.sha256(data).hexdigest()
    stem = name.rpartition("/")[2].removesuffix(".json")
    if len(stem) == 64 and stem != digest:
        raise ImageError(f"{source.name}: {name} is damaged; save the image again")
    config = read_configuration(Fields(parse(data, name), f"{source.name}: {name}"))
    platform = f"{config.os or '?'}/{config.architecture or '?'}"
    if platform != f"linux/{arch}":
        raise ImageError(f"{source.name}: needs linux/{arch}, but the image is for {platform}")
    files = fields.texts("Layers")
    if len(files) != len(config.diff_ids):
        raise ImageError(
            f"{source.name}: {len(files)} layers, but {name} lists {len(config.diff_ids)}"
        )
    layers = []
    for file, diff_id in zip(files, config.diff_ids, strict=True):
        blob = _find(source, file)
        layers.append(Layer(diff_id, blob.size, _LAYER_TYPE, diff_id, blob))
    return Image(f"sha256:{digest}", config.run, tuple(layers))
