"""The one place on disk that pyvmm keeps things in: $XDG_CACHE_HOME/pyvmm."""

from __future__ import annotations

import os


def cache_dir(*parts: str) -> str:
    """Return (and make) a directory under the cache, e.g. ``cache_dir("kernels")``."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(root, "pyvmm", *parts)
    os.makedirs(path, exist_ok=True)
    return path
