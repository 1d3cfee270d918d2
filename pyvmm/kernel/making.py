"""How a kernel gets into the cache: whole, by a rename, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyvmm.cache import cache_dir
from pyvmm.kernel.store import FORMAT, SIDECAR, Image, Kernel, load

_STALE_S = 24 * 3600  # what a killed build left behind


def save(directory: Path, image: Image, path: str, modules: Sequence[str] = ()) -> None:
    """Write the sidecar; ``path`` and ``modules`` are relative to ``directory`` or absolute."""
    known = {
        "format": FORMAT,
        "path": path,
        "version": image.version,
        "entry": image.entry,
        "pvh_entry": image.pvh_entry,
        "segments": [[s.offset, s.filesz, s.paddr, s.memsz] for s in image.segments],
        "acpi": image.acpi,
        "modules": list(modules),
    }
    (directory / SIDECAR).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def staging() -> Iterator[Path]:
    """Make a temporary directory in the cache, gone at the end unless it was published."""
    root = Path(cache_dir("kernels"))
    for left in root.glob(".tmp-*"):
        if left.stat().st_mtime < time.time() - _STALE_S:
            shutil.rmtree(left, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=".tmp-", dir=root))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def publish(directory: Path, key: str) -> None:
    """Give a finished directory its place ``kernels/<key>``.

    Of two processes that make the same kernel at once, the later one replaces the earlier.
    """
    place = Path(cache_dir("kernels")) / key
    if place.exists():
        shutil.rmtree(place)
    directory.chmod(0o755)  # mkdtemp's is 0700
    directory.rename(place)


def select(name: str, key: str) -> Kernel:
    """Let ``name`` mean the kernel of ``kernels/<key>`` from now on, and return it."""
    root = Path(cache_dir("kernels"))
    fresh = root / f".{name}-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(key)
    fresh.replace(root / name)
    kernel = load(str(root / name), name)
    assert kernel is not None
    return kernel
