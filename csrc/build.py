"""cffi description of pyvmm._core: the declarations stand in core_cdef.h, read by C as well."""

import os
from pathlib import Path

from cffi import FFI

SOURCES = [
    "vm.c",
    "threads.c",
    "kvm_run.c",
    "perf.c",
    "event_loop.c",
    "serial.c",
    "virtqueue.c",
    "virtio_mmio.c",
    "virtio_blk.c",
    "virtio_rng.c",
    "virtio_vsock.c",
    "vsock_table.c",
    "vsock_rx.c",
    "vsock_conn.c",
    "vsock_data.c",
    "vsock_seqpacket.c",
    "vsock_switch.c",
    "jail.c",
]

here = Path(__file__).parent
ffi = FFI()
ffi.cdef((here / "core_cdef.h").read_text())
# What Python's own wrappers do not reach: 64-bit ioctl arguments, prctl, the environment's memory.
ffi.cdef(
    "int ioctl(int fd, unsigned long request, ...); int prctl(int option, ...);"
    "void wipe_environment(void);"
)
WIPE = """
static void wipe_environment(void)
{
	for (char **at = environ; *at; at++)
		explicit_bzero(*at, strlen(*at));
	*environ = NULL;
}
"""
ffi.set_source(
    "pyvmm._core",
    "#include <string.h>\n#include <sys/ioctl.h>\n#include <sys/prctl.h>\n#include <unistd.h>\n"
    '#include "core.h"\n' + WIPE,
    sources=[f"csrc/{name}" for name in SOURCES],
    depends=["csrc/core.h", "csrc/core_cdef.h", "csrc/virtio_vsock.h"],
    include_dirs=["csrc"],
    extra_compile_args=[
        "-std=c11",
        "-D_GNU_SOURCE",
        "-O2",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-missing-field-initializers",
        "-Wno-unused-parameter",
        *os.environ.get("PYVMM_CFLAGS", "").split(),  # a variant's: not CFLAGS, which init has, too
    ],
    extra_link_args=["-pthread"],
    py_limited_api=True,
)
