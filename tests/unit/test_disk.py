"""Layers become one ext4 disk: the merging rules, and what the disk is like.

Rules: OCI image-spec layer.md, "Applying Changesets"; where it is silent, what umoci does.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm import cache, disk, disk_cache, disk_writer
from pyvmm.disk import base_disk as disk_of
from pyvmm.errors import DiskError, ImageError
from pyvmm.oci import Image, open_image, stream

from .ext4_reader import Disk
from .images import (
    device,
    directory,
    docker_archive,
    fifo,
    file,
    hard_link,
    layer,
    layout,
    opaque,
    symlink,
    whiteout,
)

pytest.importorskip("pyvmm._ext4", reason="the C extensions are not built")

MIB = 1 << 20


def base_disk(image: Image, size: int, **options: Any) -> Path:
    return Path(disk_of(image, size, **options))


class Maker:
    """Makes disks of layers, in a cache of its own, and has e2fsck look at each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cache = path / "cache" / "pyvmm" / "disks"
        self._count = 0

    def image(self, *layers: bytes, **options: object) -> Path:
        self._count += 1
        return layout(self.path / f"oci{self._count}", *layers, **options)

    def disk(self, *layers: bytes, size: int = 16 * MIB, **options: object) -> Disk:
        made = base_disk(open_image(self.image(*layers, **options)), size)
        check(made)
        return Disk(made)

    def disks(self) -> list[Path]:
        """What is in the cache, of which each has its checksum beside it."""
        found = sorted(self.cache.iterdir())
        disks = [path for path in found if path.suffix == ".ext4"]
        assert found == sorted([*disks, *(Path(f"{disk}.crc32") for disk in disks)])
        return disks

    def fails(self, *layers: bytes, size: int = 16 * MIB, **options: Any) -> str:
        """The message of the ImageError that these layers are; nothing may be left behind."""
        with pytest.raises(ImageError) as caught:
            base_disk(open_image(self.image(*layers)), size, **options)
        assert os.listdir(cache.unfinished()) == []
        assert "\n" not in str(caught.value)
        return str(caught.value)


def check(disk: Path) -> None:
    e2fsck = shutil.which("e2fsck", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if e2fsck:
        result = subprocess.run([e2fsck, "-fn", disk], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Maker(tmp_path)


# What a single layer holds


def test_every_kind_of_entry(make: Maker) -> None:
    disk = make.disk(
        layer(
            directory("./", mode=0o751, uid=1, gid=2, mtime=5),
            directory("d", mode=0o1777, uid=100000, gid=70000),
            file("d/f", b"contents", mode=0o4755, uid=1000, gid=4294967294, mtime=1234567890.5),
            symlink("d/short", "../x"),
            symlink("d/long", "y" * 4000),
            hard_link("d/g", "d/f"),
            fifo("d/p"),
            device("d/c", "c", 5, 1),
            device("d/b", "b", 259, 70000),
            file("d/empty"),
        )
    )
    assert disk.tree() == sorted(
        ["d", *(f"d/{name}" for name in ("f", "short", "long", "g", "p", "c", "b", "empty"))]
    )
    assert (disk[""].mode, disk[""].owner) == (stat.S_IFDIR | 0o751, (1, 2))
    assert (disk["d"].mode, disk["d"].owner) == (stat.S_IFDIR | 0o1777, (100000, 70000))
    f = disk["d/f"]
    assert (f.mode, f.owner) == (stat.S_IFREG | 0o4755, (1000, 4294967294))
    assert (f.data, f.mtime_ns, f.links) == (b"contents", 1234567890_500000000, 2)
    assert disk["d/g"].number == f.number
    assert disk["d/short"].mode == stat.S_IFLNK | 0o777
    assert disk["d/short"].data == b"../x"
    assert disk["d/long"].data == b"y" * 4000
    assert disk["d/p"].mode == stat.S_IFIFO | 0o644
    assert (disk["d/c"].mode, disk["d/c"].device) == (stat.S_IFCHR | 0o644, (5, 1))
    assert (disk["d/b"].mode, disk["d/b"].device) == (stat.S_IFBLK | 0o644, (259, 70000))
    assert disk["d/empty"].size == 0
    assert disk["d"].links == 2
    assert disk[""].links == 3


def test_empty_layer_is_an_empty_disk(make: Maker) -> None:
    disk = make.disk(b"", layer())
    assert disk.tree() == []  # no lost+found either
    assert (disk[""].mode, disk[""].owner) == (stat.S_IFDIR | 0o755, (0, 0))


@pytest.mark.parametrize("seconds", [-(2**31), -1, 0, 2**31, 2**34 - 2**31 - 1])
def test_times_beyond_32_bits(make: Maker, seconds: int) -> None:
    disk = make.disk(layer(file("f", mtime=seconds)))
    assert disk["f"].mtime_ns == seconds * 10**9


def test_negative_fractions_of_seconds(make: Maker) -> None:
    assert make.disk(layer(file("f", mtime=-1.25)))["f"].mtime_ns == -1250000000


@pytest.mark.parametrize("length", [59, 60, 61, 4095])
def test_symbolic_link_lengths(make: Maker, length: int) -> None:
    assert make.disk(layer(symlink("l", "t" * length)))["l"].data == b"t" * length


def test_extended_attributes(make: Maker) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    disk = make.disk(
        layer(
            file(
                "f",
                xattrs={
                    "user.a": b"1",
                    "user.binary": bytes(range(256)),
                    "security.capability": capability,
                    "trusted.t": b"",
                    "com.apple.quarantine": b"not Linux's",
                    "user.": b"no name",
                },
            ),
            directory("d", xattrs={"user.big": b"x" * 3000}),
            file("g"),
        ),
        layer(file("g", xattrs={"user.late": b"2"}), directory("d")),
    )
    assert disk["f"].xattrs == {
        b"user.a": b"1",
        b"user.binary": bytes(range(256)),
        b"security.capability": capability,
        b"trusted.t": b"",
    }
    assert disk["g"].xattrs == {b"user.late": b"2"}
    assert disk["d"].xattrs == {}  # a directory's new entry has all its metadata


def test_extended_attributes_that_do_not_fit(make: Maker) -> None:
    assert "extended attributes do not fit" in make.fails(
        layer(file("f", xattrs={"user.a": b"x" * 5000}))
    )


def test_access_control_lists(make: Maker) -> None:
    # version 2, then tag, permissions and id: owner, user 5, group, mask, others
    entries = ["01000700ffffffff", "0200060005000000", "04000500ffffffff"]
    acl = bytes.fromhex("02000000" + "".join(entries) + "10000700ffffffff" + "20000500ffffffff")
    disk = make.disk(layer(file("f", xattrs={"system.posix_acl_access": acl})))
    assert list(disk["f"].xattrs) == [b"system.posix_acl_access"]
    bad = {"system.posix_acl_access": acl[:4] + b"\xff" + acl[5:]}
    assert "system.posix_acl_access is malformed" in make.fails(layer(file("f", xattrs=bad)))


def test_names_are_bytes(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    names = [b"\xff\xfe", "ü".encode(), "ü".encode("latin-1"), b"\xc3", b"a\nb", b"n" * 255]
    disk = make.disk(layer(*(file(b"pax/" + name) for name in names)))
    assert {path for path in disk.paths if path} == {b"pax", *(b"pax/" + name for name in names)}


def test_name_too_long(make: Maker) -> None:
    assert "name of 256 bytes" in make.fails(layer(file("n" * 256)))
    assert "name of more than 4095 bytes" in make.fails(layer(file("d/" * 2048 + "f")))
    longest = f"{'d' * 255}/" * 15 + "f" * 255
    assert longest in make.disk(layer(file(f"./d/../{longest}/"))).tree()


def test_names_are_cleaned_and_stay_inside(make: Maker) -> None:
    disk = make.disk(
        layer(
            file("/absolute"),
            file("../../clamped"),
            file("a/../b//./c"),
            file("./dot/"),
        )
    )
    assert disk.tree() == ["absolute", "b", "b/c", "clamped", "dot"]


def test_missing_parents(make: Maker) -> None:
    disk = make.disk(layer(file("a/b/c", uid=7)))
    for path in ("a", "a/b"):
        node = disk[path]
        assert (node.mode, node.owner, node.mtime_ns) == (stat.S_IFDIR | 0o755, (0, 0), 0)


def test_parent_that_is_a_file(make: Maker) -> None:
    assert "f is not a directory" in make.fails(layer(file("f"), file("f/g")))


def test_root_must_be_a_directory(make: Maker) -> None:
    assert "root is not a directory" in make.fails(layer(symlink("./", "/etc")))


@pytest.mark.parametrize("count", [168, 169, 340, 3000, 70_000])
def test_directories_of_many_blocks(make: Maker, count: int) -> None:
    """One block; an index of hashes; an index of two levels."""
    long = "with-a-name-of-some-length" if count > 3000 else "name"
    names = [f"{long}-{number:05}" for number in range(count)]
    disk = make.disk(layer(*(file(name) for name in names), directory("d")), size=512 * MIB)
    assert disk.tree() == ["d", *names]
    assert disk[""].links == 3


def test_file_of_many_extents(make: Maker) -> None:
    """The second layer takes every other block from the first: what follows is fragmented."""
    small = [file(f"{number:04}", b"x" * 4096) for number in range(4000)]
    big = bytes(range(256)) * 16 * 3000
    disk = make.disk(
        layer(*small),
        layer(*(whiteout(f"{number:04}") for number in range(0, 4000, 2))),
        layer(file("big", big)),
        size=24 * MIB,
    )
    assert disk["big"].data == big
    assert len(list(disk.extents(disk["big"].raw[40:100]))) > 700


# Layers over layers


def test_later_layer_replaces(make: Maker) -> None:
    disk = make.disk(
        layer(file("f", b"old" * 5000, mode=0o600), directory("d", mode=0o700), file("d/kept")),
        layer(file("f", b"new", mode=0o640), directory("d", mode=0o755, uid=3)),
    )
    assert (disk["f"].data, disk["f"].mode) == (b"new", stat.S_IFREG | 0o640)
    assert (disk["d"].mode, disk["d"].owner) == (stat.S_IFDIR | 0o755, (3, 0))
    assert disk.tree() == ["d", "d/kept", "f"]


KINDS = {
    "file": file("x", b"f"),
    "directory": directory("x"),
    "link": symlink("x", "elsewhere"),
    "dangling": symlink("x", "/none"),
    "fifo": fifo("x"),
    "device": device("x", "c", 1, 3),
    "hard link": hard_link("x", "other"),
}


@pytest.mark.parametrize("lower", KINDS)
@pytest.mark.parametrize("upper", KINDS)
@pytest.mark.parametrize("layers", [1, 2])
def test_any_kind_replaces_any(make: Maker, lower: str, upper: str, layers: int) -> None:
    first = [file("other", b"o"), directory("elsewhere"), file("elsewhere/safe"), KINDS[lower]]
    if lower == "directory":
        first += [directory("x/y"), file("x/y/z")]
    entries = [first, [KINDS[upper]]] if layers == 2 else [[*first, KINDS[upper]]]
    disk = make.disk(*(layer(*each) for each in entries), size=2 * MIB)
    kept = ["x/y", "x/y/z"] if lower == upper == "directory" else []
    assert disk.tree() == ["elsewhere", "elsewhere/safe", "other", "x", *kept]
    types = {"link": stat.S_IFLNK, "dangling": stat.S_IFLNK, "directory": stat.S_IFDIR}
    types |= {"fifo": stat.S_IFIFO, "device": stat.S_IFCHR}
    assert stat.S_IFMT(disk["x"].mode) == types.get(upper, stat.S_IFREG)
    assert (disk["x"].number == disk["other"].number) == (upper == "hard link")
    assert disk["other"].data == b"o"


def test_whiteouts(make: Maker) -> None:
    base = layer(
        file("f"),
        directory("d"),
        file("d/a"),
        file("d/b"),
        symlink("dangling", "/none"),
        symlink("to-d", "d"),
    )
    disk = make.disk(
        base,
        layer(whiteout("f"), whiteout("d/a"), whiteout("dangling"), whiteout("not-there")),
    )
    assert disk.tree() == ["d", "d/b", "to-d"]
    assert make.disk(base, layer(whiteout("d"))).tree() == ["dangling", "f", "to-d"]


@pytest.mark.parametrize("first", [True, False])
def test_whiteout_hides_lower_layers_only(make: Maker, first: bool) -> None:
    """The order of a layer's entries says nothing."""
    entries = [file("f", b"new"), file("d/new")]
    hides = [whiteout("f"), whiteout("d")]
    disk = make.disk(
        layer(file("f", b"old"), file("d/old"), file("d/e/old")),
        layer(*(hides + entries if first else entries + hides)),
    )
    assert disk.tree() == ["d", "d/new", "f"]
    assert disk["f"].data == b"new"


@pytest.mark.parametrize("first", [True, False])
def test_opaque_hides_lower_layers_only(make: Maker, first: bool) -> None:
    entries = [file("d/new"), file("d/e/new")]
    disk = make.disk(
        layer(directory("d", uid=5), file("d/old"), file("d/e/old"), file("d/g/old"), file("k")),
        layer(*([opaque("d"), *entries] if first else [*entries, opaque("d")])),
    )
    assert disk.tree() == ["d", "d/e", "d/e/new", "d/new", "k"]
    assert disk["d"].owner == (5, 0)


def test_opaque_root(make: Maker) -> None:
    disk = make.disk(layer(file("a"), file("d/b")), layer(opaque("."), file("c")))
    assert disk.tree() == ["c"]


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh..."])
def test_whiteouts_of_nothing(make: Maker, name: str) -> None:
    disk = make.disk(layer(file("a"), file("d/b")), layer(file(name)))
    assert disk.tree() == ["a", "d", "d/b"]


def test_whiteout_below_what_is_no_directory(make: Maker) -> None:
    """umoci repack leaves such whiteouts behind where a directory became something else."""
    disk = make.disk(
        layer(file("opt/b/x"), file("real/x"), file("f/x")),
        layer(
            symlink("opt/b", "../real"),
            whiteout("opt/b/x"),
            opaque("opt/b"),
            file("f"),
            whiteout("f/x"),
            whiteout("none/x"),
            opaque("none"),
        ),
    )
    assert disk.tree() == ["f", "opt", "opt/b", "real", "real/x"]
    assert disk["opt/b"].data == b"../real"


def test_hard_links_across_layers(make: Maker) -> None:
    disk = make.disk(
        layer(file("a", b"data"), file("taken", b"old"), file("d/only", b"kept")),
        layer(hard_link("b", "a"), hard_link("taken", "./a"), hard_link("/d", "d/only")),
        layer(whiteout("a")),
    )
    assert disk.tree() == ["b", "d", "taken"]
    assert disk["b"].number == disk["taken"].number
    assert (disk["b"].data, disk["b"].links) == (b"data", 2)
    assert (disk["d"].data, disk["d"].links) == (b"kept", 1)


def test_hard_link_to_itself_changes_nothing(make: Maker) -> None:
    disk = make.disk(layer(file("a", b"data")), layer(hard_link("a", "a")))
    assert (disk["a"].data, disk["a"].links) == (b"data", 1)


def test_hard_link_to_a_symbolic_link(make: Maker) -> None:
    disk = make.disk(layer(symlink("l", "/none"), hard_link("m", "l")))
    assert disk["m"].number == disk["l"].number


@pytest.mark.parametrize("target", ["none", "none/x", "d", "/", ""])
def test_hard_link_to_what_cannot_be(make: Maker, target: str) -> None:
    make.fails(layer(directory("d"), hard_link("l", target)))


def test_names_through_symbolic_links(make: Maker) -> None:
    """A link on the way to a name is followed inside the image, as by umoci and Docker."""
    disk = make.disk(
        layer(
            directory("usr"),
            directory("usr/bin"),
            symlink("bin", "/usr/bin"),
            symlink("usr/up", "../../../../usr"),
            symlink("dangling", "/made/here"),
        ),
        layer(
            file("bin/sh"),
            file("usr/up/up/lib"),
            file("dangling/f"),
            hard_link("copy", "bin/../bin/sh"),
        ),
    )
    assert disk.tree() == sorted(
        ["bin", "copy", "dangling", "made", "made/here", "made/here/f"]
        + [f"usr{path}" for path in ("", "/bin", "/bin/sh", "/lib", "/up")]
    )
    assert disk["bin"].data == b"/usr/bin"
    assert disk["copy"].number == disk["usr/bin/sh"].number


def test_symbolic_links_that_go_round(make: Maker) -> None:
    loop = layer(symlink("a", "b"), symlink("b", "a"))
    assert "too many symbolic links" in make.fails(loop, layer(file("a/x")))
    # 2^30 lookups if each link were counted on its own
    bomb = [symlink(f"l{n}", f"l{n - 1}/l{n - 1}") for n in range(1, 30)]
    assert "too many symbolic links" in make.fails(layer(symlink("l0", "."), *bomb, file("l29/x")))


def test_depth_is_bounded(make: Maker) -> None:
    """Paths are, but links lead deeper."""
    step = "d/" * 1000
    entries = [directory(step), symlink("l1", step)]
    entries += [
        entry
        for n in range(1, 4)
        for entry in (directory(f"l{n}/{step}"), symlink(f"l{n + 1}", f"l{n}/{step}"))
    ]
    assert "nest more than" in make.fails(layer(*entries))


# The disk as a whole


def test_same_image_same_bytes(make: Maker) -> None:
    stream = layer(
        *(file(f"d{n % 7}/{n}", b"x" * n * 9, xattrs={"user.n": b"1"}) for n in range(99))
    )
    image = open_image(make.image(stream))
    first = base_disk(image, 16 * MIB).read_bytes()
    shutil.rmtree(make.cache)
    assert base_disk(image, 16 * MIB).read_bytes() == first


def test_same_bytes_however_the_layer_comes(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of more than one extent, in pieces of two sizes."""
    path = make.image(layer(file("f", b"x" * (140 * MIB))), compressed=False)
    sums = []
    for size in (128 << 10, 99_999):
        monkeypatch.setattr(stream, "_READ", size)
        disk = base_disk(open_image(path), 256 * MIB)
        sums.append(Path(f"{disk}.crc32").read_bytes())
        disk.unlink()
    assert sums[0] == sums[1]


def test_a_child_forked_meanwhile_holds_nothing_up(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = []

    def forking(*arguments: Any) -> Iterator[bytes]:
        for piece in stream.uncompressed(*arguments):
            if not children:
                pid = os.fork()
                if not pid:
                    signal.pause()  # with both ends of the socket, and the part file
                children.append(pid)
            yield piece

    monkeypatch.setattr(disk_writer, "uncompressed", forking)
    try:
        assert make.disk(layer(file("f"))).tree() == ["f"]
        (child,) = children
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_needed_size_counts_what_is_outside_inodes(make: Maker) -> None:
    """Ours is the size that would do, and does."""
    links = [symlink(f"l{n}", "t" * 100) for n in range(3000)]
    noted = [file(f"f{n}", b"x", xattrs={"user.note": b"n" * 500}) for n in range(3000)]
    both = layer(*links, *noted)
    with pytest.raises(DiskError) as caught:
        make.disk(both, size=16 * MIB)
    found = re.search(r"(\d+) MiB would do", str(caught.value))
    assert found
    assert make.disk(both, size=int(found[1]) * MIB)["l0"].data == b"t" * 100


def test_empty_space_costs_nothing(make: Maker) -> None:
    path = base_disk(open_image(make.image(layer(file("f", b"x")))), 8 << 30)
    status = path.stat()
    assert status.st_size == 8 << 30
    assert status.st_blocks * 512 < 2 * MIB
    assert stat.S_IMODE(status.st_mode) == 0o444
    check(path)


def test_space_of_removed_files_is_used_again(make: Maker) -> None:
    big = os.urandom(6 * MIB)
    disk = make.disk(*(layer(file("f", big[n:])) for n in range(5)), layer(file("g", b"y")))
    assert disk["f"].data == big[4:]


def test_freed_blocks_do_not_shine_through(make: Maker) -> None:
    """A short file in a used block, and the hole before a sparse file's data."""
    disk = make.disk(
        layer(file("old", b"\xff" * 10 * MIB)),
        layer(whiteout("old")),
        layer(*(file(f"{n}", b"new") for n in range(2500))),
    )
    for node in (disk["0"], disk["2499"]):
        ((_, physical, count),) = disk.extents(node.raw[40:100])
        assert disk.read(physical * 4096, count * 4096) == b"new".ljust(4096, b"\0")


@pytest.mark.parametrize(
    "stream",
    [
        layer(file("f", os.urandom(20 * MIB))),
        layer(*(file(f"{n}") for n in range(9000))),
        layer(*(directory(f"{n}") for n in range(5000))),
        layer(*(file(f"{n}", b"x") for n in range(5000))),
        layer(*(symlink(f"{n}", "t" * 100) for n in range(5000))),
    ],
    ids=["bytes", "inodes", "directories", "small files", "long links"],
)
def test_too_small(make: Maker, stream: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    image = open_image(make.image(stream))
    with pytest.raises(DiskError) as caught:
        base_disk(image, 8 * MIB)
    assert list(make.cache.iterdir()) == []
    assert capfd.readouterr() == ("", "")  # libext2fs has its own words for some mistakes
    message = str(caught.value)
    assert message.startswith("disk too small for the image: 8 MiB, ")
    would_do = int(message.split()[8])
    assert would_do <= 64
    check(base_disk(image, would_do * MIB))


@pytest.mark.parametrize("size", [0, 4095, MIB - 1])
def test_far_too_small(make: Maker, size: int) -> None:
    with pytest.raises(DiskError, match="too small"):
        base_disk(open_image(make.image(layer())), size)


@pytest.mark.parametrize("size", [MIB, 2 * MIB, 5 * MIB + 4096 + 1, 129 * MIB, 300 * MIB])
def test_odd_sizes(make: Maker, size: int) -> None:
    assert make.disk(layer(file("f", b"x")), size=size).tree() == ["f"]


def test_cache(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    image = open_image(make.image(layer(file("f"))))
    steps: list[str] = []
    first = base_disk(image, 16 * MIB, progress=steps.append)
    assert len(steps) == 2
    assert base_disk(image, 16 * MIB, progress=steps.append) == first
    assert len(steps) == 2
    assert base_disk(image, 32 * MIB) != first
    assert make.disks() == sorted([first, base_disk(image, 32 * MIB)])


def test_a_disk_cut_short_is_made_again(make: Maker) -> None:
    image = open_image(make.image(layer(file("f", b"x" * 9999))))
    path = base_disk(image, 16 * MIB)
    good = path.read_bytes()
    os.truncate(path, 3 * MIB)
    assert base_disk(image, 16 * MIB).read_bytes() == good


def test_damaged_disks_are_found(make: Maker) -> None:
    kept, damaged = (
        base_disk(open_image(make.image(layer(file("f", data)))), 16 * MIB) for data in (b"1", b"2")
    )
    path = str(damaged)
    assert {base.path: disk_cache.is_intact(base) for base in disk_cache.bases()} == {
        path: True,
        str(kept): True,
    }
    with open(path, "r+b") as disk:
        disk.seek(MIB)
        disk.write(b"\1")
    intact = {base.path: disk_cache.is_intact(base) for base in disk_cache.bases()}
    assert intact == {path: False, str(kept): True}
    for base in disk_cache.bases():
        if base.path == path:
            disk_cache.remove(base)
    assert make.disks() == [kept]
    assert sorted(make.cache.iterdir()) == [kept, Path(f"{kept}.crc32")]


def test_holes_and_zeros_are_the_same_to_the_checksum(make: Maker) -> None:
    path = base_disk(open_image(make.image(layer(file("f", b"x" * 9999)))), 16 * MIB)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    assert [disk_cache.is_intact(base) for base in disk_cache.bases()] == [True]


def test_two_at_once_make_it_once(make: Maker) -> None:
    image = open_image(make.image(layer(*(file(f"{n}", b"x" * 9999) for n in range(300)))))
    steps: list[str] = []
    paths: list[Path] = []

    def run() -> None:
        paths.append(base_disk(image, 16 * MIB, progress=steps.append))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert len(paths) == 4
    assert len(steps) == 2
    assert make.disks() == [paths[0]]
    check(paths[0])


def test_part_file_of_a_killed_process_is_taken_over(make: Maker) -> None:
    """If nobody has swept it away before: here, between the two."""
    image = open_image(make.image(layer(file("f", b"x"))))
    path = base_disk(image, 16 * MIB)
    good = path.read_bytes()
    path.unlink()
    Path(f"{path}.crc32").unlink()

    def left(_: str) -> None:
        Path(cache.part_of(f"{path}.crc32")).write_bytes(b"\xff" * 20)

    Path(cache.part_of(str(path))).write_bytes(b"\xff" * 20 * MIB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "sweep", lambda: 0)
        assert base_disk(image, 16 * MIB, progress=left).read_bytes() == good
    assert make.disks() == [path]
    assert os.listdir(cache.unfinished()) == []


def test_a_run_of_a_disk_that_is_there_removes_what_killed_ones_left(make: Maker) -> None:
    image = open_image(make.image(layer(file("f", b"x"))))
    base_disk(image, 16 * MIB)
    Path(cache.unfinished(), "other.ext4.part").write_bytes(b"x")
    base_disk(image, 16 * MIB)
    assert os.listdir(cache.unfinished()) == []


def test_docker_archive(make: Maker) -> None:
    saved = docker_archive(
        make.path / "i.tar", layer(file("a", b"1")), layer(file("b", b"2")), compressed=True
    )
    path = base_disk(open_image(saved), 16 * MIB)
    check(path)
    assert Disk(path).tree() == ["a", "b"]
