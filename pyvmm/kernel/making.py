"""How a kernel gets into the cache: whole, by a rename, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyvmm.cache import cache_dir, is_file_at, sweep, unfinished
from pyvmm.kernel.store import FORMAT, SIDECAR, Image, Kernel, load


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
    sweep()
    path, lock = _locked_directory()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _locked_directory() -> tuple[Path, int]:
    while True:
        path = tempfile.mkdtemp(dir=unfinished())
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # somebody sweeps
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_file_at(lock, path):
            return Path(path), lock
        os.close(lock)


def publish(directory: Path, key: str) -> None:
    """Give a finished directory its place ``kernels/<key>``.

    Of two processes that make the same kernel at once, the first one's stays: it may be in use.
    """
    place = Path(cache_dir("kernels")) / key
    directory.chmod(0o755)  # mkdtemp's is 0700
    if place.exists() and load(str(place), key) is None:  # of another format
        with staging() as old:
            place.rename(old / key)
    try:
        directory.rename(place)
    except OSError:
        if load(str(place), key) is None:
            raise


def select(name: str, key: str) -> Kernel:
    """Let ``name`` mean the kernel of ``kernels/<key>`` from now on, and return it."""
    root = Path(cache_dir("kernels"))
    with staging() as made:
        (made / name).symlink_to(key)
        (made / name).replace(root / name)
    kernel = load(str(root / name), name)
    assert kernel is not None
    return kernel
