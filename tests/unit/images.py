"""Makes OCI images with nothing but the standard library, hostile ones too."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Entry = tuple[tarfile.TarInfo, bytes]

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
REF_NAME = "org.opencontainers.image.ref.name"


def entry(name: str | bytes, kind: bytes, data: bytes = b"", **fields: Any) -> Entry:
    """A tar entry; ``fields`` are those of TarInfo, and ``xattrs``: bytes by name."""
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape") if type(name) is bytes else name)
    info.type = kind
    info.size = len(data)
    info.mode = 0o644
    for key, value in fields.pop("xattrs", {}).items():
        info.pax_headers[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def file(name: str | bytes, data: bytes = b"", **fields: Any) -> Entry:
    return entry(name, tarfile.REGTYPE, data, **fields)


def directory(name: str | bytes, **fields: Any) -> Entry:
    return entry(name, tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def symlink(name: str | bytes, target: str, **fields: Any) -> Entry:
    return entry(name, tarfile.SYMTYPE, linkname=target, **{"mode": 0o777, **fields})


def hard_link(name: str | bytes, target: str) -> Entry:
    return entry(name, tarfile.LNKTYPE, linkname=target)


def fifo(name: str, **fields: Any) -> Entry:
    return entry(name, tarfile.FIFOTYPE, **fields)


def device(name: str, kind: str, major: int, minor: int) -> Entry:
    types = {"c": tarfile.CHRTYPE, "b": tarfile.BLKTYPE}
    return entry(name, types[kind], devmajor=major, devminor=minor)


def whiteout(path: str) -> Entry:
    parent, slash, name = path.rpartition("/")
    return file(f"{parent}{slash}.wh.{name}")


def opaque(path: str) -> Entry:
    return file(f"{path}/.wh..wh..opq")


def layer(*entries: Entry, format: int = tarfile.PAX_FORMAT) -> bytes:
    """An uncompressed layer."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Layout:
    """An OCI layout directory in the making."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs" / "sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.index: dict[str, Any] = {"schemaVersion": 2, "manifests": []}

    def blob_path(self, digest: str) -> Path:
        return self.path / "blobs" / digest.replace(":", "/")

    def blob(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        """Store a blob; return its descriptor."""
        digest = sha256(data)
        self.blob_path(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def document(self, value: Any, media_type: str, **more: Any) -> dict[str, Any]:
        return self.blob(json.dumps(value).encode(), media_type, **more)

    def configuration(
        self, layers: Sequence[bytes], arch: str = "amd64", os: str = "linux", **run: Any
    ) -> dict[str, Any]:
        return {
            "architecture": arch,
            "os": os,
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": [sha256(data) for data in layers]},
        }

    def image(
        self, layers: Sequence[bytes], arch: str = "amd64", compressed: bool = True, **run: Any
    ) -> dict[str, Any]:
        """Store an image; return its manifest's descriptor. ``run`` is its "config" object."""
        media_type = f"{OCI_LAYER}+gzip" if compressed else OCI_LAYER
        blobs = [gzip.compress(data, 1, mtime=0) if compressed else data for data in layers]
        return self.manifest(
            self.document(self.configuration(layers, arch, **run), OCI_CONFIG),
            [self.blob(blob, media_type) for blob in blobs],
        )

    def manifest(
        self, config: dict[str, Any], layers: list[dict[str, Any]], **more: Any
    ) -> dict[str, Any]:
        document = {"schemaVersion": 2, "config": config, "layers": layers, **more}
        return self.document(document, OCI_MANIFEST)

    def refer(self, descriptor: dict[str, Any], ref: str = "", **more: Any) -> None:
        """Enter a manifest or index into index.json."""
        annotations = {"annotations": {REF_NAME: ref}} if ref else {}
        self.index["manifests"].append({**descriptor, **annotations, **more})
        self.write_index()

    def write_index(self) -> None:
        (self.path / "index.json").write_text(json.dumps(self.index))


def layout(path: Path, *layers: bytes, **options: Any) -> Path:
    """An OCI layout of one image. ``options`` are those of Layout.image."""
    made = Layout(path)
    made.refer(made.image(layers, **options), "latest")
    return path


def archive(path: Path, directory: Path) -> Path:
    """A tar archive of a directory."""
    with tarfile.open(path, "w") as made:
        made.add(directory, ".")
    return path


def docker_archive(
    path: Path, *layers: bytes, compressed: bool = False, linked: bool = False, **changes: Any
) -> Path:
    """What ``docker save`` writes; ``linked`` layers are symbolic links, as in skopeo's."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(data) for data in layers]},
            **changes,
        }
    ).encode()
    name = f"{sha256(config)[7:]}.json"
    members = [file(name, config)]
    names = []
    for number, data in enumerate(layers):
        stored = gzip.compress(data, 1, mtime=0) if compressed else data
        names.append(f"{number:064x}/layer.tar")
        if linked:
            members.append(file(f"{sha256(data)[7:]}.tar", stored))
            members.append(symlink(names[-1], f"../{sha256(data)[7:]}.tar"))
        else:
            members.append(file(names[-1], stored))
    manifest = [{"Config": name, "RepoTags": ["demo:1"], "Layers": names}]
    members.append(file("manifest.json", json.dumps(manifest).encode()))
    path.write_bytes(layer(*members))
    return path
