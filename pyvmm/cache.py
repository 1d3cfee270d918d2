"""The one place on disk that pyvmm keeps things in: $XDG_CACHE_HOME/pyvmm."""

from __future__ import annotations

import os


def cache_dir(*parts: str) -> str:
    """Return (and make) a directory under the cache, e.g. ``cache_dir("kernels")``."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(root, "pyvmm", *parts)
    if not os.path.isdir(path):
        os.makedirs(root, exist_ok=True)
        os.makedirs(os.path.join(root, "pyvmm"), 0o700, exist_ok=True)  # images may be private
        os.makedirs(path, exist_ok=True)
    return path


def is_file_at(descriptor: int, path: str) -> bool:
    """Whether an open file is the one that has the name ``path`` now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
