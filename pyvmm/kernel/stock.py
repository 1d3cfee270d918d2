"""The stock kernel: Debian's cloud kernel as it is, with the few modules that a guest needs."""

from __future__ import annotations

import os
from collections.abc import Callable

from pyvmm.cache import cache_dir
from pyvmm.errors import KernelError
from pyvmm.kernel import bzimage, debian, elf, making, modules, store

_META = "linux-image-cloud-amd64"
_MODULES = (
    "virtio_mmio",
    "virtio_blk",
    "vmw_vsock_virtio_transport",
    "virtio_rng",
    "ext4",
)


def fetch(progress: Callable[[str], None]) -> store.Kernel:
    """Download Debian's current cloud kernel (27 MB), unless the cache has it already.

    Raises KernelError: no apt, no network, or a package of another make-up.
    """
    progress(f"asking apt for {_META}")
    package = debian.dependency(_META, "linux-image-")
    version = debian.archive_name(package).split("_")[1]
    key = f"stock-{version}"
    if store.load(os.path.join(cache_dir("kernels"), key), "stock") is None:
        progress(f"downloading {package} {version}")
        _make(package, key, progress)
    return making.select("stock", key)


def _make(package: str, key: str, progress: Callable[[str], None]) -> None:
    with making.staging() as unpacked, making.staging() as made:
        debian.unpack(package, unpacked)
        progress("unpacking the kernel")
        images = list(unpacked.glob("boot/vmlinuz-*"))
        if len(images) != 1:
            raise KernelError(f"package {package} has {len(images)} kernel images, not one")
        vmlinux = bzimage.unpack(images[0].read_bytes())
        brought = modules.closure(unpacked, _MODULES)
        image = elf.inspect(vmlinux, brought)
        (made / "vmlinux").write_bytes(vmlinux)
        (made / "modules").mkdir()
        for name, data in brought.items():
            (made / "modules" / f"{name}.ko").write_bytes(data)
        making.save(made, image, "vmlinux", [f"modules/{name}.ko" for name in brought])
        making.publish(made, key)
