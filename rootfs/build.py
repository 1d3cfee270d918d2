"""Builds pyvmm._ext4: image layers in, ext4 out (libext2fs)."""

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
# setuptools wants paths relative to the directory it runs in, the repository's root.
SOURCES = [f"rootfs/{path.name}" for path in sorted(HERE.glob("*.c")) if path.name != "_ext4.c"]

ffi = FFI()
ffi.cdef((HERE / "ext4_cdef.h").read_text())
ffi.set_source(
    "pyvmm._ext4",
    '#include <stddef.h>\n#include <stdint.h>\n#include "ext4_cdef.h"',
    sources=SOURCES,
    include_dirs=["rootfs"],
    depends=[f"rootfs/{path.name}" for path in sorted(HERE.glob("*.h"))],
    libraries=["ext2fs", "com_err"],
    extra_compile_args=[
        "-std=c11",
        "-D_GNU_SOURCE",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        *os.environ.get("PYVMM_CFLAGS", "").split(),  # as in csrc/build.py
    ],
    py_limited_api=True,
)
