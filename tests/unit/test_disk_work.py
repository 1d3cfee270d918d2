"""Small layers that would keep the writer busy for hours, or fill the host's memory: each meets a
bound, or costs little."""

from __future__ import annotations

from pyvmm.oci import open_image
from pyvmm.oci.limits import Limits

from .ext4_reader import Disk
from .images import directory, file, layer, opaque, symlink, whiteout
from .test_disk import MIB, Maker, base_disk, make

__all__ = ["make"]


def test_many_extended_attributes(make: Maker) -> None:
    stored = {"user.a": b"1", "user.b": b"2"}
    foreign = {f"com.apple.{number}": b"" for number in range(254)}
    disk = make.disk(layer(file("f", xattrs=foreign | stored)))
    assert disk["f"].xattrs == {b"user.a": b"1", b"user.b": b"2"}
    stream = layer(file("f", xattrs=foreign | stored | {"com.apple.last": b""}))
    assert "more than 256 extended attributes" in make.fails(stream)


def test_whiteouts_over_and_over(make: Maker) -> None:
    below = layer(directory("d/old"), file("d/gone"))
    # 100 million visits, were each of them to look at all the names
    names = [file(f"d/{number}") for number in range(10_000)]
    again = [entry for _ in range(5_000) for entry in (opaque("d"), whiteout("d"))]
    disk = make.disk(below, layer(*names, *again, file("d/new")), size=128 << 20)
    assert disk.tree() == sorted(["d", "d/new", *(f"d/{number}" for number in range(10_000))])


def test_steps_through_symbolic_links(make: Maker) -> None:
    there_and_back = "/".join(["d/.."] * 800)
    links = [symlink(f"s{number}", f"s{number + 1}/{there_and_back}") for number in range(38)]
    files = [file(f"s0/f{number}") for number in range(1200)]
    message = make.fails(layer(directory("d"), symlink("s38", "."), *links, *files))
    assert "more than 67108864 steps through symbolic links" in message


def test_memory_beside_the_names(make: Maker) -> None:
    limits = Limits(entries=100)
    within = [symlink(f"l{number}", "t" * 4000) for number in range(6)]
    made = base_disk(open_image(make.image(layer(*within))), 16 * MIB, limits=limits)
    assert len(Disk(made).tree()) == 6
    for beyond in (
        symlink("l6", "t" * 4000),
        file("f", xattrs={"user.a": b"v" * 2000}),
    ):
        message = make.fails(layer(*within, beyond), limits=limits)
        assert "more than 25600 bytes of link targets, extended attributes and extents" in message
