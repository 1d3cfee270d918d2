"""An image of about 160 MB in 8,000 files: this host's /usr, sampled, in four gzip layers."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from image import Layout

TOPS = ("/usr/bin", "/usr/lib", "/usr/share")
# How many files up to a size. Together about 160 MB, of which most are small, as in real images.
SAMPLES = ((20_000, 6_600), (2_000_000, 1_400))
SHARES = (0.6, 0.2, 0.15, 0.05)  # of the files, from the lowest layer up
REPLACED = 100  # files that the topmost layer has again
LEVEL = 6


def make(directory: Path) -> Path:
    """Write the layout; its image is named ``large``."""
    files = _sample()
    made = Layout(directory)
    layers = []
    start = 0
    for share in SHARES:
        end = start + round(share * len(files))
        names = files[start:end]
        if share == SHARES[-1]:
            names = sorted(set(files[start:]) | set(files[:: len(files) // REPLACED]))
        layers.append(_layer(names))
        start = end
    made.image(layers, lambda layer: gzip.compress(layer, LEVEL, mtime=0), "+gzip", name="large")
    return directory


def _sample() -> list[str]:
    """Every n-th file of each size, so that all kinds are there."""
    sizes = {path: os.stat(path).st_size for path in _files()}
    chosen: list[str] = []
    least = 0
    for most, count in SAMPLES:
        found = sorted(path for path, size in sizes.items() if least <= size < most)
        chosen += found[:: max(1, len(found) // count)][:count]
        least = most
    return sorted(chosen)


def _files() -> Iterator[str]:
    for top in TOPS:
        for directory, _, names in os.walk(top):
            for name in names:
                path = os.path.join(directory, name)
                if os.path.isfile(path) and not os.path.islink(path):
                    yield path


def _layer(paths: list[str]) -> bytes:
    stream = io.BytesIO()
    known: set[str] = set()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path in paths:
            for parent in reversed(Path(path).parents):
                if str(parent) not in known and str(parent) != "/":
                    known.add(str(parent))
                    entry = tarfile.TarInfo(str(parent)[1:])
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(entry)
            status = os.stat(path)
            entry = tarfile.TarInfo(path[1:])
            entry.size, entry.mode = status.st_size, status.st_mode & 0o7777
            entry.mtime = status.st_mtime
            with open(path, "rb") as file:
                tar.addfile(entry, file)
    return stream.getvalue()
