"""The two disks that change with the checkout: the build of pyvmm, and the guest kernels."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import package
from box import make_disk

from pyvmm import kernel
from pyvmm.cache import cache_dir

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("LICENSE", "README.md", "csrc", "init", "pyproject.toml", "pyvmm", "rootfs", "setup.py")
MADE = ("*.so", "*.o", "*.pyc", "*/_core.c", "*/_ext4.c", "pyvmm/_data/*")  # by an earlier build
KEPT = 4  # disks of earlier builds
LIBRARIES = ("isal", "backports.zstd", "urllib3")  # those that the box has no package of


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One build at a time."""
    with open(os.path.join(cache_dir("kvmbox"), "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed by closing
        yield


def pyvmm_disk(*, sanitized: bool = False) -> Path:
    """Return a disk with the tree of install(), built if the source is new."""
    digest = hashlib.sha256(repr(LIBRARIES).encode())
    for name in _sources() + [f"tests/sanitized/{name}" for name in package.SOURCES] * sanitized:
        data = (ROOT / name).read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    kind = "sanitized" if sanitized else "pyvmm"
    disk = Path(cache_dir("kvmbox")) / f"{kind}-{digest.hexdigest()[:16]}.ext4"
    if not disk.exists():
        make_disk(install(sanitized=sanitized), disk, "64M")
        _forget_old(f"{kind}-*.ext4")
    return disk


def _sources() -> list[str]:
    """Return the names below the checkout of what a build is made from."""
    paths: list[Path] = []
    for top in (ROOT / source for source in SOURCES):
        paths += sorted(top.rglob("*")) if top.is_dir() else [top]
    names = (str(path.relative_to(ROOT)) for path in paths if path.is_file())
    return [name for name in names if not any(fnmatch(name, made) for made in MADE)]


def install(*, sanitized: bool = False) -> Path:
    """Return a tree with pyvmm as pip installs it, and libraries.

    Built in a copy: the checkout stays as it is, and only what changed is compiled again.
    ``sanitized``: with sanitizers, and a Python for them (tests/sanitized/package.py).
    """
    work = Path(cache_dir("kvmbox", "build"))
    python = work / "venv/bin/python"
    if not python.exists():
        _run(sys.executable, "-m", "venv", work / "venv")
        _run(python, "-m", "pip", "install", "-q", "setuptools>=77", "wheel", "cffi>=1.17")
    place = work / "sanitized" if sanitized else work
    source, target = place / "source", place / "target"
    files = _sources()
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    for path in source.rglob("*"):
        name = str(path.relative_to(source))
        if path.is_file() and name.endswith((".py", ".c", ".h")) and name not in files:
            path.unlink()  # renamed or removed since the last build
    shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(source / "build" / "lib", ignore_errors=True)
    pip = (python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation")
    _run(*pip, "--target", target, source, PYVMM_CFLAGS=package.CFLAGS if sanitized else "")
    libraries = work / f"libraries-{'-'.join(LIBRARIES)}"
    if not libraries.exists():
        part = work / "libraries.part"
        shutil.rmtree(part, ignore_errors=True)
        _run(python, "-m", "pip", "install", "-q", "--no-deps", "--target", part, *LIBRARIES)
        part.rename(libraries)
    shutil.copytree(libraries, target, dirs_exist_ok=True)
    if sanitized:
        package.finish(target)
    return target


def kernels_disk() -> Path:
    """Return a disk with the guest kernels of this host's cache, laid out as the cache is."""
    root = Path(cache_dir("kernels"))
    used = {k.name: os.path.basename(os.path.dirname(k.path)) for k in kernel.installed()}
    digest = hashlib.sha256(repr(sorted(used.items())).encode())
    disk = Path(cache_dir("kvmbox")) / f"kernels-{digest.hexdigest()[:16]}.ext4"
    if not disk.exists():
        tree = Path(cache_dir("kvmbox")) / f".kernels-{os.getpid()}"
        tree.mkdir()
        try:
            for name, key in used.items():
                shutil.copytree(root / key, tree / key)
                (tree / name).symlink_to(key)
            make_disk(tree, disk, "512M")
        finally:
            shutil.rmtree(tree)
        _forget_old("kernels-*.ext4")
    return disk


def _forget_old(pattern: str) -> None:
    disks = sorted(Path(cache_dir("kvmbox")).glob(pattern), key=lambda path: path.stat().st_mtime)
    for disk in disks[:-KEPT]:
        disk.unlink(missing_ok=True)  # a box that still runs has it open


def _run(*command: str | Path, **environment: str) -> None:
    done = subprocess.run(
        command,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | environment,
    )
    if done.returncode:
        raise SystemExit(f"kvmbox: building pyvmm failed:\n{done.stdout}")
