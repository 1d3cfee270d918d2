"""What other tools make of an image: the listing of the tree that they unpack.

Beside each image NAME is NAME.listing: what lister.c sees of it, unpacked by root.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent

Unpack = Callable[[str, Path], None]


def list_tree(listing: Path, reference: str, unpack: Unpack) -> None:
    """Write the listing of what a tool unpacks from ``DIRECTORY:TAG``."""
    with tempfile.TemporaryDirectory(prefix="pyvmm-", dir="/tmp") as work:
        unpack(reference, Path(work, "bundle"))
        root = Path(work, "bundle", "rootfs")
        with listing.open("wb") as out:
            subprocess.run([root / "lister", root], check=True, stdout=out)


def unpack_with_umoci(reference: str, bundle: Path) -> None:
    run("umoci", "unpack", "--image", reference, bundle)


def unpack_with_tar(reference: str, bundle: Path) -> None:
    """For an image of one plain layer, the largest of its blobs."""
    root = bundle / "rootfs"
    root.mkdir(parents=True)
    blobs = Path(reference.partition(":")[0], "blobs", "sha256")
    run("tar", "--numeric-owner", "--delay-directory-restore", "-C", root, "-xpf",
        max(blobs.iterdir(), key=lambda path: path.stat().st_size))  # fmt: skip


def build_lister(work: Path) -> Path:
    lister = work / "lister"
    run("gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-s", "-o", lister,
        HERE / "lister.c")  # fmt: skip
    return lister


def build(context: Path, work: Path, oci: Path) -> None:
    """Make the layout of a Dockerfile, without a daemon."""
    store = ("--root", work / "store", "--runroot", work / "runroot", "--storage-driver", "vfs")
    run("buildah", *store, "bud", "--isolation", "chroot", "--layers", "-t", "made", context)
    run("buildah", *store, "push", "made", f"oci:{oci}:latest")


def run(*command: str | Path) -> str:
    done = subprocess.run(command, check=False, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed ({done.returncode}): {done.stderr.strip()}")
    return done.stdout
