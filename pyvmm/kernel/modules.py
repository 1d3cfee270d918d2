"""Kernel modules: which files are needed, and in which order they can be inserted."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from pathlib import Path


def name_of(path: Path) -> str:
    """Return a module's name, e.g. ``virtio_rng`` for ``virtio-rng.ko.xz``."""
    return path.name.partition(".ko")[0].replace("-", "_")


def read(path: Path) -> bytes:
    """Return the module as the kernel takes it, unpacked."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def closure(tree: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Return the named modules and all that they need, dependencies first.

    A name that is not below ``tree`` is taken to be built in.
    """
    files = {name_of(path): path for path in tree.rglob("*.ko*")}
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name not in files:
            return
        data = read(files[name])
        for needed in _needs(data):
            add(needed)
        ordered[name] = data

    for name in names:
        add(name)
    return ordered


def _needs(module: bytes) -> list[str]:
    """Read ``depends=`` of section .modinfo, which is NUL-terminated strings."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return found[1].decode().replace("-", "_").split(",") if found and found[1] else []
