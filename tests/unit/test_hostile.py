"""Images made to reach the host. What they aim at stays as it is, by names, inodes, modes, times,
contents and links; and the disk has the tree that ``umoci unpack`` makes as root, or there is none.

Most of these did reach the host in another runner. Sizes and headers that lie are in
test_disk_tar.py, too; documents and references that lie in test_oci.py.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.oci import open_image

from .ext4_reader import Disk
from .images import (
    Entry,
    device,
    directory,
    entry,
    fifo,
    file,
    hard_link,
    layer,
    opaque,
    symlink,
    whiteout,
)
from .test_disk import MIB, Maker, base_disk, check, make
from .test_disk_tools import needs, run

__all__ = ["make"]

CAPABILITY = {"security.capability": bytes.fromhex("0100000200040000000000000000000000000000")}
Attack = Callable[[str], list[Entry]]


class Decoy:
    """A directory of the host that looks worth having."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "d" / "e").mkdir(parents=True)
        for name, mode in (("secret", 0o600), ("suid", 0o4755), ("d/f", 0o644), ("d/e/g", 0o640)):
            (path / name).write_bytes(name.encode())
            (path / name).chmod(mode)
        os.link(path / "secret", path / "d" / "linked")
        (path / "link").symlink_to("secret")
        os.mkfifo(path / "fifo")
        self.before = self.snapshot()

    def snapshot(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for each in [self.path, *self.path.rglob("*")]:
            status = each.lstat()
            numbers = (status.st_ino, status.st_mode, status.st_nlink, status.st_uid, status.st_gid)
            times = (status.st_mtime_ns, status.st_ctime_ns)
            regular = stat.S_ISREG(status.st_mode)
            content = each.read_bytes() if regular else os.listdir(each) if each.is_dir() else b""
            found[str(each)] = (numbers, times, content)
        return found

    def check(self) -> None:
        assert self.snapshot() == self.before


@pytest.fixture
def decoy(tmp_path: Path) -> Decoy:
    return Decoy(tmp_path / "host")


def through(*entries: Entry) -> Attack:
    """The entries, after ``l`` has become a link to what is aimed at."""
    return lambda host: [symlink("l", host), *entries]


def climbing(path: str) -> str:
    return "../" * 30 + path.lstrip("/")


HIGH = {"mode": 0o6777, "uid": 0, "gid": 0}

SAME: dict[str, Attack] = {
    # Through a link to a directory
    "whiteout": through(whiteout("l/secret"), whiteout("l/d")),
    "opaque": through(opaque("l"), opaque("l/d")),
    "parents": through(file("l/made/by/us", b"x")),
    "file": through(file("l/secret", b"ours"), file("l/new", b"ours")),
    "set-uid": through(file("l/suid", b"ours", **HIGH), file("l/d/f", **HIGH, xattrs=CAPABILITY)),
    "directory below": through(directory("l/d", **HIGH), directory("l/d/e", **HIGH)),
    "directory over a link": through(directory("l", **HIGH)),
    "directory over a link with its name's end": through(directory("l/", **HIGH)),
    "file over a link": lambda host: [symlink("l", f"{host}/secret"), file("l", b"ours", **HIGH)],
    "fifo": through(fifo("l/fifo", mode=0o777), fifo("l/secret")),
    "device": through(device("l/secret", "b", 8, 0), device("l/null", "c", 1, 3)),
    "link": through(symlink("l/secret", "/etc/passwd"), symlink("l/d", "/")),
    "links to links": lambda host: [
        symlink("a", host),
        symlink("b", "a/d"),
        symlink("c", "b/e"),
        file("c/g", b"ours"),
        file("b/f", b"ours"),
        whiteout("c/f"),
    ],
    "replaced on the way": lambda host: [
        directory("l"),
        file("l/secret", b"1"),
        symlink("l", host),
        file("l/secret", b"ours"),
        directory("l"),
        file("l/d/f", b"ours"),
    ],
    # By name
    "upwards": lambda host: [
        file(climbing(f"{host}/secret"), b"ours"),
        directory(climbing(f"{host}/d"), **HIGH),
        whiteout(climbing(f"{host}/suid")),
        opaque(climbing(f"{host}/d")),
    ],
    "upwards in the middle": lambda host: [file(f"a/b/{climbing(host)}/secret", b"ours")],
    "upwards through a link": lambda host: [
        symlink("l", "../" * 20),
        file(f"l/../..{host}/secret", b"ours"),
    ],
    "absolute": lambda host: [
        file(f"{host}/secret", b"ours"),
        whiteout(f"{host}/d"),
        opaque(host),
        directory(host, **HIGH),
    ],
    "only dots": lambda host: [
        directory("..", **HIGH),
        directory("../..", mode=0o700),
        opaque(".."),
    ],
    # Files that a runner writes into the image, and what it mounts over
    "init": lambda host: [symlink("init", f"{host}/secret"), symlink("sbin", host)],
    "etc": lambda host: [symlink("etc", host), file("etc/passwd", b"ours")],
    "dev": lambda host: [file("dev"), symlink("proc", host), symlink("sys", f"{host}/none")],
    # What a runner that is too careful refuses, or takes for something else
    "links inside": lambda host: [
        directory("usr/bin"),
        symlink("bin", "/usr/bin"),
        file("bin/sh", b"1"),
        hard_link("bin/bash", "bin/sh"),
    ],
    "hard link over a name": lambda host: [
        file("a", b"1"),
        file("b", b"2"),
        hard_link("b", "a"),
    ],
    "dangling links": lambda host: [
        symlink("l", f"{host}/none"),
        whiteout("l"),
        symlink("m", host),
    ],
    "names that are no text": lambda host: [
        file(b"\xff", b"1"),
        file(b"\xfe", b"2"),
        file("\ufffd"),
    ],
}

FAILS: dict[str, tuple[Attack, str]] = {
    "hard link through a link": (
        through(hard_link("leak", "l/secret")),
        "{host}: no such directory",
    ),
    "hard link by an absolute name": (
        lambda host: [hard_link("leak", f"{host}/suid")],
        "{inside}: no such directory",
    ),
    "hard link upwards": (
        lambda host: [hard_link("leak", climbing(f"{host}/suid"))],
        "{inside}: no such directory",
    ),
    "hard link to a link, and through it": (
        lambda host: [symlink("l", host), hard_link("m", "l"), hard_link("leak", "m/d/f")],
        "{host}: no such directory",
    ),
    "hard link to a directory": (
        lambda host: [directory("x"), hard_link("leak", "x")],
        "leak: hard link to x, which is a directory",
    ),
    "hard link to a file's parent": (
        lambda host: [file("x"), hard_link("leak", "x/../none")],
        "leak: hard link to x/../none, which is not in the image",
    ),
    "root": (lambda host: [symlink(".", host)], "the root is not a directory"),
    "root by dots": (lambda host: [symlink("a/..", host)], "the root is not a directory"),
    "below a file": (lambda host: [file("f"), file("f/x")], "f: f is not a directory"),
    "links that go round": (
        lambda host: [symlink("a", "b"), symlink("b", "a"), file("a/x")],
        "a: too many symbolic links",
    ),
}


def layers(entries: list[Entry], apart: bool) -> list[bytes]:
    return [layer(each) for each in entries] if apart else [layer(*entries)]


def contents(disk: Disk) -> dict[bytes, object]:
    """What scan() says of a tree, but for times: umoci has no time for the directories it makes."""
    first: dict[int, bytes] = {}
    found: dict[bytes, object] = {}
    for path, node in sorted(disk.paths.items()):
        is_directory = stat.S_ISDIR(node.mode)
        is_device = stat.S_ISBLK(node.mode) or stat.S_ISCHR(node.mode)
        has_data = stat.S_ISREG(node.mode) or stat.S_ISLNK(node.mode)
        found[path] = (
            node.mode,
            node.owner,
            node.device if is_device else (0, 0),
            None if is_directory else node.links,
            node.data if has_data else b"",
            node.xattrs,
            None if is_directory else first.setdefault(node.number, path),
        )
    return found


def unpacked(root: Path) -> dict[bytes, object]:
    first: dict[int, bytes] = {}
    found: dict[bytes, object] = {}
    for each in sorted(os.fsencode(path) for path in [root, *root.rglob("*")]):
        status = os.lstat(each)
        path = each[len(os.fsencode(root)) + 1 :]
        is_directory = stat.S_ISDIR(status.st_mode)
        data = b""
        if stat.S_ISREG(status.st_mode):
            data = Path(os.fsdecode(each)).read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            data = os.readlink(each)
        found[path] = (
            status.st_mode,
            (status.st_uid, status.st_gid),
            (os.major(status.st_rdev), os.minor(status.st_rdev)),
            None if is_directory else status.st_nlink,
            data,
            {
                os.fsencode(name): os.getxattr(each, name, follow_symlinks=False)
                for name in os.listxattr(each, follow_symlinks=False)
            },
            None if is_directory else first.setdefault(status.st_ino, path),
        )
    return found


@needs("umoci")
@pytest.mark.parametrize("attack", SAME)
@pytest.mark.parametrize(
    ("apart", "address"), [(False, climbing), (True, str)], ids=["a layer, climbing", "layers"]
)
def test_the_tree_is_the_reference_s(
    make: Maker, decoy: Decoy, attack: str, apart: bool, address: Callable[[str], str]
) -> None:
    if os.geteuid():
        pytest.skip("umoci keeps owners and devices only for root")
    oci = make.image(*layers(SAME[attack](address(str(decoy.path))), apart))
    disk = base_disk(open_image(oci), 2 * MIB)
    decoy.check()
    check(disk)
    run("umoci", "unpack", "--image", f"{oci}:latest", make.path / "bundle")
    decoy.check()
    assert contents(Disk(disk)) == unpacked(make.path / "bundle" / "rootfs")


@pytest.mark.parametrize("attack", FAILS)
@pytest.mark.parametrize("apart", [False, True], ids=["a layer", "layers"])
def test_refused(make: Maker, decoy: Decoy, attack: str, apart: bool) -> None:
    build, words = FAILS[attack]
    host = str(decoy.path)
    message = make.fails(*layers(build(host), apart))
    decoy.check()
    assert make.disks() == []
    assert message.partition(": ")[2] == words.format(host=host, inside=host.lstrip("/"))


def claiming(size: bytes) -> bytes:
    """``l/secret`` with that size field, and a little less data than it says."""
    block = bytearray(file("l/secret")[0].tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"ours".ljust(512, b"\0")


PAX_BOMB = layer(entry("h", tarfile.XHDTYPE, b"x" * (2 * MIB)), file("l/secret"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (claiming(b"77777777777\0"), "the archive is truncated"),
        (claiming(b"00000001001\0"), "the archive is truncated"),
        (claiming(b"\xff" * 12), "a tar header has a bad size"),
        (claiming(b"\x80\0\0\0\x7f" + b"\xff" * 7), "a tar header has a bad size"),
        (claiming(b"-0000000001\0"), "a tar header has a bad size"),
        (PAX_BOMB, "an extended tar header is larger than 1 MiB"),
    ],
    ids=["huge", "cut", "negative", "63 bits", "minus", "PAX bomb"],
)
def test_damage_behind_a_link(make: Maker, decoy: Decoy, damage: bytes, words: str) -> None:
    link = layer(symlink("l", str(decoy.path)))[:512]
    message = make.fails(link + damage)
    decoy.check()
    assert make.disks() == []
    assert message.partition(": ")[2] == words


# Where this is not as umoci: it fails, loses what the layer itself brought, or goes astray.
TREE = [directory("d"), file("d/f", b"1"), file("g", b"2"), symlink("l", "d")]
WHOLE = {b"", b"d", b"d/f", b"g", b"l"}
OTHERWISE: dict[str, tuple[list[Entry], set[bytes] | None, set[bytes]]] = {
    # A whiteout is about the lower layers' own directory: repack leaves such behind, see layer.c.
    "whiteout through a link": ([whiteout("l/f")], WHOLE - {b"d/f"}, WHOLE),
    "opaque through a link": ([opaque("l")], WHOLE - {b"d/f"}, WHOLE),
    # A whiteout of no name, of "." and of "..": umoci removes all there is, and fails.
    "whiteout of nothing": ([file(".wh."), file("d/.wh.")], None, WHOLE),
    "whiteout of a dot": ([file(".wh.."), file("d/.wh..")], None, WHOLE),
    "whiteout of the parent": ([file(".wh..."), file("d/.wh...")], None, WHOLE),
    "hard link to itself": ([hard_link("g", "g")], None, WHOLE),
}


@needs("umoci")
@pytest.mark.parametrize("case", OTHERWISE)
def test_otherwise_than_the_reference(make: Maker, case: str) -> None:
    entries, theirs, ours = OTHERWISE[case]
    oci = make.image(layer(*TREE), layer(*entries))
    assert set(contents(Disk(base_disk(open_image(oci), 2 * MIB)))) == ours
    bundle = make.path / "bundle"
    command = ["umoci", "unpack", "--image", f"{oci}:latest", bundle]
    done = subprocess.run(command, capture_output=True)
    assert (done.returncode == 0) == (theirs is not None)
    assert theirs is None or set(unpacked(bundle / "rootfs")) == theirs
