"""What the pull's tests do with a pull."""

from __future__ import annotations

import gzip
import os
import random
from contextlib import suppress
from pathlib import Path

import images
import pytest

from pyvmm.errors import ImageError
from pyvmm.oci.open import open_name
from pyvmm.oci.platform import Platform
from pyvmm.oci.pull import pull
from pyvmm.oci.reference import parse_reference
from pyvmm.oci.store import Name, Store


class Recorder:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.began: list[tuple[str, int, int]] = []
        self.finished: list[str] = []
        self.lines: list[str] = []
        self.bytes = 0

    def blob(self, digest: str, size: int, at: int) -> None:
        self.began.append((digest, size, at))

    def advance(self, digest: str, count: int) -> None:
        self.bytes += count

    def done(self, digest: str) -> None:
        self.finished.append(digest)

    def line(self, text: str) -> None:
        self.lines.append(text)


def get(store: Store, reference: str, platform: Platform | None = None) -> tuple[Name, Recorder]:
    """Pull; what came must open, and all of it be sound."""
    recorder = Recorder()
    platform = platform or Platform()
    name = pull(parse_reference(reference), platform, store, recorder)
    with open_name(store, name, platform) as image:
        for layer in image.layers:
            layer.verify()
    assert store.find(reference) == name
    assert os.listdir(os.path.join(store.path, "partial")) == []
    return name, recorder


def refused(store: Store, reference: str) -> str:
    """The one line that a pull ends with."""
    with pytest.raises(ImageError) as caught:
        pull(parse_reference(reference), Platform(), store, Recorder())
    assert store.find(reference) is None
    message = str(caught.value)
    assert "\n" not in message
    return message


def noise(size: int, seed: int = 0) -> bytes:
    """What gzip cannot make smaller."""
    return random.Random(seed).randbytes(size)


def blobs(store: Store) -> set[str]:
    """The digests of what is in the store."""
    directory = Path(store.path, "blobs", "sha256")
    return {f"sha256:{path.name}" for path in directory.iterdir()} if directory.exists() else set()


def partial(store: Store) -> dict[str, int]:
    """The sizes of what is there in part, by digest."""
    directory = Path(store.path, "partial")
    found = {}
    for path in directory.iterdir() if directory.exists() else []:
        with suppress(FileNotFoundError):  # whole by now
            found[path.name.replace("-", ":")] = path.stat().st_size
    return found


def two_layers(path: Path, size: int = 1 << 20) -> tuple[str, list[str], list[int]]:
    """An image of two layers of some ``size`` bytes: its digest, its layers' digests and sizes."""
    made = images.Layout(path)
    layers = [images.layer(images.file(f"file{i}", noise(size, i))) for i in range(2)]
    gzipped = f"{images.OCI_LAYER}+gzip"  # or skopeo would compress them, to other digests
    descriptors = [made.blob(gzip.compress(data, 1, mtime=0), gzipped) for data in layers]
    config = made.document(made.configuration(layers), images.OCI_CONFIG)
    manifest = made.manifest(config, descriptors, mediaType=images.OCI_MANIFEST)
    made.refer(manifest, "latest")
    return (
        manifest["digest"],
        [each["digest"] for each in descriptors],
        [each["size"] for each in descriptors],
    )
