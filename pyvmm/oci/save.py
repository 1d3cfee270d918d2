"""An image written as one file: an OCI archive, or what ``docker save`` writes.

Documents and layers go in as they are, so that all digests stay.
"""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any, BinaryIO

from pyvmm.errors import ImageError
from pyvmm.oci.blob import Blob
from pyvmm.oci.fields import Fields, parse
from pyvmm.oci.image import Image
from pyvmm.oci.layout import REF_NAME, blob_name
from pyvmm.oci.reference import Reference

FORMATS = "oci-archive", "docker-archive"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"

_Members = dict[str, bytes | Blob]


def save(image: Image, reference: Reference, format: str, file: BinaryIO) -> None:
    """Write ``image``, by the name that ``reference`` gives it, in one of `FORMATS`.

    The same image gives the same bytes. Raises ImageError; OSError where ``file`` does.
    """
    found = image.source.find(blob_name(image.digest))
    if found is None:
        raise ImageError(f"{reference}: is a docker-save archive: skopeo copies it to other kinds")
    for layer in image.layers:
        layer.verify()  # first: what is in a pipe cannot be taken back
    manifest = Fields(parse(found.read(), found.name), found.name)
    members = (_oci if format == "oci-archive" else _docker)(image, reference, manifest)
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = content.size if isinstance(content, Blob) else len(content)
            with content.open() if isinstance(content, Blob) else io.BytesIO(content) as data:
                archive.addfile(info, data)


def _oci(image: Image, reference: Reference, manifest: Fields) -> _Members:
    """Image-spec image-layout.md. The blobs come last, as nobody has to seek for the rest then."""
    found = _find(image, image.digest)
    entry: dict[str, Any] = {
        "mediaType": manifest.text("mediaType") or _MANIFEST_TYPE,
        "digest": image.digest,
        "size": found.size,
    }
    name = reference.name or (str(reference) if reference.registry else "")
    if name:
        entry["annotations"] = {REF_NAME: name}
    config = manifest.object("config").text("digest")
    digests = [image.digest, config, *(layer.digest for layer in image.layers)]
    members: _Members = {
        "oci-layout": _document({"imageLayoutVersion": "1.0.0"}),
        "index.json": _document({"schemaVersion": 2, "manifests": [entry]}),
    }
    members |= {blob_name(digest): _find(image, digest) for digest in digests}
    return members


def _docker(image: Image, reference: Reference, manifest: Fields) -> _Members:
    """Docker's image/spec/v1.2.md. Layers may be compressed: Docker's own reader looks at them."""
    config = manifest.object("config").text("digest")
    name = f"{_digits(config)}.json"
    layers = {f"{_digits(layer.digest)}.tar": layer.blob for layer in image.layers}
    tag = f"{reference.registry}/{reference.repository}:{reference.tag}"
    listing = {
        "Config": name,
        "RepoTags": [tag] if reference.tag else None,
        "Layers": [f"{_digits(layer.digest)}.tar" for layer in image.layers],
    }
    return {"manifest.json": _document([listing]), name: _find(image, config), **layers}


def _find(image: Image, digest: str) -> Blob:
    blob = image.source.find(blob_name(digest))
    assert blob  # all were found when the image was opened
    return blob


def _digits(digest: str) -> str:
    return digest.partition(":")[2]


def _document(value: Any) -> bytes:
    return json.dumps(value).encode()
