"""The layers of the images that are held against the reference (tree_images.py).

All parents have entries: umoci gives the time of day to directories that it makes, and to those
that they are made in. What init makes where it is missing is there: the directories that it mounts
over, and the files that name the machine.
"""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from images import (
    Entry,
    device,
    directory,
    fifo,
    file,
    hard_link,
    layer,
    opaque,
    symlink,
    whiteout,
)

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service+ep
# For mode 775: version 2, then tag, permissions and id: owner, user 5, group, mask, others
ACL = bytes.fromhex(
    "02000000 01000700ffffffff 0200060005000000 04000500ffffffff 10000700ffffffff 20000500ffffffff"
)
NAMES = {"etc/hosts": b"127.0.0.1 localhost\n", "etc/hostname": b"here\n"}
EPOCH = 1_700_000_000
MANY = 65_000  # entries of one directory


def skeleton(lister: Path) -> list[Entry]:
    return [
        directory("./", mtime=EPOCH),
        *(directory(name, mtime=EPOCH + 1) for name in ("dev", "etc", "proc", "run", "sys")),
        directory("tmp", mode=0o1777, mtime=EPOCH + 2),
        *(file(name, text, mtime=EPOCH + 2) for name, text in NAMES.items()),
        file("lister", lister.read_bytes(), mode=0o755, mtime=EPOCH + 3),
    ]


def at(made: Entry, time: str) -> Entry:
    """The entry with a PAX time, decimal and exact."""
    made[0].pax_headers["mtime"] = time
    return made


def ustar(base: list[Entry]) -> bytes:
    """What the oldest format says: every type, and a name in two parts."""
    parents = ["p" * 90, "p" * 90 + "/" + "q" * 50]
    return layer(
        *base,
        directory("kinds", mode=0o2775, uid=7, gid=8, mtime=EPOCH),
        file("kinds/empty", mtime=0),
        file("kinds/block", b"b" * 4096, mtime=1),
        file("kinds/more", bytes(range(256)) * 40, mode=0o4711, uid=2097151, gid=65536),
        file("kinds/both", b"#!/bin/sh\n", mode=0o6755, mtime=0o77777777777),
        file("kinds/none", b"secret\n", mode=0),
        symlink("kinds/relative", "../tmp", mtime=5),
        symlink("kinds/absolute", "/dev/null", uid=3, gid=4),
        symlink("kinds/dangling", "no/such/thing"),
        hard_link("kinds/same", "kinds/block"),
        hard_link("kinds/same-link", "kinds/dangling"),
        fifo("kinds/fifo", mode=0o640, uid=70000),
        device("kinds/null", "c", 1, 3),
        device("kinds/disk", "b", 259, 300),
        device("kinds/far", "c", 4095, 1048575),
        *(directory(name, mtime=6) for name in parents),
        file(parents[1] + "/" + "r" * 99, b"long\n"),
        format=tarfile.USTAR_FORMAT,
    )


def gnu(base: list[Entry]) -> bytes:
    """GNU's way to long names, large owners and times before 1970; names are any bytes."""
    return layer(
        *base,
        directory("d", uid=4294967294, gid=65536, mtime=-1),
        file("d/" + "n" * 255, b"1", uid=4294967294, mtime=-(2**31)),
        symlink("d/link", "t" * 1000, mtime=2**33),
        file(b"d/\xff\xfe not unicode", b"2", mtime=2**32),
        file(b"d/line\nbreak \\", b"3"),
        file("d/ünï".encode(), b"4"),
        hard_link("d/again", "d/" + "n" * 255),
        device("d/zero", "c", 1, 5),
        format=tarfile.GNU_FORMAT,
    )


def pax(base: list[Entry]) -> bytes:
    """Times to the nanosecond, owners of 32 bits, names of any bytes, extended attributes."""
    return layer(
        *base,
        at(directory("t"), "1700000000.123456789"),
        at(file("t/before"), "-1.25"),
        at(file("t/first"), "-2147483648"),
        at(file("t/last"), "9223372036.854775807"),  # that umoci can set; ext4 has later ones
        at(symlink("t/link", "before"), "1234567890.000000001"),
        at(fifo("t/fifo"), "2147483648.5"),
        directory("o", uid=4294967294, gid=4294967294),
        file("o/high", uid=65536, gid=4294967294),
        directory("x", xattrs={"user.of-a-directory": b"1"}, mode=0o1777),
        file("x/user", b"x", xattrs={"user.one": b"1", "user.two": bytes(range(256))}),
        file("x/large", xattrs={"user.large": b"v" * 3000}),
        file("x/capable", b"y", mode=0o755, xattrs={"security.capability": CAPABILITY}),
        file("x/trusted", xattrs={"trusted.note": b"\0"}),
        file("x/list", mode=0o775, xattrs={"system.posix_acl_access": ACL}),
        symlink("x/pointer", "user", xattrs={"trusted.of-a-link": b"2"}),
        directory(b"n\xff", mode=0o700),
        file(b"n\xff/" + b"\x80" * 255, b"1"),
        symlink(b"n\xff/link", "\udcff/\udc80"),
        file("n", b"a name before another's\n"),
        file("f" * 200 + ".txt", b"2"),
    )


def sparse(work: Path) -> tuple[list[bytes], list[bytes]]:
    """A file with holes by GNU tar in each of its forms; the same, the first without holes."""
    source = work / "sparse"
    source.mkdir()
    forms = ["--format=gnu", *(f"--sparse-version={version}" for version in ("0.0", "0.1", "1.0"))]
    layers = []
    for number, form in enumerate(forms):
        name = f"file{number}"
        with (source / name).open("wb") as out:
            for piece in range(60):  # more than an extension block of the GNU header holds
                out.seek(piece * 20_000 + number)
                out.write(bytes([piece, number]) * 300)
            out.truncate(4_000_000)
        layers.append(tar_file(source, name, "--sparse", form))
    assert all(len(each) < 1_000_000 for each in layers)
    return layers, [tar_file(source, "file0"), *layers[1:]]


def tar_file(place: Path, name: str, *options: str) -> bytes:
    kept = ("--mtime=@1700000000", "--owner=5", "--group=6")
    command = ["tar", "-C", str(place), "--format=pax", *options, *kept, "-cf", "-", name]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def whiteouts(base: list[Entry]) -> list[bytes]:
    """What is removed: files, trees, dangling links, one of several hard links, lower layers."""
    names = ("gone", "kept", "opaque-first", "opaque-last", "again")
    lower = layer(
        *base,
        *(directory(name, mtime=EPOCH) for name in names),
        *(file(f"{name}/{n}", name.encode(), mtime=n) for name in names for n in range(3)),
        directory("opaque-last/below", mtime=EPOCH),
        file("opaque-last/below/old", mtime=1),
        symlink("dangling", "/no/such/thing"),
        symlink("to-kept", "kept"),
        file("one", b"1", mtime=1),
        hard_link("two", "one"),
        hard_link("three", "one"),
        file("opaque", b"becomes a directory\n"),
        directory("became-a-file", mtime=1),
        file("became-a-file/x", mtime=1),
    )
    upper = layer(
        whiteout("gone"),
        whiteout("kept/1"),
        whiteout("dangling"),
        whiteout("to-kept"),
        whiteout("two"),
        whiteout("never-there"),
        whiteout("no-directory/x"),
        opaque("no-directory"),
        opaque("opaque-first"),
        file("opaque-first/new", b"new\n", mtime=2),
        file("opaque-last/new", b"new\n", mtime=2),
        opaque("opaque-last"),
        whiteout("again/0"),
        file("again/0", b"again\n", mtime=3),
        file("again/1", b"again\n", mtime=3),
        whiteout("again/1"),
        directory("opaque", mtime=4),
        opaque("opaque"),
        file("became-a-file", b"f", mtime=5),
        whiteout("became-a-file/x"),
    )
    third = layer(whiteout("kept"), directory("kept", mode=0o700, mtime=9), whiteout("one"))
    return [lower, upper, third]


def links(base: list[Entry]) -> list[bytes]:
    """A merged /usr written through its links, and hard links from layer to layer."""
    lower = layer(
        *base,
        directory("usr", mtime=1),
        directory("usr/bin", mtime=1),
        directory("usr/lib", mtime=1),
        symlink("bin", "usr/bin", mtime=1),
        symlink("lib", "/usr/lib", mtime=1),
        symlink("usr/up", "../../../../usr", mtime=1),
        file("usr/bin/sh", b"shell", mode=0o755, mtime=2),
        file("data", b"data" * 2000, uid=9, mtime=3),
        file("taken", b"old", mtime=3),
        file("linked-later", b"once", mtime=3),
    )
    upper = layer(
        file("bin/through", b"1", mtime=4),
        directory("lib/made", mtime=5),
        file("lib/made/here", b"2", mtime=6),
        file("usr/up/up/lib/upwards", b"3", mtime=7),
        file("lib/../bin/lexical", b"4", mtime=8),
        hard_link("bin/bash", "bin/sh"),
        hard_link("taken", "data"),
        hard_link("usr/lib/data", "/data"),
        hard_link("link", "bin"),
        file("linked-later", b"twice", mtime=9),
    )
    third = layer(
        file("bin/sh", b"another", mode=0o755, mtime=10),
        hard_link("again", "linked-later"),
        whiteout("data"),
        directory("lib", mtime=11),
    )
    return [lower, upper, third]


KINDS: dict[str, Callable[[str], Entry]] = {
    "file": lambda name: file(name, b"contents", mtime=1),
    "directory": lambda name: directory(name, mtime=2),
    "link": lambda name: symlink(name, "/target", mtime=3),
    "dangling": lambda name: symlink(name, "/none", mtime=4),
    "fifo": lambda name: fifo(name, mtime=5),
    "device": lambda name: device(name, "b", 7, 0),
    "hard": lambda name: hard_link(name, "other"),
}


def replaced(base: list[Entry]) -> list[bytes]:
    """Every type in the place of every other, with an extended attribute that must go."""
    pairs = [(old, new, f"{old}-{new}") for old in KINDS for new in KINDS]
    common = [directory("target", mtime=1), file("target/safe", mtime=1), file("other", mtime=1)]
    lower = [KINDS[old](name) for old, _, name in pairs]
    for made, _ in lower:
        if made.type in (tarfile.REGTYPE, tarfile.DIRTYPE):
            made.pax_headers["SCHILY.xattr.user.old"] = "1"
    below = [file(f"directory-{new}/below", mtime=6) for new in KINDS]
    return [
        layer(*base, *common, *lower, *below),
        layer(*(KINDS[new](name) for _, new, name in pairs)),
    ]


def many(base: list[Entry]) -> bytes:
    names = (f"many/{number:05}-{'x' * (number % 40)}" for number in range(MANY))
    return layer(
        *base,
        directory("many", mtime=1),
        *(file(name, mtime=number) for number, name in enumerate(names)),
        format=tarfile.GNU_FORMAT,
    )


def deep(base: list[Entry], start: str) -> bytes:
    """A path of 4,095 bytes from the root's slash on: with its end, all that a process can name."""
    path, entries = "", []
    while len(path) + 256 < 4094:
        path += "d" * 255
        entries.append(directory(start + path, mtime=1))
        path += "/"
    path += "f" * (4094 - len(path))
    assert len(f"/{path}") == 4095
    return layer(*base, *entries, file(start + path, b"deep\n", mtime=2))
