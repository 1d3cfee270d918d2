"""OCI images for the bench: a busybox, and what else a measurement needs."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

APPLETS = ("sh", "true", "sleep")
OCI = "application/vnd.oci.image"
Files = Mapping[str, bytes]


class Layout:
    """An OCI image layout in the making."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blobs = directory / "blobs/sha256"
        self._blobs.mkdir(parents=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def image(
        self,
        layers: Sequence[bytes],
        compress: Callable[[bytes], bytes] = bytes,
        suffix: str = "",
        name: str = "latest",
    ) -> None:
        """Write an image of these tar streams, and the index that leads to it."""
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": self._blob(json.dumps(config).encode(), f"{OCI}.config.v1+json"),
            "layers": [
                self._blob(compress(layer), f"{OCI}.layer.v1.tar{suffix}") for layer in layers
            ],
        }
        described = self._blob(json.dumps(manifest).encode(), str(manifest["mediaType"]))
        described["annotations"] = {"org.opencontainers.image.ref.name": name}
        index = {"schemaVersion": 2, "manifests": [described]}
        (self.directory / "index.json").write_text(json.dumps(index))

    def _blob(self, data: bytes, kind: str) -> dict[str, object]:
        digest = _digest(data)
        (self._blobs / digest.partition(":")[2]).write_bytes(data)
        return {"mediaType": kind, "digest": digest, "size": len(data)}


def make(directory: Path, more: Files | None = None) -> Path:
    """Write an OCI layout with /bin/busybox, a few of its names and ``more`` programs."""
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    Layout(directory).image([_layer({"bin/busybox": busybox} | dict(more or {}))])
    return directory


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _layer(programs: Files) -> bytes:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in ("bin", "tmp", "etc"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, data in programs.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o755, len(data)
            tar.addfile(entry, io.BytesIO(data))
        for name in APPLETS:
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return layer.getvalue()
