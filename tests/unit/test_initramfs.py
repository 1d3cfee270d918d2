"""The initramfs: read back by cpio(1), which did not write it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from pyvmm import initramfs
from pyvmm.kernel import Kernel

needs_cpio = pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio command")


@pytest.fixture
def modules(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "kernel-1" / "modules" / name for name in ("virtio.ko", "vsock.ko")]
    paths[0].parent.mkdir(parents=True)
    paths[0].write_bytes(b"first\n")
    paths[1].write_bytes(bytes(range(256)))
    return paths


def contents(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


@needs_cpio
def test_cpio_lists_what_is_in_it(modules: list[Path]) -> None:
    archive = initramfs.build(b"#!init", contents(modules))
    done = subprocess.run(
        ["cpio", "--list", "--verbose", "--numeric-uid-gid"],
        input=archive,
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | {"TZ": "UTC", "LC_ALL": "C"},
    )
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert [(line[0], line[2], line[3], line[-1]) for line in lines] == [
        ("drwxr-xr-x", "0", "0", "dev"),
        ("crw-------", "0", "0", "dev/console"),
        ("drwxr-xr-x", "0", "0", "root"),
        ("-rwxr-xr-x", "0", "0", "init"),
        ("drwxr-xr-x", "0", "0", "modules"),
        ("-rw-r--r--", "0", "0", "modules/00.ko"),
        ("-rw-r--r--", "0", "0", "modules/01.ko"),
    ]
    assert lines[1][4:6] == ["5,", "1"]


@needs_cpio
def test_cpio_unpacks_the_contents(modules: list[Path], tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    subprocess.run(
        ["cpio", "--extract", "--quiet", "init", "root", "modules*"],
        input=initramfs.build(b"#!init", contents(modules)),
        cwd=into,
        check=True,
    )
    assert (into / "init").read_bytes() == b"#!init"
    assert stat.S_IMODE((into / "init").stat().st_mode) == 0o755
    assert (into / "root").is_dir()
    assert (into / "modules/00.ko").read_bytes() == b"first\n"
    assert (into / "modules/01.ko").read_bytes() == bytes(range(256))


def test_an_entry_byte_for_byte() -> None:
    entry = initramfs.Entry("/a", stat.S_IFREG | 0o644, b"xyz")
    assert initramfs.cpio([entry]) == (
        b"070701" b"00000001" b"000081A4" b"00000000" b"00000000" b"00000001" b"00000000"
        b"00000003" b"00000000" b"00000000" b"00000000" b"00000000" b"00000002" b"00000000"
        b"a\0xyz\0"
        b"070701" b"00000002" b"00000000" b"00000000" b"00000000" b"00000001" b"00000000"
        b"00000000" b"00000000" b"00000000" b"00000000" b"00000000" b"0000000B" b"00000000"
        b"TRAILER!!!\0\0\0\0"
    )  # fmt: skip


def test_the_cache_makes_each_initramfs_once(
    modules: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    init = tmp_path / "init"
    init.write_bytes(b"one")
    stock = Kernel("stock", "", "6", 0, None, (), True, tuple(map(str, modules)))
    bare = Kernel("minimal", "", "6", 0, None, (), False, ())

    def made_for(kernel: Kernel) -> Path:
        return Path(initramfs.initramfs_for(kernel, str(init)))

    path = made_for(stock)
    assert path.read_bytes() == initramfs.build(b"one", contents(modules))
    made = path.stat().st_mtime_ns
    assert made_for(stock) == path
    assert path.stat().st_mtime_ns == made
    assert made_for(bare).read_bytes() == initramfs.build(b"one")
    first = init.stat().st_ctime_ns
    while init.stat().st_ctime_ns == first:  # whose clock may tick a hundred times a second only
        init.write_bytes(b"two")
    assert made_for(stock).read_bytes() == initramfs.build(b"two", contents(modules))
    assert len(list(path.parent.iterdir())) == 3
