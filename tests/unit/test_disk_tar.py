"""Layers as bytes: compression, the dialects of tar, and damage of every sort."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from backports import zstd

from pyvmm.errors import ImageError, UsageError
from pyvmm.oci import open_image
from pyvmm.oci.limits import Limits, parse_limits

from .ext4_reader import Disk
from .images import (
    OCI_CONFIG,
    OCI_LAYER,
    Layout,
    directory,
    entry,
    file,
    layer,
    sha256,
    symlink,
)
from .test_disk import MIB, Maker, base_disk, check, make

__all__ = ["make"]

STREAM = layer(directory("d"), file("d/f", b"contents" * 999), symlink("l", "d/f"))


def stored(make: Maker, stream: bytes, blob: bytes, media_type: str) -> Path:
    """A layout whose one layer is ``stream``, stored as ``blob``."""
    made = Layout(make.path / "stored")
    config = made.document(made.configuration([stream]), OCI_CONFIG)
    made.refer(made.manifest(config, [made.blob(blob, media_type)]))
    return made.path


def check_stored(make: Maker, stream: bytes, blob: bytes, media_type: str) -> Disk:
    path = base_disk(open_image(stored(make, stream, blob, media_type)), 16 * MIB)
    check(path)
    return Disk(path)


def fails_stored(make: Maker, stream: bytes, blob: bytes, media_type: str) -> str:
    with pytest.raises(ImageError) as caught:
        base_disk(open_image(stored(make, stream, blob, media_type)), 16 * MIB)
    assert list(make.cache.iterdir()) == []
    return str(caught.value)


def test_plain(make: Maker) -> None:
    assert check_stored(make, STREAM, STREAM, OCI_LAYER).tree() == ["d", "d/f", "l"]


def test_gzip_of_several_members(make: Maker) -> None:
    pieces = [STREAM[i : i + 700] for i in range(0, len(STREAM), 700)]
    blob = b"".join(gzip.compress(piece) for piece in pieces)
    disk = check_stored(make, STREAM, blob, f"{OCI_LAYER}+gzip")
    assert disk["d/f"].data == b"contents" * 999


def test_zstd(make: Maker) -> None:
    blob = subprocess.run(["zstd", "-c"], input=STREAM, capture_output=True, check=True).stdout
    disk = check_stored(make, STREAM, blob, f"{OCI_LAYER}+zstd")
    assert disk["d/f"].data == b"contents" * 999


def test_zstd_of_several_frames(make: Maker) -> None:
    skippable = b"\x53\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"  # RFC 8878 §3.1.2
    pieces = [STREAM[i : i + 700] for i in range(0, len(STREAM), 700)]
    blob = skippable.join([b"", *(zstd.compress(piece) for piece in pieces), b""])
    disk = check_stored(make, STREAM, blob, f"{OCI_LAYER}+zstd")
    assert disk["d/f"].data == b"contents" * 999


@pytest.mark.parametrize("junk", [b"\0" * 512, b"\x1f", b"junk", b"\x28\xb5\x2f\xfd"])
def test_what_follows_the_last_member_and_is_none_is_nothing(make: Maker, junk: bytes) -> None:
    disk = check_stored(make, STREAM, gzip.compress(STREAM) + junk, f"{OCI_LAYER}+gzip")
    assert disk.tree() == ["d", "d/f", "l"]


@pytest.mark.parametrize("layers", [0, 1])
def test_a_compression_bomb_is_refused(make: Maker, layers: int) -> None:
    """Zeros: 80 MiB in 80 KB. The stream is never held, only counted."""
    bomb = bytes(80 << 20)
    message = make.fails(*[layer(file("f"))] * layers, layer(file("bomb", bomb)), size=256 * MIB)
    assert message.endswith(
        ": more than 200 times as large uncompressed (--image-limit ratio=…)"
    ), message


@pytest.mark.parametrize("part", [gzip.compress(b"", mtime=0), b"\x50\x2a\x4d\x18" + bytes(4)])
def test_members_of_nothing_are_counted(make: Maker, part: bytes) -> None:
    message = fails_stored(make, b"", part * 300_001, OCI_LAYER)
    assert message.endswith(": cannot be decompressed: it has more than 300000 parts")


def test_limits(make: Maker) -> None:
    small = layer(*(file(f"{n}") for n in range(10)))
    assert make.fails(small, layer(file("more")), limits=Limits(entries=10)).endswith(
        "more than 10 names (--image-limit entries=…)"
    )
    long = "d/" * 50 + "f"
    assert make.fails(layer(file(long)), limits=Limits(path=100)).endswith(
        f"{long[:64]}...: name of more than 100 bytes (--image-limit path=…)"
    )
    assert make.fails(small, small, limits=Limits(size=2 * len(small) - 1)).endswith(
        f"with it the image has more than {2 * len(small) - 1} bytes (--image-limit size=…)"
    )


@pytest.mark.parametrize("compressed", [True, False])
def test_wrong_diff_id(make: Maker, compressed: bool) -> None:
    blob = gzip.compress(STREAM) if compressed else STREAM
    media_type = f"{OCI_LAYER}+gzip" if compressed else OCI_LAYER
    message = fails_stored(make, STREAM + bytes(512), blob, media_type)
    assert f"uncompressed contents are not {sha256(STREAM + bytes(512))}" in message


@pytest.mark.parametrize("cut", [1, 8, 9, 100])
@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_truncated(make: Maker, cut: int, kind: str) -> None:
    blob = {"gzip": gzip.compress, "zstd": zstd.compress}[kind](STREAM)
    message = fails_stored(make, STREAM, blob[:-cut], f"{OCI_LAYER}+{kind}")
    assert message.endswith(": cannot be decompressed: it is truncated")


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd.compress])
@pytest.mark.parametrize("at", [0, 40, 100, -1])
def test_damage_is_said_to_be_damage(
    make: Maker, compress: Callable[[bytes], bytes], at: int
) -> None:
    """Not what it did to the tar or the compressed stream, at which other threads look."""
    blob = bytearray(compress(STREAM))
    path = stored(make, STREAM, bytes(blob), OCI_LAYER)
    image = open_image(path)
    blob[at] ^= 0xFF
    Path(image.layers[0].blob.path).write_bytes(blob)
    with pytest.raises(ImageError, match=r"damaged: .*; fetch the image again"):
        base_disk(image, 16 * MIB)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_formats(make: Maker, format: int) -> None:
    long = "n" * 90 + "/" + "m" * 90
    entries = [file("a", b"1", uid=2097151, mtime=8589934591), file(long, b"2"), file("b\xfc")]
    if format != tarfile.USTAR_FORMAT:
        entries += [symlink("l", "t" * 300), file("o" * 255, uid=4294967295, mtime=-5)]
    disk = make.disk(layer(*entries, format=format))
    assert (disk["a"].owner[0], disk["a"].mtime_ns) == (2097151, 8589934591 * 10**9)
    assert disk[long].data == b"2"
    assert "b\xfc" in disk.tree()
    if format != tarfile.USTAR_FORMAT:
        assert disk["l"].data == b"t" * 300
        assert (disk["o" * 255].owner[0], disk["o" * 255].mtime_ns) == (4294967295, -5 * 10**9)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_that_are_not_unicode(make: Maker, format: int) -> None:
    disk = make.disk(layer(file(b"\xff/\xfe" + b"x" * 120, b"1"), format=format))
    assert disk[b"\xff/\xfe" + b"x" * 120].data == b"1"


def test_raw_bytes_in_pax_path_without_charset(make: Maker) -> None:
    """As Go's archive/tar writes them."""
    record = b"%d path=a\xff\xfe\n" % (len(b" path=a\xff\xfe\n") + 2)
    stream = layer(entry("h", tarfile.XHDTYPE, record), file("placeholder", b"1"))
    assert make.disk(stream).paths[b"a\xff\xfe"].data == b"1"


def test_old_directories_and_contiguous_files(make: Maker) -> None:
    disk = make.disk(layer(entry("d/", b"\0"), entry("f", b"\0", b"1"), entry("c", b"7", b"2")))
    assert disk.tree() == ["c", "d", "f"]
    assert (disk["f"].data, disk["c"].data, list(disk["d"].names())[2:]) == (b"1", b"2", [])


def test_global_headers_are_skipped(make: Maker) -> None:
    stream = layer(entry("g", tarfile.XGLTYPE, b"19 comment=version\n"), file("f"))
    assert make.disk(stream).tree() == ["f"]


@pytest.mark.parametrize("end", [0, 1, 424, 424 + 512])
def test_ends_without_the_end_mark(make: Maker, end: int) -> None:
    """Some writers stop after the last byte of data; the diff_id says whether that is all."""
    whole = layer(file("a", b"x" * 600))
    assert make.disk(whole[: 512 + 600] + bytes(end)).tree() == ["a"]


def test_after_the_end_mark_nothing_counts(make: Maker) -> None:
    assert make.disk(layer(file("a")) + layer(file("b")) + b"\xff" * MIB).tree() == ["a"]


@pytest.mark.parametrize("format", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse(make: Maker, format: str) -> None:
    source = make.path / "sparse"
    contents = bytearray(3 * MIB)
    for offset in (5, 100_000, 1 << 20, (2 << 20) + 4096):
        contents[offset : offset + 3000] = os.urandom(3000)
    for n in range(60):  # more than one extension block of the GNU header holds
        contents[n * 20000 + 150_000] = 1
    with source.open("wb") as out:  # holes must be holes
        for start in range(0, len(contents), 4096):
            piece = contents[start : start + 4096]
            if any(piece):
                out.seek(start)
                out.write(piece)
        out.truncate(len(contents))
    options = (
        ["--format=gnu"] if format == "gnu" else ["--format=pax", f"--sparse-version={format}"]
    )
    command = ["tar", "-C", make.path, "--sparse", *options, "-cf", "-", "sparse"]
    stream = subprocess.run(command, capture_output=True, check=True).stdout
    assert len(stream) < MIB
    node = make.disk(stream)["sparse"]
    assert node.data == bytes(contents)
    assert node.blocks < 100


def test_hole_of_many_terabytes(make: Maker) -> None:
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "f"}
    size = (2**32 - 1) * 4096
    data = b"1\n%d\n3\n" % (size - 3)
    info, _ = file("x")
    info.pax_headers = {**pax, "GNU.sparse.realsize": str(size)}
    body = data.ljust(512, b"\0") + b"end"
    info.size = len(body)
    node = make.disk(layer((info, body)))["f"]
    assert (node.size, node.blocks) == (size, 1)
    info.pax_headers["GNU.sparse.realsize"] = str(size + 1)
    assert "file of" in make.fails(layer((info, body)))


def header(**fields: object) -> bytes:
    """One header block with raw bytes at offsets, and the right checksum."""
    info, _ = file("f", b"")
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    for key, value in fields.items():
        offset = {"size": 124, "uid": 108, "mtime": 136, "kind": 156, "mode": 100}[key]
        assert isinstance(value, bytes)
        block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)


@pytest.mark.parametrize(
    ("stream", "word"),
    [
        (header(size=b"77777777777\0") + END, "truncated"),
        (header(size=b"\xff" * 12) + END, "bad size"),
        (header(size=b"\x80" + b"\xff" * 11) + END, "bad size"),
        (header(size=b"\x80\0\0\0\x7f" + b"\xff" * 7) + END, "bad size"),
        (header(size=b"00000000009\0") + END, "bad size"),
        (header(uid=b"\xff" * 8) + END, "bad owner"),
        (header(uid=b"\x80\0\0\x01\0\0\0\0") + END, "bad owner"),
        (header(mtime=b"x") + END, "bad time"),
        (header(mode=b"9") + END, "bad mode"),
        (header(kind=b"Z") + END, "unknown tar entry type 0x5a"),
        (header(kind=b"x", size=b"00000010000\0") + END, "truncated"),
        (header(kind=b"x", size=b"00020000000\0") + END, "larger than 1 MiB"),
        (header(kind=b"L", size=b"77777777777\0") + END, "larger than 1 MiB"),
        (b"\xff" * 1024, "bad checksum"),
        (STREAM[:700], "truncated"),
        (STREAM[:512] + b"x", "truncated"),
        (layer(entry("c", b"3", devmajor=4096)), "does not exist on Linux"),
        (layer(symlink("l", "")), "target of 0 bytes"),
        (layer(symlink("l", "t" * 4096)), "target of 4096 bytes"),
    ],
)
def test_bad_headers(make: Maker, stream: bytes, word: str) -> None:
    assert word in make.fails(stream)


@pytest.mark.parametrize(
    "records",
    [
        b"x",
        b"0 path=x\n",
        b"9 path=x",
        b"99999999999999999999 path=x\n",
        b"30 path=x\n",
        b"3 \n",
        b"8 path\nx",
        b"10 =path\n\n",
        b"11 path=\0x\n",
        b"18 path=\0\0\0\0\0\0\0\0\n",
        b"12 size=-5\n\n"[:-1],
        b"28 size=9999999999999999999\n",
        b"16 uid=4294967296\n",
        b"14 mtime=1e30\n",
        b"13 mtime=-.\n\n"[:-1],
        b"32 GNU.sparse.map=1,2,3,4,5,6,7,\n",
        b"25 GNU.sparse.offset=12\n\n"[:-1],
        b"27 GNU.sparse.numbytes=12\n\n"[:-1],
    ],
)
def test_bad_pax_records(make: Maker, records: bytes) -> None:
    make.fails(layer(entry("h", tarfile.XHDTYPE, records), file("f", b"x")))


@pytest.mark.parametrize(
    "map",
    ["5,3,2,1", "0,3,2,1", "0,1", "0,99", "9,1", f"{2**62},1", "0," + str(2**61), "0,2,11,2"],
)
def test_bad_sparse_maps(make: Maker, map: str) -> None:
    """Four bytes of data in a file of ten."""
    info, data = file("f", b"data")
    info.pax_headers = {"GNU.sparse.size": "10", "GNU.sparse.map": map}
    make.fails(layer((info, data)))


@pytest.mark.parametrize("map", ["", "x\n", "\n", "1\n", "9999999\n0\n1\n", "2\n0\n1\n0\n1\n"])
def test_bad_sparse_maps_in_the_data(make: Maker, map: str) -> None:
    info, _ = file("f")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": "10",
    }
    body = map.encode().ljust(512, b"\0") + b"da"
    info.size = len(body)
    make.fails(layer((info, body)))


def test_messages_are_one_printable_line(make: Maker) -> None:
    message = make.fails(layer(file("f"), file(b"f/\x1b[2J\n\xff/x")))
    assert message.isprintable()


def fix_checksums(stream: bytearray) -> None:
    """Of every block that looks like a header, so that mutations get past the first check."""
    for start in range(0, len(stream) - 511, 512):
        block = stream[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            stream[start + 148 : start + 156] = b"%06o\0 " % sum(block)


def test_mutated_streams(make: Maker) -> None:
    """Whatever the bytes: a sound disk or one error."""
    seed = [
        layer(
            directory("d", xattrs={"user.x": b"y"}),
            file("d/f", b"contents" * 99),
            symlink("l", "d"),
            file("l/" + "n" * 150, b"2"),
            entry("h", tarfile.LNKTYPE, linkname="d/f"),
            file("d/.wh.f"),
            file("d/.wh..wh..opq"),
            format=format,
        )
        for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    ]
    dice = random.Random(7)
    sound = 0
    for number in range(150):
        stream = bytearray(seed[number % 2])
        for _ in range(dice.randrange(1, 12)):
            stream[dice.randrange(len(stream))] = dice.choice([0, 0x2F, 0x2E, 0x37, 0x80, 0xFF])
        fix_checksums(stream)
        image = open_image(make.image(bytes(stream), compressed=False))
        with suppress(ImageError):
            path = base_disk(image, 2 * MIB)
            check(path)
            Disk(path)
            sound += 1
        shutil.rmtree(make.cache, ignore_errors=True)
    assert 10 < sound < 150


def test_limits_in_words() -> None:
    assert parse_limits({}) == Limits()
    assert parse_limits({"size": "4G", "entries": 100}) == Limits(size=4 << 30, entries=100)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"files": 1},
            "no image limit 'files': there are size, ratio, layers, entries, path, config",
        ),
        ({"size": "much"}, "image limit size=much: write a number, or a size as 4G"),
        ({"size": -1}, "image limit size=-1: write a number, or a size as 4G"),
        ({"layers": 0}, "image limit layers=0: must be more than 0"),
        ({"path": 4096}, "image limit path=4096: at most 4095"),
        ({"entries": "4M"}, "image limit entries=4194304: at most 3145728"),
    ],
)
def test_limits_that_are_none(values: dict[str, int | str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_limits(values)
    assert str(caught.value) == message
