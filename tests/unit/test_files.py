"""machine.files against init's own code, run natively: what goes over is what was there."""

from __future__ import annotations

import errno
import io
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(os.path.dirname(__file__))

from tree_guest import TreeGuest, build, refused, removed  # noqa: F401

from pyvmm.agent.files import Files

pytestmark = pytest.mark.usefixtures("removed")

NAMES = (b"plain", b"new\nline", b"not utf-8 \xff\xfe", "ümlaut".encode(), b"-dash", b"n" * 255)
TIME = 1_234_567_890_123_456_789
MIB = 1 << 20


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("make") or not shutil.which("gcc"):
        pytest.skip("needs make and gcc")
    if os.geteuid() != 0:
        pytest.skip("needs root, as init is, to give files to root")
    return build(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def files(harness: Path) -> Files:
    return TreeGuest(harness).files


def odd_tree(top: Path) -> Path:
    """A tree of what is rare."""
    top.mkdir()
    for name in NAMES:
        path = os.path.join(os.fsencode(top), b"names", name)
        os.makedirs(path)
        with open(os.path.join(path, name), "wb") as file:
            file.write(name)
    (top / "empty directory").mkdir()
    (top / "empty").touch()
    (top / "closed").write_bytes(b"nobody may read it")
    (top / "closed").chmod(0)
    (top / "shut").mkdir()
    (top / "shut/in").write_bytes(b"in")
    (top / "shut").chmod(0)
    (top / "program").write_bytes(b"#!/bin/sh\n")
    (top / "program").chmod(0o755)
    (top / "link").symlink_to("program")
    (top / "dangling").symlink_to("/no/such/file")
    (top / "to a directory").symlink_to("names")
    os.mkfifo(top / "fifo", 0o640)
    descend(top, [b"d" * 200] * 40)
    for number, (parent, name, _) in enumerate(walk(top)):
        os.utime(name, ns=(TIME, TIME + number), dir_fd=parent, follow_symlinks=False)
    return top


def descend(top: Path, names: list[bytes]) -> None:
    """Make directories, however long their path, and a file in the last."""
    fd = os.open(top, os.O_RDONLY)
    for name in names:
        os.mkdir(name, 0o755, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("last", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)


def walk(top: Path) -> Iterator[tuple[int, bytes, str]]:
    """Each file below, what is in a directory before that: its directory's descriptor, name, path.

    A path may be longer than PATH_MAX.
    """
    for at, directories, names, parent in os.fwalk(os.fsencode(top), topdown=False):
        for name in names + [d for d in directories if is_link(d, parent)]:
            yield (
                parent,
                name,
                os.fsdecode(os.path.relpath(os.path.join(at, name), os.fsencode(top))),
            )
        for name in directories:
            if not is_link(name, parent):
                yield (
                    parent,
                    name,
                    os.fsdecode(os.path.relpath(os.path.join(at, name), os.fsencode(top))),
                )


def is_link(name: bytes, parent: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def tree(top: Path) -> dict[str, tuple[int, int, object]]:
    """Mode, time in ns and contents of all that is below."""
    found: dict[str, tuple[int, int, object]] = {}
    for parent, name, path in walk(top):
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        contents: object = None
        if stat.S_ISLNK(status.st_mode):
            contents = os.readlink(name, dir_fd=parent)
        elif stat.S_ISREG(status.st_mode):
            with open(os.open(name, os.O_RDONLY, dir_fd=parent), "rb") as file:
                contents = file.read()
        found[path] = status.st_mode, status.st_mtime_ns, contents
    return found


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    return odd_tree(tmp_path / "odd")


def test_push_keeps_all(files: Files, odd: Path, tmp_path: Path) -> None:
    assert files.push(odd, tmp_path / "copy") == []
    assert tree(tmp_path / "copy") == tree(odd)


def test_pull_keeps_all(files: Files, odd: Path, tmp_path: Path) -> None:
    assert files.pull(odd, tmp_path / "copy") == []
    assert tree(tmp_path / "copy") == tree(odd)


def test_tar_keeps_all(files: Files, odd: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with (tmp_path / "tar").open("w+b") as tar:
        assert files.pull_tar(f"{odd}/.", tar) == []
        tar.seek(0)
        files.push_tar(tar, tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(odd)


def test_other_programs_read_our_archive(files: Files, odd: Path, tmp_path: Path) -> None:
    shutil.rmtree(odd / ("d" * 200))  # tar needs paths
    with (tmp_path / "tar").open("wb") as tar:
        files.pull_tar(odd, tar)
    subprocess.run(["tar", "xpf", "tar", "--one-top-level=other"], cwd=tmp_path, check=True)
    assert tree(tmp_path / "other/odd") == tree(odd)


def test_ten_thousand_files(files: Files, tmp_path: Path) -> None:
    top = tmp_path / "many"
    for number in range(10_000):
        path = top / f"{number % 100}"
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{number}").write_bytes(b"%d" % number)
    files.push(top, tmp_path / "there")
    files.pull(tmp_path / "there", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(top)


def sparse(path: Path) -> None:
    """1 GiB, of which 10 MiB are there: at the begin, in the middle; and a hole at the end."""
    with path.open("wb") as file:
        for at in range(10):
            file.seek(at * 100 * MIB)
            file.write(bytes([at + 1]) * MIB)
        file.truncate(1 << 30)


def extents(path: Path) -> list[tuple[int, int, bytes]]:
    """Where data is and where it ends, and what its bytes are."""
    found = []
    with path.open("rb") as file:
        end = 0
        while True:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                return found
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            file.seek(start)
            found.append((start, end, bytes(set(file.read(end - start)))))
            file.seek(0)


@pytest.mark.parametrize("way", ["push", "pull"])
def test_holes_stay_holes(files: Files, tmp_path: Path, way: str) -> None:
    sparse(tmp_path / "sparse")
    getattr(files, way)(tmp_path / "sparse", tmp_path / "copy")
    assert extents(tmp_path / "copy") == extents(tmp_path / "sparse")
    assert (tmp_path / "copy").stat().st_size == 1 << 30
    assert [(e[0], e[2]) for e in extents(tmp_path / "copy")] == [
        (n * 100 * MIB, bytes([n + 1])) for n in range(10)
    ]


@pytest.mark.parametrize("size", [0, 1, 65527, 65528, 65529, 65536, 4 * 65528, 1_000_003])
def test_sizes(files: Files, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    files.push(tmp_path / "file", tmp_path / "there")
    files.pull(tmp_path / "there", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    assert files.read(tmp_path / "there") == data
    files.write(tmp_path / "written", data)
    files.write(tmp_path / "from file", io.BytesIO(data))
    assert (tmp_path / "written").read_bytes() == data
    assert (tmp_path / "from file").read_bytes() == data


def test_hard_links(files: Files, tmp_path: Path) -> None:
    """To the guest they stay links, also from a tar archive; from it they are files."""
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "tree/below/first").write_bytes(b"x")
    os.link(tmp_path / "tree/below/first", tmp_path / "tree/second")
    subprocess.run(["tar", "cf", "tar", "tree"], cwd=tmp_path, check=True)
    (tmp_path / "unpacked").mkdir()
    files.push(tmp_path / "tree", tmp_path / "pushed")
    with (tmp_path / "tar").open("rb") as tar:
        files.push_tar(tar, tmp_path / "unpacked")
    for copy in (tmp_path / "pushed", tmp_path / "unpacked/tree"):
        assert (copy / "below/first").samefile(copy / "second")
        assert (copy / "second").stat().st_nlink == 2
    files.pull(tmp_path / "tree", tmp_path / "pulled")
    assert (tmp_path / "pulled/below/first").stat().st_nlink == 1
    assert (tmp_path / "pulled/second").read_bytes() == b"x"


# Where things go: docker cp's rules


@pytest.mark.parametrize("way", ["push", "pull"])
@pytest.mark.parametrize(
    ("source", "destination", "made"),
    [
        ("file", "new", ["new"]),
        ("file", "old", ["old"]),
        ("file", "directory", ["directory/file"]),
        ("file", "directory/", ["directory/file"]),
        ("file", "to directory", ["directory/file"]),
        ("file", "dangling", ["dangling"]),
        ("tree", "new", ["new", "new/in"]),
        ("tree", "new/", ["new", "new/in"]),
        ("tree/", "directory", ["directory/tree", "directory/tree/in"]),
        ("tree", "directory", ["directory/tree", "directory/tree/in"]),
        ("tree", "full", ["full/tree", "full/tree/in", "full/tree/old"]),
        ("tree/.", "directory", ["directory/in"]),
        ("tree/.", "new", ["new", "new/in"]),
        ("link", "new", ["new"]),
        ("link", "directory", ["directory/link"]),
    ],
)
def test_where(
    files: Files, tmp_path: Path, way: str, source: str, destination: str, made: list[str]
) -> None:
    (tmp_path / "from/tree").mkdir(parents=True)
    (tmp_path / "from/file").write_bytes(b"new file")
    (tmp_path / "from/tree/in").write_bytes(b"new in")
    (tmp_path / "from/link").symlink_to("file")
    to = tmp_path / "to"
    (to / "directory").mkdir(parents=True)
    (to / "full/tree").mkdir(parents=True)
    (to / "full/tree/old").write_bytes(b"old")
    (to / "full/tree/in").write_bytes(b"old")
    (to / "old").write_bytes(b"old")
    (to / "to directory").symlink_to("directory")
    (to / "dangling").symlink_to("elsewhere")
    getattr(files, way)(f"{tmp_path}/from/{source}", f"{to}/{destination}")
    if (way, destination) == ("pull", "dangling"):
        made = ["elsewhere"]  # here a link's target is written, as by other commands
    before = {"directory", "full", "full/tree", "full/tree/old", "full/tree/in", "old"}
    before |= {"to directory", "dangling"}
    assert {path for _, _, path in walk(to)} == before | set(made)
    for path in made:
        if path.endswith("/old") and "full" in path:
            assert (to / path).read_bytes() == b"old"
        elif source == "link":
            assert os.readlink(to / path) == "file"
        elif not (to / path).is_dir():
            assert (to / path).read_bytes() == (b"new in" if path.endswith("in") else b"new file")


@pytest.mark.parametrize("way", ["push", "pull"])
@pytest.mark.parametrize(
    ("source", "destination", "number", "culprit"),
    [
        ("none", "new", errno.ENOENT, "from/none"),
        ("file/", "new", errno.ENOTDIR, "from/file/"),
        ("file", "none/new", errno.ENOENT, "to/none"),
        ("file", "none/", {"push": errno.ENOENT, "pull": errno.ENOTDIR}, "to/none"),
        ("tree", "old", errno.ENOTDIR, "to/old"),
        ("tree", "none/new", errno.ENOENT, "to/none"),
        ("file", "full", errno.EISDIR, "to/full/file"),
        ("tree/.", "bad", errno.ENOTDIR, "to/bad/in"),
    ],
)
def test_what_cannot_be(
    files: Files, tmp_path: Path, way: str, source: str, destination: str, number: Any, culprit: str
) -> None:
    (tmp_path / "from/tree/in").mkdir(parents=True)
    (tmp_path / "from/file").write_bytes(b"new")
    to = tmp_path / "to"
    (to / "full/file").mkdir(parents=True)
    (to / "bad").mkdir()
    (to / "bad/in").symlink_to("../full")
    (to / "old").write_bytes(b"old")
    e = refused(lambda: getattr(files, way)(f"{tmp_path}/from/{source}", f"{to}/{destination}"))
    assert e.errno == (number[way] if isinstance(number, dict) else number)
    assert culprit in str(e)
    assert (to / "old").read_bytes() == b"old"
    assert {p for _, _, p in walk(to)} == {"full", "full/file", "bad", "bad/in", "old"}


def test_file_that_cannot_be_read_through(files: Files) -> None:
    assert files.read("/proc/self/comm") == b"tree_harness\n"
    assert files.read("/dev/../proc/sys/kernel/ostype") == b"Linux\n"
    for path, number in [("/dev/null", errno.EINVAL), ("/etc", errno.EISDIR), ("", errno.EINVAL)]:
        e = refused(files.read, path)
        assert e.errno == number


def test_write_keeps_the_file(files: Files, tmp_path: Path) -> None:
    """Its mode and number, and what leads to it."""
    path = tmp_path / "file"
    path.write_bytes(b"longer than what comes")
    path.chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    before = path.stat()
    files.write(tmp_path / "link", b"new", 0o777)
    assert path.read_bytes() == b"new"
    assert (path.stat().st_mode, path.stat().st_ino) == (before.st_mode, before.st_ino)
    files.write(tmp_path / "new", b"", 0o751)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o751
    files.write("/dev/null", b"gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_write_where_it_cannot_be(files: Files, tmp_path: Path) -> None:
    for path, error in [
        (tmp_path, f"{tmp_path}: is a directory"),
        (tmp_path / "no/file", f"{tmp_path}/no: no such file or directory"),
    ]:
        e = refused(files.write, path, b"x")
        assert e.strerror == error


def test_long_paths(files: Files, tmp_path: Path) -> None:
    """The reason is there, however long the path."""
    path = "/tmp/" + "../tmp/" * 580 + "none"
    assert len(path) == 4069
    e = refused(files.read, path)
    assert (e.errno, e.strerror) == (errno.ENOENT, path[:1023] + ": no such file or directory")
    e = refused(files.write, path + "/file", b"")
    assert (e.errno, e.strerror) == (errno.ENOENT, path[:1023] + ": no such file or directory")
    for each in (path + "x" * 30, "/" * 100_000):
        e = refused(files.read, each)
        assert (e.errno, e.strerror) == (errno.ENAMETOOLONG, "file name too long")
    e = refused(files.write, tmp_path / ("n" * 256), b"")
    assert (e.errno, e.strerror) == (
        errno.ENAMETOOLONG,
        f"{tmp_path}/{'n' * 256}: file name too long",
    )


def test_a_full_disk(files: Files) -> None:
    """What the guest says while we still send is heard."""
    with open("/dev/zero", "rb") as endless:
        e = refused(lambda: files.write("/dev/full", endless))
    assert (e.errno, e.strerror) == (
        errno.ENOSPC,
        "/dev/full: no space left on device",
    )


def test_sockets_and_devices(files: Files, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "tree/sock"))
    left_out = [f"{tmp_path}/tree/sock: a socket, left out"]
    assert files.push(tmp_path / "tree", tmp_path / "there") == left_out
    assert os.listdir(tmp_path / "there") == []
    assert files.pull_tar(tmp_path / "tree", io.BytesIO()) == ["tree/sock: a socket, left out"]
    os.mknod(tmp_path / "tree/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    files.push(tmp_path / "tree", tmp_path / "there")
    assert (tmp_path / "there/tree/null").stat().st_rdev == os.makedev(1, 3)
    tar = io.BytesIO()
    files.pull_tar(tmp_path / "tree", tar)
    tar.seek(0)
    with tarfile.open(fileobj=tar) as archive:
        null = archive.getmember("tree/null")
        assert (null.type, null.devmajor, null.devminor) == (tarfile.CHRTYPE, 1, 3)


def test_follow_link(files: Files, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/in").write_bytes(b"in")
    (tmp_path / "link").symlink_to("tree")
    files.push(tmp_path / "link", tmp_path / "pushed", follow=True)
    files.pull(tmp_path / "link", tmp_path / "pulled", follow=True)
    for copy in (tmp_path / "pushed", tmp_path / "pulled"):
        assert not copy.is_symlink()
        assert os.listdir(copy) == ["in"]


def test_other_file_systems_are_left_out(files: Files, tmp_path: Path) -> None:
    """Below the path: of /proc/sys, fs/binfmt_misc is one."""
    if not os.path.ismount("/dev/pts"):
        pytest.skip("needs /dev/pts to be a file system of its own")
    files.pull("/dev", tmp_path / "dev")
    assert (tmp_path / "dev/pts").is_dir()
    assert os.listdir(tmp_path / "dev/pts") == []


def test_recorded_get(harness: Path, tmp_path: Path) -> None:
    """docs/protocol.md's bytes, by init."""
    tmp_path.chmod(0o755)
    (tmp_path / "d").mkdir(mode=0o755)
    (tmp_path / "d/l").symlink_to("to")
    with (tmp_path / "d/f").open("wb") as file:
        file.truncate(8192)
    os.chmod(tmp_path / "d/f", 0o644)
    for path in (tmp_path / "d/l", tmp_path / "d/f", tmp_path / "d"):
        os.utime(path, ns=(0, 1_234_567_890_123_456_789), follow_symlinks=False)
    own = struct.pack("<II", os.geteuid(), os.getegid()).hex()
    times = "15cd5b07d202964900000000"
    expected = [
        f"280000000c000000 ed410000 {own} {times} 0000000000000000 0000 0000 00000000",
        f"290000000c000000 a4810000 {own} {times} 0020000000000000 0100 0000 00000000 66"
        "080000000e000000 0020000000000000 000000000f000000",
        f"2b0000000c000000 ffa10000 {own} {times} 0000000000000000 0100 0000 00000000 6c746f",
        "000000000f000000 000000000a000000",
    ]
    with TreeGuest(harness).session() as sock:
        path = os.fsencode(tmp_path / "d")
        sock.sendall(struct.pack("<IHHI", 4 + len(path), 6, 0, 0) + path)
        sock.shutdown(socket.SHUT_WR)
        got = b""
        while data := sock.recv(1 << 20):
            got += data
    in_order = [expected[0], *expected[1:3], expected[3]]
    other_order = [expected[0], *expected[2:0:-1], expected[3]]
    assert got[32:] in [bytes.fromhex("".join(each)) for each in (in_order, other_order)]


def test_recorded_put(harness: Path, tmp_path: Path) -> None:
    own = struct.pack("<II", os.geteuid(), os.getegid())
    path = os.fsencode(tmp_path)
    with TreeGuest(harness).session() as sock:
        sock.sendall(
            struct.pack("<IHHI", 4 + len(path), 7, 0, 1)
            + path
            + bytes.fromhex("290000000c000000 e8410000")
            + own
            + bytes.fromhex("15cd5b07 d202964900000000 0000000000000000 0100 0000 00000000 64")
            + bytes.fromhex("290000000c000000 a0810000")
            + own
            + bytes.fromhex("15cd5b07 d202964900000000 0000000000000000 0100 0000 00000000 66")
            + bytes.fromhex("050000000d000000 68656c6c6f 080000000e000000 0300000000000000")
            + bytes.fromhex("000000000f000000 000000000f000000 000000000a000000")
        )
        sock.shutdown(socket.SHUT_WR)
        got = b""
        while data := sock.recv(1 << 20):
            got += data
    assert got[32:] == bytes.fromhex("000000000a000000")
    assert (tmp_path / "d/f").read_bytes() == b"hello\0\0\0"
    for file, mode in ((tmp_path / "d", 0o40750), (tmp_path / "d/f", 0o100640)):
        assert file.stat().st_mode == mode
        assert file.stat().st_mtime_ns == 1_234_567_890_123_456_789


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        ("000000000c000000", "an ENTRY out of place"),
        ("000000000d000000", "DATA of no file"),
        ("080000000e000000 0000000000000000", "a HOLE of no file"),
        ("000000000f000000", "a LEAVE of nothing"),
        ("0000000003000000", "an unexpected frame"),
        ("010001000d000000", "a frame is too long"),
        ("", "closed by the host"),
    ],
)
def test_what_init_refuses(harness: Path, tmp_path: Path, frames: str, error: str) -> None:
    """By ending: this never comes from a host of ours."""
    path = os.fsencode(tmp_path)
    with TreeGuest(harness).session() as sock:
        sock.sendall(struct.pack("<IHHI", 4 + len(path), 7, 0, 1) + path + bytes.fromhex(frames))
        sock.shutdown(socket.SHUT_WR)
        got = b""
        while data := sock.recv(1 << 20):
            got += data
    assert got[32:] == b""
    assert os.listdir(tmp_path) == []
