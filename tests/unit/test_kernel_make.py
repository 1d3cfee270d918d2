"""Fetching and building kernels: everything but the download and the compiler."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm import kernel
from pyvmm.errors import KernelError
from pyvmm.kernel import debian, elf, minimal, modules, stock

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pyvmm/kernels")


def make_module(path: Path, depends: str) -> bytes:
    """A file with a .modinfo section's strings, as much of a module as pyvmm looks at."""
    data = b"\x7fELF....\0license=GPL\0depends=" + depends.encode() + b"\0retpoline=Y\0"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(data) if path.suffix == ".xz" else data)
    return data


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    blk = make_module(tmp_path / "drivers/block/virtio_blk.ko", "virtio,virtio_ring")
    virtio = make_module(tmp_path / "drivers/virtio/virtio.ko", "virtio_ring")
    ring = make_module(tmp_path / "drivers/virtio/virtio_ring.ko.xz", "")
    rng = make_module(tmp_path / "drivers/char/virtio-rng.ko.xz", "virtio,rng-core")
    make_module(tmp_path / "unused.ko", "")
    found = modules.closure(tmp_path, ["virtio_rng", "ext4", "virtio_blk"])
    assert list(found.items()) == [
        ("virtio_ring", ring),
        ("virtio", virtio),
        ("virtio_rng", rng),
        ("virtio_blk", blk),
    ]


def test_options_that_did_not_survive_are_named() -> None:
    fragment = '# why\nCONFIG_A=y\nCONFIG_B=64\nCONFIG_C="-x"\n# CONFIG_D is not set\n'
    whole = 'CONFIG_A=y\nCONFIG_B=64\nCONFIG_C="-x"\n'
    minimal.check_options(fragment, whole)
    minimal.check_options(fragment, whole + "# CONFIG_D is not set\n")
    with pytest.raises(KernelError) as error:
        minimal.check_options(fragment, "CONFIG_A=m\nCONFIG_B=64\nCONFIG_D=y\n")
    assert str(error.value) == (
        'the kernel\'s configuration refuses: CONFIG_A=y, CONFIG_C="-x", CONFIG_D is not set'
    )


def test_the_shipped_options_are_each_named_once() -> None:
    lines = minimal._fragment().splitlines()
    names = [line.lstrip("# ").split("=")[0].split()[0] for line in lines if "CONFIG_" in line]
    assert len(names) == len(set(names))


def test_build_names_missing_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    have = shutil.which
    absent = {"flex", "bc"}
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool in absent else have(tool))
    monkeypatch.setattr(Path, "exists", lambda path: path.name != "gelf.h")
    with pytest.raises(KernelError) as error:
        kernel.build()
    assert str(error.value) == (
        "building a kernel needs flex, bc, libelf-dev: apt-get install flex bc libelf-dev"
    )


def fake_tools(directory: Path, **scripts: str) -> None:
    directory.mkdir()
    for name, script in scripts.items():
        tool = directory / name.replace("_", "-")
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)


def test_apt_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tools(tmp_path / "bin", apt_get="echo 'Reading'; echo 'E: No such package' >&2; exit 100")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(KernelError) as error:
        debian.archive_name("x")
    assert str(error.value) == (
        "apt-get --print-uris: E: No such package (is `apt-get update` needed?)"
    )
    with pytest.raises(KernelError) as error:
        debian.dependency("x", "linux-image-")
    assert str(error.value) == ("no apt-cache here: not a Debian host; name a kernel file instead")


@pytest.fixture
def fake_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """apt and dpkg-deb for one package, whose kernel is the bytes given."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(vmlinux: bytes) -> None:
        image = bytearray(0x600)
        image[0x1F1] = 1
        image[0x202:0x208] = b"HdrS\x0f\x02"
        payload = gzip.compress(vmlinux)
        struct.pack_into("<II", image, 0x248, 0x200, len(payload))
        (tmp_path / "tree/boot").mkdir(parents=True)
        (tmp_path / "tree/boot/vmlinuz-6.1.0-9-cloud").write_bytes(image + payload)
        lib = tmp_path / "tree/lib/modules/6.1.0-9-cloud/kernel"
        make_module(lib / "virtio.ko", "")
        for name in ("virtio_mmio", "virtio_blk", "vmw_vsock_virtio_transport"):
            make_module(lib / f"{name}.ko", "virtio")
        fake_tools(
            tmp_path / "bin",
            apt_cache='echo "$2"; echo "  Depends: linux-image-6.1.0-9-cloud"',
            apt_get="if [ $1 = --print-uris ]\n"
            "then echo \"'http://x/y.deb' linux-image-6.1.0-9-cloud_6.1.9-1_amd64.deb\"\n"
            "else echo >x.deb; fi",
            dpkg_deb=f'cp -r {tmp_path}/tree/* "$3"',
        )
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    return make


def test_fetch_keeps_the_kernel_and_its_modules(
    fake_debian: Callable[[bytes], None], tmp_path: Path
) -> None:
    text = b"Linux version 6.1.0-9-cloud (a@b)\0ACPI: Interpreter enabled\0EXT4-fs error\0"
    head = b"\x7fELF\2\1\1" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 200, 200, 4096)
    vmlinux = head + text.ljust(80, b"\0")
    fake_debian(vmlinux)
    said: list[str] = []
    found = kernel.fetch(progress=said.append)
    place = tmp_path / "cache/pyvmm/kernels/stock-6.1.9-1"
    assert said == [
        "asking apt for linux-image-cloud-amd64",
        "downloading linux-image-6.1.0-9-cloud 6.1.9-1",
        "unpacking the kernel",
    ]
    assert found.name == "stock"
    assert found.path == str(place / "vmlinux")
    assert Path(found.path).read_bytes() == vmlinux
    assert found.version == "6.1.0-9-cloud"
    assert found.acpi
    names = ("virtio", "virtio_mmio", "virtio_blk", "vmw_vsock_virtio_transport")
    assert found.modules == tuple(str(place / f"modules/{name}.ko") for name in names)
    assert kernel.find() == found
    assert kernel.installed() == [found]
    # A second time there is nothing to download, and nothing is left lying about.
    assert kernel.fetch(progress=said.append) == found
    assert said[3:] == ["asking apt for linux-image-cloud-amd64"]
    assert sorted(p.name for p in place.parent.iterdir()) == ["stock", "stock-6.1.9-1"]


def test_a_failed_fetch_leaves_nothing(
    fake_debian: Callable[[bytes], None], tmp_path: Path
) -> None:
    fake_debian(b"no kernel")
    with pytest.raises(KernelError, match="damaged ELF: Magic number does not match"):
        stock.fetch(lambda _line: None)
    assert list((tmp_path / "cache/pyvmm/kernels").iterdir()) == []


def real(name: str) -> Path:
    path = CACHE / name / "vmlinux"
    if not path.exists():
        pytest.skip(f"the {name} kernel is not in the cache: run `make kernels`")
    return path


def test_the_minimal_kernel() -> None:
    image = elf.inspect(real("minimal").read_bytes())
    assert image.version.startswith("6.12.")
    assert image.version.endswith("-pyvmm")
    assert not image.acpi
    assert image.pvh_entry == 0x1000000
    assert 0x1000000 < image.entry < 0x1001000
    assert image.segments[0].paddr == 0x1000000
    assert sum(segment.filesz for segment in image.segments) < 12 << 20


def test_the_stock_kernel_needs_its_modules() -> None:
    data = real("stock").read_bytes()
    with pytest.raises(KernelError) as error:
        elf.inspect(data)
    assert str(error.value) == "the kernel has no built-in virtio-mmio, virtio-blk, virtio-vsock"
    brought = {path.stem for path in (CACHE / "stock/modules").iterdir()}
    image = elf.inspect(data, brought)
    assert image.version.endswith("-cloud-amd64")
    assert image.acpi
    assert image.entry == 0x1000000
    assert image.pvh_entry is not None
    assert 0x1000000 < image.pvh_entry < 0x2000000
