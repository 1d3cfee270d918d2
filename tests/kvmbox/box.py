"""Builds the box: a Debian tree on a raw ext4 disk, its kernel, and an initramfs to get there.

Needs root (debootstrap), debootstrap, busybox-static and mkfs.ext4. Everything ends up in the cache
under a digest of the recipe, so a changed recipe is a new box.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pyvmm import initramfs
from pyvmm.cache import cache_dir
from pyvmm.kernel import bzimage, debian, modules

HERE = Path(__file__).parent
RECIPE = ("box.py", "box_init", "initramfs_init", "launcher")
PACKAGES = (
    "busybox-static",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "libext2fs2",
    "procps",
    "python3",
    "python3-cffi-backend",
    "python3-pyelftools",
    "python3-pytest",
    "qemu-system-x86",
    "strace",
    "umoci",
)
MODULES = (
    "virtio_pci",
    "virtio_blk",
    "crc32c_generic",  # ext4 asks for it by its algorithm, not by its name
    "ext4",
    "9pnet_virtio",
    "9p",
    "virtio_console",
    "kvm_amd",
    "vhost_vsock",
    "tun",
    "bridge",
    "veth",
    "overlay",
    "loop",
)
DISK_SIZE = "8G"  # sparse; what the tree leaves is room for the tests


@dataclass(frozen=True)
class Box:
    kernel: Path
    initramfs: Path
    disk: Path


def box() -> Box:
    """Return the box, built (in some 3 minutes) if the cache has none of this recipe."""
    digest = hashlib.sha256()
    for name in RECIPE:
        digest.update((HERE / name).read_bytes())
    place = Path(cache_dir("kvmbox")) / f"box-{digest.hexdigest()[:16]}"
    if not place.exists():
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=cache_dir("kvmbox")))
        try:
            _build(temporary)
            (temporary / "box").rename(place)
        finally:
            shutil.rmtree(temporary)
    return Box(place / "vmlinux", place / "initramfs.cpio", place / "disk.ext4")


def make_disk(tree: Path, disk: Path, size: str) -> None:
    """Put a directory tree on a raw, sparse ext4 disk. No journal: nobody keeps these disks."""
    fresh = disk.with_name(disk.name + ".tmp")
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-d", tree, fresh, size)
    fresh.replace(disk)


def _build(work: Path) -> None:
    tree, kernel, made = work / "tree", work / "kernel", work / "box"
    kernel.mkdir()
    made.mkdir()
    _say("kvmbox: making the Debian tree")
    suite = release("VERSION_CODENAME")
    include = f"--include={','.join(PACKAGES)}"
    _run("debootstrap", "--variant=minbase", include, suite, tree, mirror(suite))
    _finish(tree)
    make_disk(tree, made / "disk.ext4", DISK_SIZE)
    _say("kvmbox: getting the box's kernel")
    debian.unpack(debian.dependency("linux-image-amd64", "linux-image-"), kernel)
    (vmlinuz,) = kernel.glob("boot/vmlinuz-*")
    # Unpacked here, because a software CPU takes five seconds for it, at every boot.
    (made / "vmlinux").write_bytes(bzimage.unpack(vmlinuz.read_bytes()))
    (made / "initramfs.cpio").write_bytes(_initramfs(tree / "bin/busybox", kernel))


def _finish(tree: Path) -> None:
    for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
        shutil.rmtree(tree / waste, ignore_errors=True)
    for directory in ("share", "opt/pyvmm", "root/.cache/pyvmm/kernels"):
        (tree / directory).mkdir(parents=True)
    (tree / "etc/hosts").write_text("127.0.0.1 localhost kvmbox\n::1 localhost\n")
    (tree / "usr/lib/python3/dist-packages/pyvmm.pth").write_text("/opt/pyvmm\n")
    shutil.copy(HERE / "box_init", tree / "sbin/box_init")
    shutil.copy(HERE / "launcher", tree / "usr/local/bin/pyvmm")


def _initramfs(busybox: Path, kernel: Path) -> bytes:
    directory, program = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    entries = [initramfs.Entry(name, directory) for name in ("bin", "dev", "root", "modules")]
    entries += [
        initramfs.Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        initramfs.Entry("bin/busybox", program, busybox.read_bytes()),
        initramfs.Entry("init", program, (HERE / "initramfs_init").read_bytes()),
    ]
    for index, module in enumerate(modules.closure(kernel, MODULES).values()):
        entries.append(initramfs.Entry(f"modules/{index:02}.ko", stat.S_IFREG | 0o644, module))
    return initramfs.cpio(entries)


def mirror(suite: str) -> str:
    """Return the repository that this host's apt uses for ``suite``."""
    targets = ("Created-By: Packages", "Component: main", f"Codename: {suite}")
    found = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", *targets).split()
    if not found:
        raise SystemExit(f"kvmbox: apt knows no repository of {suite}: is `apt-get update` needed?")
    return found[0]


def release(key: str) -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == key:
            return value.strip('"')
    raise SystemExit(f"kvmbox: /etc/os-release has no {key}; the box is made on Debian")


def _run(*command: str | Path) -> str:
    done = subprocess.run(
        command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise SystemExit(f"kvmbox: {command[0]} failed ({done.returncode}):\n{tail}")
    return done.stdout


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
