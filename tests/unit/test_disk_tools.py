"""Images of other tools, and the disk as Linux mounts it, held against ``umoci unpack``."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm.oci import open_image

from .images import (
    device,
    directory,
    fifo,
    file,
    hard_link,
    layer,
    layout,
    opaque,
    symlink,
    whiteout,
)
from .test_disk import MIB, Maker, base_disk, check, make

__all__ = ["make"]


def run(*command: object, cwd: Path | None = None) -> None:
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if not shutil.which(tool)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@contextmanager
def mounted(disk: Path, point: Path) -> Iterator[Path]:
    point.mkdir()
    if subprocess.run(["mount", "-o", "loop,ro", disk, point], capture_output=True).returncode:
        pytest.skip("cannot mount (no root, or no loop devices)")
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


def scan(root: Path) -> dict[bytes, object]:
    """All that can be seen of a tree, by path. Hard links are seen as the paths that are one."""
    found: dict[bytes, object] = {}
    first: dict[int, bytes] = {}
    base = os.fsencode(root)
    for parent, directories, files in os.walk(base):
        for name in sorted(directories + files):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            content = b""
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as opened:
                    content = hashlib.file_digest(opened, "sha256").digest()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            relative = path[len(base) :]
            is_directory = stat.S_ISDIR(status.st_mode)
            found[relative] = (
                status.st_mode,
                (status.st_uid, status.st_gid),
                status.st_rdev,
                0 if is_directory else status.st_size,
                status.st_nlink,
                status.st_mtime_ns,
                content,
                {x: os.getxattr(path, x, follow_symlinks=False) for x in xattrs(path)},
                relative if is_directory else first.setdefault(status.st_ino, relative),
            )
    return found


def xattrs(path: bytes) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def check_against_umoci(make: Maker, oci: Path, ref: str = "latest") -> dict[bytes, object]:
    if os.geteuid():
        pytest.skip("umoci keeps owners and devices only for root")
    disk = base_disk(open_image(f"{oci}:{ref}"), 64 * MIB)
    check(disk)
    run("umoci", "unpack", "--image", f"{oci}:{ref}", make.path / "bundle")
    expected = scan(make.path / "bundle" / "rootfs")
    with mounted(disk, make.path / "mnt") as root:
        assert scan(root) == expected
    return expected


@needs("umoci")
def test_every_kind_of_entry(make: Maker) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    tree = check_against_umoci(
        make,
        layout(
            make.path / "oci",
            layer(
                directory("d", mode=0o2775, uid=5, gid=6, mtime=1000.25),
                file("d/suid", b"x" * 5000, mode=0o6755, mtime=1700000000.123456),
                file("d/capable", b"y", xattrs={"security.capability": capability}),
                file("d/user", xattrs={"user.one": b"1", "user.two": b"\0\xff"}),
                hard_link("hard", "d/suid"),
                symlink("fast", "d/suid"),
                symlink("slow", "/" + "s" * 100),
                hard_link("hard-link-to-link", "fast"),
                fifo("fifo", mode=0o600),
                device("null", "c", 1, 3),
                device("disk", "b", 259, 300),
                file(b"\xff\xfe not unicode"),
                file("n" * 255),
                directory("sticky", mode=0o1777),
                file("later", mtime=2**33),
            ),
        ),
    )
    assert len(tree) == 15


@needs("umoci")
def test_merging(make: Maker) -> None:
    """Every rule that umoci and the specification agree on."""
    base = layer(
        *(directory(f"d{n}", mtime=n) for n in range(9)),
        *(file(f"d{n}/{name}", name.encode(), mtime=n) for n in range(9) for name in "abc"),
        directory("usr", mtime=1),
        directory("usr/bin", mtime=1),
        symlink("bin", "/usr/bin"),
        symlink("to-d1", "d1"),
        symlink("dangling", "/none"),
        hard_link("h1", "d1/a"),
        hard_link("h2", "d1/a"),
        *(file(f"x{n}", b"x", mtime=1) for n in range(5)),
    )
    second = layer(
        whiteout("d0"),
        whiteout("d1/b"),
        opaque("d2"),
        directory("d2", mtime=50),
        file("d2/new", b"new", mtime=51),
        file("d3", b"file over directory", mtime=52),
        directory("x0", mtime=53),
        symlink("x1", "x2"),
        hard_link("x3", "d1/a"),
        fifo("d4", mtime=54),
        file("d5/late", b"1", mtime=55),
        opaque("d5"),
        directory("d6", mode=0o700, uid=9, mtime=56),
        whiteout("dangling"),
        whiteout("h1"),
        file("bin/sh", b"through the link", mtime=57),
        whiteout("x4"),
        file("x4", b"again", mtime=58),
        directory("to-d1", mtime=59),
    )
    third = layer(whiteout("d1/a"), whiteout("d6"), file("h2/../d7/up", b"2", mtime=60))
    tree = check_against_umoci(make, layout(make.path / "oci", base, second, third))
    assert b"/usr/bin/sh" in tree
    assert b"/d7/up" in tree


def test_linux_finds_every_name_of_large_directories(make: Maker) -> None:
    small = [f"small/{number}" for number in range(1000)]
    large = [f"large/{number:06}-{'x' * 50}" for number in range(40_000)]
    image = make.image(layer(*(file(name) for name in small + large)))
    with mounted(base_disk(open_image(image), 256 * MIB), make.path / "mnt") as root:
        assert sorted(f"small/{name}" for name in os.listdir(root / "small")) == sorted(small)
        assert sorted(f"large/{name}" for name in os.listdir(root / "large")) == large
        assert all(os.path.exists(root / name) for name in small + large)
        assert not (root / "large" / "none").exists()


def busybox_tree(path: Path) -> Path:
    (path / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", path / "bin")
    os.link(path / "bin" / "busybox", path / "bin" / "sh")
    (path / "etc").mkdir()
    (path / "etc" / "motd").write_text("hello\n")
    (path / "opt" / "gone").mkdir(parents=True)
    (path / "opt" / "gone" / "f").write_text("f")
    return path


@needs("umoci", "busybox")
def test_umoci_repack(make: Maker) -> None:
    oci = make.path / "oci"
    tree = busybox_tree(make.path / "tree")
    run("umoci", "init", "--layout", oci)
    run("umoci", "new", "--image", f"{oci}:t")
    run("umoci", "insert", "--image", f"{oci}:t", tree, "/")
    run("umoci", "unpack", "--image", f"{oci}:t", make.path / "work")
    root = make.path / "work" / "rootfs"
    shutil.rmtree(root / "opt" / "gone")
    (root / "opt" / "gone").symlink_to("../etc")  # repack: the link, and a whiteout below it
    (root / "etc" / "motd").unlink()
    (root / "etc" / "motd").mkdir()
    run("umoci", "repack", "--image", f"{oci}:t", make.path / "work")
    run("umoci", "config", "--image", f"{oci}:t", "--config.cmd", "/bin/sh")
    seen = check_against_umoci(make, oci, "t")
    assert sorted(seen) == sorted(
        b"/bin /bin/busybox /bin/sh /etc /etc/motd /opt /opt/gone".split()
    )
    assert open_image(f"{oci}:t").config.cmd == ("/bin/sh",)


@needs("umoci", "buildah", "busybox")
def test_buildah(make: Maker) -> None:
    context = make.path / "context"
    busybox_tree(context / "tree")
    (context / "Dockerfile").write_text(
        "FROM scratch\n"
        "COPY tree/ /\n"
        'SHELL ["/bin/busybox", "sh", "-c"]\n'
        "RUN busybox rm -r /opt/gone && busybox ln -s /etc /opt/gone && busybox chmod u+s /bin/sh\n"
        'ENV A=1\nWORKDIR /etc\nENTRYPOINT ["/bin/sh", "-c"]\nCMD ["ls"]\nUSER 3:4\n'
    )
    store = ["--root", make.path / "store", "--runroot", make.path / "runroot"]
    buildah = ["buildah", *store, "--storage-driver", "vfs"]
    result = subprocess.run(
        [*buildah, "bud", "--isolation", "chroot", "--layers", "-t", "demo", context],
        capture_output=True,
        text=True,
    )
    if result.returncode:
        pytest.skip(f"buildah cannot build here: {result.stderr.strip().splitlines()[-1:]}")
    oci = make.path / "oci"
    run(*buildah, "push", "demo", f"oci:{oci}:latest")
    seen = check_against_umoci(make, oci)
    assert b"/opt/gone" in seen
    config = open_image(oci).config
    assert (config.entrypoint, config.cmd) == (("/bin/sh", "-c"), ("ls",))
    assert (config.workdir, config.user) == ("/etc", "3:4")
    assert "A=1" in config.env


@needs("skopeo")
@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive", "oci zstd"])
def test_skopeo(make: Maker, kind: str) -> None:
    stream = layer(directory("d"), file("d/f", os.urandom(99999)))
    source = layout(make.path / "oci", stream, layer(file("g", b"2")), Cmd=["/g"])
    target = make.path / "copy"
    options: list[str] = []
    transport = kind
    if kind == "oci zstd":
        transport, options = "oci", ["--dest-compress", "--dest-compress-format", "zstd"]
    run("skopeo", "copy", *options, f"oci:{source}:latest", f"{transport}:{target}:demo:1")
    image = open_image(target)
    expected = open_image(source)
    assert image.config == expected.config
    assert [each.diff_id for each in image.layers] == [each.diff_id for each in expected.layers]
    disk = base_disk(image, 16 * MIB)
    check(disk)
    assert disk.read_bytes() == base_disk(expected, 16 * MIB).read_bytes()
