"""What a guest may say instead of a tree: each lie has its error, and nothing outside changes.

And the bytes themselves: docs/protocol.md's "Files", recorded.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import stat
import struct
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.append(os.path.dirname(__file__))

from tree_guest import refused, removed  # noqa: F401

from pyvmm.agent.connection import Connection
from pyvmm.agent.files import Files
from pyvmm.agent.tree import Entry
from pyvmm.errors import GuestError, PyvmmError

pytestmark = pytest.mark.usefixtures("removed")

HELLO, FAILED, END, ENTRY, DATA, HOLE, LEAVE = 1, 9, 10, 12, 13, 14, 15
GET, PUT = 6, 7
FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
GREETING = struct.pack("<IHH", 24, HELLO, 0) + struct.pack("<IIQQ", 2, 1, 1, 1 << 20)


def frame(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IHH", len(payload), kind, 0) + payload


def entry(name: bytes, mode: int = FILE, target: bytes = b"", **fields: int) -> bytes:
    return frame(ENTRY, Entry(name, mode, target=target, **fields).pack())


def file(name: bytes = b"", data: bytes = b"data", mode: int = FILE) -> bytes:
    return entry(name, mode) + frame(DATA, data) + frame(LEAVE)


class Player:
    """Plays a guest that says what was recorded; ``heard`` is what it was told."""

    def __init__(self, *frames: bytes) -> None:
        self._said = b"".join(frames)
        self.heard = b""
        self.files = Files(self.connect)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(GREETING + self._said)
            theirs.shutdown(socket.SHUT_WR)
            try:
                yield Connection(ours)
            finally:
                ours.close()
                while data := theirs.recv(1 << 20):
                    self.heard += data


@pytest.fixture
def to(tmp_path: Path) -> Iterator[Path]:
    """A destination, with links to what is beside it: that may not change."""
    outside = tmp_path / "outside"
    (outside / "directory").mkdir(parents=True)
    (outside / "file").write_bytes(b"ours")
    (outside / "directory").chmod(0o700)
    to = tmp_path / "to"
    to.mkdir()
    (to / "to directory").symlink_to("../outside/directory")
    (to / "to file").symlink_to("../outside/file")
    before = look(outside)
    yield to
    assert look(outside) == before
    assert sorted(os.listdir(tmp_path)) == ["outside", "to"]


def look(top: Path) -> list[tuple[str, int, int, int, int]]:
    paths = sorted([top, *top.rglob("*")])
    stats = [(path, path.stat()) for path in paths]
    return [(str(p), s.st_mode, s.st_mtime_ns, s.st_nlink, s.st_size) for p, s in stats]


def made(to: Path) -> list[str]:
    """What came to be in it."""
    names = {str(path.relative_to(to)) for path in to.rglob("*")}
    return sorted(names - {"to directory", "to file"})


OUT_OF_PLACE = "the guest's agent sent frame type {} out of place"
EARLY = "the guest's agent said END before all of the files had come"
MALFORMED = "the guest's agent sent an ENTRY that is malformed"
TARGET = "the guest's agent sent an ENTRY with a wrong target"
TOP = entry(b"", DIRECTORY)


def wrong_name(name: str) -> str:
    return f"the guest's agent sent a file of the name {name!r}"


def raw_entry(mode: int = FILE, ns: int = 0, size: int = 0, length: int = 0, *more: int) -> bytes:
    flags, zero = more or (0, 0)
    head = struct.pack("<IIIIqQHHI", mode, 0, 0, ns, 0, size, length, flags, zero)
    return frame(ENTRY, head)


LIES = {
    "nothing": ([frame(END)], EARLY),
    "closed at once": ([], "the machine ended"),
    "closed in a file": ([entry(b""), frame(DATA, b"x")], "the machine ended"),
    "END in a file": ([entry(b""), frame(DATA, b"x"), frame(END)], EARLY),
    "END in a directory": ([TOP, frame(END)], EARLY),
    "first has a name": ([file(b"x")], wrong_name("x")),
    "second has none": ([TOP, file(b"")], wrong_name("")),
    "up": ([TOP, file(b"..")], wrong_name("..")),
    "up, a directory": ([TOP, entry(b"..", DIRECTORY)], wrong_name("..")),
    "the same": ([TOP, entry(b".", DIRECTORY)], wrong_name(".")),
    "absolute": ([TOP, file(b"/etc/passwd")], wrong_name("/etc/passwd")),
    "path": ([TOP, file(b"../../outside/file")], wrong_name("../../outside/file")),
    "slash": ([TOP, file(b"a/b")], wrong_name("a/b")),
    "NUL": ([TOP, file(b"a\0b")], wrong_name("a\0b").replace("\\", "\\")),
    "two tops": ([file(), file()], OUT_OF_PLACE.format(ENTRY)),
    "a file in a file": ([entry(b""), file(b"x")], OUT_OF_PLACE.format(ENTRY)),
    "below a file": ([file(), file(b"x")], OUT_OF_PLACE.format(ENTRY)),
    "below a link": ([entry(b"", LINK, b"/"), file(b"x")], OUT_OF_PLACE.format(ENTRY)),
    "DATA of a directory": ([TOP, frame(DATA, b"x")], OUT_OF_PLACE.format(DATA)),
    "DATA of a link": ([entry(b"", LINK, b"x"), frame(DATA, b"x")], OUT_OF_PLACE.format(DATA)),
    "DATA first": ([frame(DATA, b"x")], OUT_OF_PLACE.format(DATA)),
    "HOLE of a directory": ([TOP, frame(HOLE, bytes(8))], OUT_OF_PLACE.format(HOLE)),
    "a short HOLE": ([entry(b""), frame(HOLE, bytes(7))], OUT_OF_PLACE.format(HOLE)),
    "a long HOLE": ([entry(b""), frame(HOLE, bytes(9))], OUT_OF_PLACE.format(HOLE)),
    "LEAVE too many": ([file(), frame(LEAVE)], OUT_OF_PLACE.format(LEAVE)),
    "another's frame": ([frame(3, b"stdout")], OUT_OF_PLACE.format(3)),
    "a short ENTRY": (
        [frame(ENTRY, bytes(39))],
        "the guest's agent sent an ENTRY that is cut short",
    ),
    "a name longer than its frame": ([raw_entry(FILE, 0, 0, 1)], MALFORMED),
    "nanoseconds": ([raw_entry(FILE, 1_000_000_000)], MALFORMED),
    "a size": ([raw_entry(FILE, 0, 1 << 63)], MALFORMED),
    "a hard link": ([raw_entry(FILE, 0, 0, 0, 1, 0)], MALFORMED),
    "not zero": ([raw_entry(FILE, 0, 0, 0, 0, 1)], MALFORMED),
    "a file with a target": ([entry(b"", FILE, b"x")], TARGET),
    "a link without": ([entry(b"", LINK)], TARGET),
    "a link with a NUL": ([entry(b"", LINK, b"a\0b")], TARGET),
    "too deep": (
        [TOP, entry(b"d", DIRECTORY) * 4096],
        "the guest's tree is deeper than 4096 directories",
    ),
    "a short FAILED": ([frame(FAILED, b"x")], ""),
    "FAILED of its own": ([frame(FAILED, struct.pack("<I", 125) + b"why\n\x1b[")], "why\\n\\x1b["),
    "FAILED with our errno": ([frame(FAILED, struct.pack("<I", errno.EAGAIN) + b"why")], "why"),
}


@pytest.mark.parametrize(("frames", "error"), LIES.values(), ids=LIES)
@pytest.mark.parametrize("way", ["pull", "pull_tar"])
def test_lies(to: Path, way: str, frames: list[bytes], error: str) -> None:
    files = Player(*frames).files
    with pytest.raises(GuestError) as e:
        files.pull("/x", to) if way == "pull" else files.pull_tar("/x", io.BytesIO())
    assert str(e.value) == error


def test_holes_without_end(to: Path) -> None:
    holes = entry(b""), frame(HOLE, struct.pack("<Q", 1 << 62)) * 2
    with pytest.raises(GuestError) as e:
        Player(*holes).files.pull_tar("/x", io.BytesIO())
    assert str(e.value) == "the guest's agent sent a file that is too long"
    refused(lambda: Player(*holes).files.pull("/x", to))  # the host file system has its own limit
    assert made(to) == []


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        (TOP, "is a directory"),
        (entry(b"", LINK, b"/x"), "a symbolic link"),
        (entry(b"", stat.S_IFIFO), "no regular file"),
    ],
)
def test_read_of_what_is_no_file(frames: bytes, error: str) -> None:
    e = refused(lambda: Player(frames).files.read("/x"))
    assert (e.strerror, e.filename) == (error, "/x")


def test_nothing_unfinished_stays(to: Path) -> None:
    (to / "x").write_bytes(b"old")
    with pytest.raises(GuestError):
        Player(entry(b""), frame(DATA, b"new")).files.pull("/x", to)
    assert made(to) == ["x"]
    assert (to / "x").read_bytes() == b"old"


def test_a_link_is_not_followed_by_what_comes_after_it(to: Path) -> None:
    """CVE-2001-1267 and its many children: a link, then a directory of the same name."""
    player = Player(
        TOP, entry(b"out", LINK, b"../../outside"), entry(b"out", DIRECTORY), file(b"file")
    )
    with pytest.raises(NotADirectoryError) as e:
        player.files.pull("/x", to)
    assert e.value.filename == str(to / "x/out")
    assert made(to) == ["x", "x/out"]


def test_a_link_that_is_there_is_not_followed_either(to: Path) -> None:
    player = Player(TOP, entry(b"to directory", DIRECTORY), file(b"file"))
    with pytest.raises(NotADirectoryError) as e:
        player.files.pull("/x/.", to)
    assert e.value.filename == str(to / "to directory")
    assert made(to) == []


def test_a_file_takes_a_links_place(to: Path) -> None:
    player = Player(TOP, file(b"to file"), entry(b"l", LINK, b"../outside/file"), file(b"l"),
                    frame(LEAVE), frame(END))  # fmt: skip
    player.files.pull("/x/.", to)
    for name in ("to file", "l"):
        assert not (to / name).is_symlink()
        assert (to / name).read_bytes() == b"data"


@pytest.mark.parametrize(("archive", "mode"), [(False, 0o755), (True, 0o6755)])
def test_set_user_id_only_if_asked_for(to: Path, archive: bool, mode: int) -> None:
    Player(file(mode=stat.S_IFREG | 0o6755), frame(END)).files.pull("/x", to, archive=archive)
    assert stat.S_IMODE((to / "x").stat().st_mode) == mode


@pytest.mark.parametrize("archive", [False, True])
def test_owner_only_if_asked_for(to: Path, archive: bool) -> None:
    own = entry(b"", FILE, uid=12345, gid=54321) + frame(LEAVE) + frame(END)
    Player(own).files.pull("/x", to, archive=archive)
    status = (to / "x").stat()
    kept = archive and os.geteuid() == 0
    assert (status.st_uid, status.st_gid) == (
        (12345, 54321) if kept else (os.geteuid(), os.getegid())
    )


def test_no_devices(to: Path) -> None:
    modes = (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, 0)
    entries = [entry(b"%o" % mode, mode | 0o666, size=0x103) for mode in modes]
    player = Player(TOP, *entries, file(b"after"), frame(LEAVE), frame(END))
    assert player.files.pull("/x", to, archive=True) == [
        f"{to}/x/20000: a device, left out",
        f"{to}/x/60000: a device, left out",
        f"{to}/x/140000: a socket, left out",
        f"{to}/x/0: of unknown type, left out",
    ]
    assert made(to) == ["x", "x/after"]


def test_so_many_warnings_and_no_more(to: Path) -> None:
    player = Player(TOP, entry(b"s", stat.S_IFSOCK) * 1001, frame(LEAVE), frame(END))
    assert player.files.pull_tar("/x", io.BytesIO()) == ["x/s: a socket, left out"] * 1000


def test_a_directory_that_we_may_not_read(to: Path) -> None:
    """Writing into it is enough."""
    (to / "box").mkdir(mode=0o300)
    Player(file(), frame(END)).files.pull("/x", to / "box")
    (to / "box").chmod(0o700)
    assert made(to) == ["box", "box/x"]


def test_a_device_that_is_there_stays(to: Path) -> None:
    """As /dev/null would have to."""
    os.mkfifo(to / "fifo")
    reader = os.open(to / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    Player(file(), frame(END)).files.pull("/x", to / "fifo")
    assert os.read(reader, 100) == b"data"
    os.close(reader)
    assert stat.S_ISFIFO((to / "fifo").stat().st_mode)


def test_limit_of_read() -> None:
    def read(*frames: bytes) -> bytes:
        return Player(entry(b""), *frames, frame(LEAVE), frame(END)).files.read("/x", limit=8)

    hole = frame(HOLE, struct.pack("<Q", 8))
    assert read(frame(DATA, b"12345678")) == b"12345678"
    assert read(hole) == bytes(8)
    for frames in ((frame(DATA, b"123456789"),), (hole, frame(DATA, b"1"))):
        e = refused(read, *frames)
        assert (e.errno, e.strerror) == (errno.EFBIG, "longer than 8 bytes")


def test_a_guest_that_gives_up_is_heard() -> None:
    """While there is more to send."""
    player = Player(frame(FAILED, struct.pack("<I", errno.ENOSPC) + b"/x: full"), frame(END))
    with open("/dev/zero", "rb") as endless:
        e = refused(lambda: player.files.write("/x", endless))
    assert (e.errno, e.strerror) == (errno.ENOSPC, "/x: full")
    assert len(player.heard) < 1 << 20


def test_end_before_all_was_sent() -> None:
    with pytest.raises(GuestError) as e, open("/dev/zero", "rb") as endless:
        Player(frame(END)).files.write("/x", endless)
    assert str(e.value) == "the guest's agent said END before it had all of the files"


# Archives that the user gives


def archive(*members: tarfile.TarInfo) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    out.seek(0)
    return out


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (archive(member("../x")), "the tar archive: '../x' leads out of it"),
        (archive(member("a/../../x")), "the tar archive: 'a/../../x' leads out of it"),
        (
            archive(member("l", type=tarfile.LNKTYPE, linkname="../x")),
            "the tar archive: '../x' leads out of it",
        ),
        (archive(member("x", uid=1 << 40)), "the tar archive: a number is out of range"),
        (io.BytesIO(b"no archive" * 100), "the tar archive: invalid header"),
        (io.BytesIO(b""), "the tar archive: empty file"),
    ],
)
def test_archives_that_are_none(data: io.BytesIO, error: str) -> None:
    with pytest.raises(PyvmmError) as e:
        Player().files.push_tar(data, "/x")
    assert str(e.value) == error


# The bytes of docs/protocol.md

RECORDED_ENTRY = bytes.fromhex(
    "280000000c000000"  # the header: 40 bytes and the names, ENTRY
    "ed810000" "e8030000" "e9030000" "15cd5b07"  # mode, uid, gid, nanoseconds
    "d202964900000000" "0500000000000000"  # seconds, size
    "0000" "0000" "00000000"  # the name's length, flags, zero
)  # fmt: skip


def test_recorded_get(to: Path) -> None:
    hole = bytes.fromhex("080000000e0000000010000000000000")
    data = bytes.fromhex("050000000d000000") + b"hello"
    leave, end = bytes.fromhex("000000000f000000"), bytes.fromhex("000000000a000000")
    player = Player(RECORDED_ENTRY, data, hole, leave, end)
    player.files.pull("/etc/motd", to, follow=True)
    assert player.heard == bytes.fromhex("0d0000000600000001000000") + b"/etc/motd"
    status = (to / "motd").stat()
    assert status.st_mode == stat.S_IFREG | 0o755
    assert status.st_mtime_ns == 1_234_567_890_123_456_789
    assert (to / "motd").read_bytes() == b"hello" + bytes(4096)


def test_recorded_put(tmp_path: Path) -> None:
    path = tmp_path / "motd"
    path.write_bytes(b"hello")
    path.chmod(0o755)
    os.utime(path, ns=(0, 1_234_567_890_123_456_789))
    assert put(lambda files: files.push(path, "/etc/")) == bytes.fromhex(
        "0900000007000000" "01000000" "2f6574632f"  # PUT into /etc/
        "2c0000000c000000"  # ENTRY
        "ed810000" "00000000" "00000000" "15cd5b07" "d202964900000000" "0500000000000000"
        "0400" "0000" "00000000" "6d6f7464"
        "050000000d000000" "68656c6c6f"  # DATA
        "000000000f000000"  # LEAVE
        "000000000a000000"  # END
    )  # fmt: skip


def test_recorded_write() -> None:
    assert put(lambda files: files.write("/x", b"y", 0o600)) == bytes.fromhex(
        "0600000007000000" "03000000" "2f78"
        "2c0000000c000000"
        "80810000" "00000000" "00000000" "00000000" "0000000000000000" "0000000000000000"
        "0400" "0000" "00000000" "66696c65"
        "010000000d000000" "79"
        "000000000f000000"
        "000000000a000000"
    )  # fmt: skip


def test_recorded_archive() -> None:
    """Directories on the way, and a hard link."""
    data = archive(member("a/f", mode=0o644), member("l", type=tarfile.LNKTYPE, linkname="a/f"))
    zeros = "00000000" * 3 + "00000000" * 4
    assert put(lambda files: files.push_tar(data, "/d")) == bytes.fromhex(
        "0600000007000000" "01000000" "2f64"
        "290000000c000000" "00400000" f"{zeros}" "0100" "0200" "00000000" "61"  # a, if it is absent
        "290000000c000000" "a4810000" f"{zeros}" "0100" "0000" "00000000" "66"
        "000000000f000000"
        "000000000f000000"
        "2c0000000c000000" "00800000" f"{zeros}" "0100" "0100" "00000000" "6c" "612f66"
        "000000000a000000"
    )  # fmt: skip


def put(act: Callable[[Files], object]) -> bytes:
    """What a guest hears that says END once it has heard it."""
    ours, theirs = socket.socketpair()
    heard = bytearray()

    def guest() -> None:
        theirs.sendall(GREETING)
        while not heard.endswith(frame(END)):
            heard.extend(theirs.recv(1 << 20))
        theirs.sendall(frame(END))

    thread = threading.Thread(target=guest)
    thread.start()
    with theirs:
        act(Files(lambda: Connection(ours)))
        thread.join()
    return bytes(heard)
