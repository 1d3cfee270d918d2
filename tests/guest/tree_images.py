"""Images whose trees are held against the reference, each with its listing (reference.py).

What umoci 0.4.7 cannot read it gets in another form: zstd as gzip, GNU's old sparse file as one
without holes. It puts its own directory before each name, so a path of 4,095 bytes is GNU tar's to
unpack, and without "./" before it.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import images
import tree_layers as layers
from images import Layout, layer
from reference import (
    Unpack,
    build,
    build_lister,
    list_tree,
    run,
    unpack_with_tar,
    unpack_with_umoci,
)

Store = Callable[[bytes], tuple[bytes, str]]


def plain(stream: bytes) -> tuple[bytes, str]:
    return stream, images.OCI_LAYER


def gzipped(stream: bytes) -> tuple[bytes, str]:
    """In several members, each cut inside a block of tar."""
    step = len(stream) // 3 + 100
    members = [stream[start : start + step] for start in range(0, len(stream), step)]
    return b"".join(gzip.compress(each, 1, mtime=0) for each in members), f"{images.OCI_LAYER}+gzip"


def zstd(stream: bytes) -> tuple[bytes, str]:
    from backports import zstd

    return zstd.compress(stream), f"{images.OCI_LAYER}+zstd"


def make(target: Path) -> None:
    """Make the generated images and their listings in a directory."""
    target.mkdir()
    with tempfile.TemporaryDirectory(prefix="pyvmm-", dir="/tmp") as name:
        work = Path(name)
        lister = build_lister(work)
        base = layers.skeleton(lister)
        stored(target, "ustar", plain, layers.ustar(base))
        stored(target, "gnu", gzipped, layers.gnu(base))
        stored(target, "pax", zstd, layers.pax(base))
        holes, whole = layers.sparse(work)
        stored(target, "sparse", gzipped, layer(*base), *holes, readable=[layer(*base), *whole])
        stored(target, "whiteouts", plain, *layers.whiteouts(base))
        stored(target, "links", zstd, *layers.links(base))
        stored(target, "replaced", plain, *layers.replaced(base))
        stored(target, "many", gzipped, layers.many(base))
        stored(
            target,
            "deep",
            plain,
            layers.deep(base, "./"),
            readable=[layers.deep(base, "")],
            by=unpack_with_tar,
        )
        stored(target, "bare", plain, layer(base[0], base[-1]))
        repacked(target, work, layer(*base))
        built(target, work, lister)


def stored(
    target: Path,
    name: str,
    store: Store,
    *streams: bytes,
    readable: Sequence[bytes] | None = None,
    by: Unpack | None = None,
) -> None:
    """An image with its layers in one form, and the listing of them in a ``readable`` one."""
    image(target / name, store, streams)
    with tempfile.TemporaryDirectory(prefix="pyvmm-", dir="/tmp") as work:
        oci = Path(work, "oci")
        image(oci, gzipped if store is zstd else store, readable or streams)
        list_tree(target / f"{name}.listing", f"{oci}:latest", by or unpack_with_umoci)


def image(path: Path, store: Store, streams: Sequence[bytes]) -> None:
    made = Layout(path)
    config = made.document(made.configuration(streams, Cmd=["/lister"]), images.OCI_CONFIG)
    made.refer(made.manifest(config, [made.blob(*store(each)) for each in streams]), "latest")


def repacked(target: Path, work: Path, base: bytes) -> None:
    """As umoci writes layers: a tree changed in many ways, and packed again."""
    oci = target / "repacked"
    archive, bundle = work / "base.layer", work / "repack"
    archive.write_bytes(base)
    run("umoci", "init", "--layout", oci)
    run("umoci", "new", "--image", f"{oci}:latest")
    run("umoci", "raw", "add-layer", "--image", f"{oci}:latest", archive)
    run("umoci", "unpack", "--image", f"{oci}:latest", bundle)
    root = bundle / "rootfs"
    for name in ("a", "b", "gone"):
        (root / name).mkdir()
        (root / name / "f").write_text(name)
    os.link(root / "a/f", root / "a/g")
    os.setxattr(root / "a/f", "user.note", b"\0\xff")
    os.setxattr(root / "a/f", "security.capability", layers.CAPABILITY)
    os.chown(root / "b/f", 70000, 70001)
    os.chmod(root / "b/f", 0o6755)
    os.mkfifo(root / "b/fifo")
    os.mknod(root / "b/device", 0o20666, os.makedev(1, 7))
    os.utime(root / "b", ns=(0, -1_500_000_000))
    run("umoci", "repack", "--refresh-bundle", "--image", f"{oci}:latest", bundle)
    shutil.rmtree(root / "gone")
    (root / "gone").symlink_to("a")  # umoci writes the link, and a whiteout below it
    (root / "a/g").unlink()
    (root / "b/fifo").unlink()
    (root / "b/fifo").mkdir()
    os.link(root / "b/f", root / "b/again")
    run("umoci", "repack", "--refresh-bundle", "--image", f"{oci}:latest", bundle)
    run("umoci", "config", "--image", f"{oci}:latest", "--config.cmd", "/lister")
    list_tree(target / "repacked.listing", f"{oci}:latest", unpack_with_umoci)


def built(target: Path, work: Path, lister: Path) -> None:
    """As buildah writes layers."""
    context = work / "context"
    for name in ("dev", "proc", "run", "sys", "tmp", "bin", "etc", "old"):
        (context / "tree" / name).mkdir(parents=True)
    shutil.copy(lister, context / "tree")
    shutil.copy(shutil.which("busybox") or "/bin/busybox", context / "tree/bin/busybox")
    os.link(context / "tree/bin/busybox", context / "tree/bin/sh")
    for name, text in layers.NAMES.items():
        (context / "tree" / name).write_bytes(text)
    (context / "tree/old/f").write_text("old\n")
    (context / "Dockerfile").write_text(
        "FROM scratch\n"
        "COPY tree/ /\n"
        "RUN busybox ln /bin/busybox /bin/env && busybox chmod 4755 /bin/busybox\n"
        "RUN busybox rm -r /old && busybox ln -s bin /old && busybox mkfifo /run/fifo\n"
        "RUN busybox rm /old && busybox mkdir /old && busybox touch -d @-5 /old/new\n"
        'CMD ["/lister"]\n'
    )
    build(context, work, target / "buildah")
    list_tree(target / "buildah.listing", f"{target}/buildah:latest", unpack_with_umoci)
