"""``docker save`` archives: manifest.json, a configuration and a tar file for each layer."""

from __future__ import annotations

from pyvmm.errors import ImageError
from pyvmm.oci.blob import Blob, new_hash
from pyvmm.oci.config import read_configuration
from pyvmm.oci.fields import Fields, listed, parse
from pyvmm.oci.image import Image, Layer
from pyvmm.oci.platform import Platform
from pyvmm.oci.reference import same_name
from pyvmm.oci.source import Source

_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar"


def open_docker_archive(source: Source, ref: str, platform: Platform) -> Image:
    """The image of the archive, of the name ``ref`` if that is not "".

    ``@N`` is the image at that index from 0, as in docker-archive: of containers-transports(5).
    """
    listing = _read(source, "manifest.json")
    value = parse(listing, f"{source.name}: manifest.json")
    images = Fields({"images": value}, f"{source.name}: manifest.json").objects("images")
    tags = sorted({tag for image in images for tag in image.texts("RepoTags")})
    if ref.startswith("@") and ref[1:].isascii() and ref[1:].isdecimal():
        number = int(ref[1:6])
        images = images[number : number + 1]
    elif ref:
        images = [image for image in images if _is_named(image, ref)]
    if len(images) != 1:
        what = f"no image named {ref!r}" if ref and not images else f"{len(images)} images"
        raise ImageError(
            f"{source.name}: has {what}: add :NAME to choose one (there are: {listed(tags)})"
        )
    return _image(source, images[0], platform)


def _is_named(image: Fields, ref: str) -> bool:
    return any(ref == tag or same_name(ref, tag) for tag in image.texts("RepoTags"))


def _find(source: Source, name: str) -> Blob:
    blob = source.find(name) if name else None
    if blob is None:
        name = name[:300] or "a file"
        raise ImageError(f"{source.name}: {name} is missing; save the image again")
    return blob


def _read(source: Source, name: str) -> bytes:
    return source.read(_find(source, name))


def _image(source: Source, fields: Fields, platform: Platform) -> Image:
    name = fields.text("Config")
    data = _read(source, name)
    # The configuration lists the layers' diff_ids, so its digest (Docker's image ID) covers all.
    hasher = new_hash("sha256", len(data))
    hasher.update(data)
    digest = hasher.hexdigest()
    stem = name.rpartition("/")[2].removesuffix(".json")
    if len(stem) == 64 and stem != digest:
        raise ImageError(f"{source.name}: {name} is damaged; save the image again")
    config = read_configuration(Fields(parse(data, name), f"{source.name}: {name}"))
    if not platform.runs(config.platform):
        raise ImageError(f"{source.name}: needs {platform}, but the image is for {config.platform}")
    files = fields.texts("Layers")
    if len(files) != len(config.diff_ids):
        raise ImageError(
            f"{source.name}: {len(files)} layers, but {name} lists {len(config.diff_ids)}"
        )
    layers = []
    for file, diff_id in zip(files, config.diff_ids, strict=True):
        blob = _find(source, file)
        layers.append(Layer(diff_id, blob.size, _LAYER_TYPE, diff_id, blob))
    return Image(f"sha256:{digest}", config.run, tuple(layers), config.platform, source)
