"""Guest kernels: find the one to boot, fetch Debian's stock one, build the minimal one.

A kernel that the cache knows costs one small JSON file to find; what fetches, builds and reads ELF
files is imported only when it is needed.
"""

from __future__ import annotations

import os

from pyvmm.cache import cache_dir
from pyvmm.errors import KernelError
from pyvmm.kernel.store import Kernel, Segment, identity, load

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Callable

    Progress = Callable[[str], None]

__all__ = ["Kernel", "Segment", "build", "fetch", "find", "installed"]


def find(spec: str | None = None, *, progress: Progress | None = None) -> Kernel:
    """Return the kernel that ``spec`` names: ``minimal``, ``stock``, or the path of a file.

    None is the minimal kernel if it has been built, else the stock one. The stock kernel is fetched
    if need be, a file that is a bzImage unpacked: once, the cache keeps it.

    Raises KernelError: no such file, not a usable kernel, not to be had.
    """
    root = cache_dir("kernels")
    if spec in (None, "minimal"):
        if (kernel := load(os.path.join(root, "minimal"), "minimal")) is not None:
            return kernel
        if spec is not None:
            raise KernelError("the minimal kernel is not built yet: run `pyvmm kernel build`")
        spec = "stock"
    if spec == "stock":
        return load(os.path.join(root, "stock"), "stock") or fetch(progress=progress)
    assert spec is not None
    path = os.path.realpath(spec)
    try:
        key = f"file-{identity(path)}"
    except OSError as error:
        raise KernelError(f"kernel {spec}: {error.strerror}") from error
    return load(os.path.join(root, key), spec) or _adopt(path, spec, key)


def fetch(*, progress: Progress | None = None) -> Kernel:
    """Download Debian's current cloud kernel, unless it is here. Raises KernelError."""
    from pyvmm.kernel import stock

    return stock.fetch(progress or _silent)


def build(*, progress: Progress | None = None, jobs: int | None = None) -> Kernel:
    """Build the minimal kernel with ``jobs`` compilers, unless it is here. Raises KernelError."""
    from pyvmm.kernel import minimal

    return minimal.build(progress or _silent, jobs)


def installed() -> list[Kernel]:
    """Return the named kernels that the cache has, the one that runs by default first."""
    root = cache_dir("kernels")
    kernels = (load(os.path.join(root, name), name) for name in ("minimal", "stock"))
    return [kernel for kernel in kernels if kernel is not None]


def _adopt(path: str, spec: str, key: str) -> Kernel:
    """Read a kernel file for the first time."""
    from pyvmm.kernel import bzimage, elf, making

    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise KernelError(f"kernel {spec}: {error.strerror}") from error
    packed = bzimage.is_bzimage(data[:0x250])
    if not packed and not data.startswith(b"\x7fELF"):
        raise KernelError(f"kernel {spec}: neither an ELF vmlinux nor a bzImage")
    try:
        vmlinux = bzimage.unpack(data) if packed else data
        image = elf.inspect(vmlinux)
    except KernelError as error:
        raise KernelError(f"kernel {spec}: {error}") from error
    with making.staging() as made:
        if packed:
            (made / "vmlinux").write_bytes(vmlinux)
        making.save(made, image, "vmlinux" if packed else path)
        making.publish(made, key)
    kernel = load(os.path.join(cache_dir("kernels"), key), spec)
    assert kernel is not None
    return kernel


def _silent(_line: str) -> None:
    pass
