"""Takes the caller's environment out of a forked process's memory.

A caller's environment has secrets in it (a CI job's tokens), and a worker is what a hostile guest
would break into.
"""

from __future__ import annotations

import posix

from ._core import ffi, lib


def environment() -> None:
    """Overwrite the environment: the C library's strings, and Python's."""
    for pair in posix.environ.items():
        for text in pair:
            if len(text) > 1:  # Python has one object for each text of one byte, for all to share
                target = ffi.cast("char *", ffi.from_buffer(text))
                ffi.memmove(target, bytes(len(text)), len(text))
    posix.environ.clear()
    lib.wipe_environment()
