"""The one place on disk that pyvmm keeps things in: $XDG_CACHE_HOME/pyvmm."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """Return (and make) a directory under the cache, e.g. ``cache_dir("kernels")``."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(root, "pyvmm", *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path
