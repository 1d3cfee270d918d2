"""Bad input: one line on stderr, exit code 125 (2 for usage), never a traceback."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import IMAGES, Host

BAD = IMAGES / "bad"
SHELL = IMAGES / "shell"


def refused(host: Host, *words: str | Path, code: int = 125) -> str:
    done = host.pyvmm("run", *words).finish()
    text = done.err.decode()
    assert (done.code, done.out) == (code, b""), text
    assert text.startswith("pyvmm: ")
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text[7:-1]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("/nonexistent", "/nonexistent: no such image"),
        (BAD / "not-a-layout", f"{BAD}/not-a-layout: not an OCI layout or a docker-save archive: "
         "it has neither index.json nor manifest.json"),
        (f"{IMAGES}/umoci:other",
         f"{IMAGES}/umoci: has no image named 'other' (there are: latest)"),
        (BAD / "arm64", f"{BAD}/arm64: needs linux/amd64, but the image has linux/arm64"),
    ],
    ids=["none", "not a layout", "no such name", "architecture"],
)  # fmt: skip
def test_images(host: Host, image: str | Path, message: str) -> None:
    assert refused(host, "--image", image, "--", "true") == message


@pytest.mark.parametrize(
    ("image", "pattern"),
    [
        ("not-an-archive", r".*/not-an-archive: not .*"),
        (
            "short",
            r".*/short: blob sha256:[0-9a-f]{64} has \d+ bytes, not \d+; fetch the image again",
        ),
        ("layer-type", r".*: unknown layer type 'application/vnd\.example\.squashfs'"),
    ],
)
def test_damaged_images(host: Host, image: str, pattern: str) -> None:
    assert re.fullmatch(pattern, refused(host, "--image", BAD / image, "--", "true"))


def test_damaged_layer(host: Host) -> None:
    """Found out while the disk is made, so progress comes first; nothing half-made may stay."""
    for _ in range(2):
        done = host.pyvmm("run", "--image", BAD / "damaged", "--", "true").finish()
        assert (done.code, done.out) == (125, b"")
        progress, message = done.err.decode().splitlines()
        assert re.fullmatch(r"pyvmm: layer 1 of 1: sha256:[0-9a-f]{64}", progress)
        assert re.fullmatch(
            r"pyvmm: .*: damaged: its contents have the digest sha256:[0-9a-f]{64}; "
            "fetch the image again",
            message,
        )


def test_image_without_a_command(host: Host) -> None:
    path = IMAGES / "no-command"
    assert refused(host, "--image", path) == f"image {path} has no command: give one after --"


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("/nonexistent", "No such file or directory"),
        (str(BAD / "not-an-archive"), "neither an ELF vmlinux nor a bzImage"),
        (str(BAD / "not-a-kernel.elf"), "an ELF file, but not a Linux kernel"),
    ],
    ids=["none", "text", "ELF"],
)
def test_kernels(host: Host, kernel: str, message: str) -> None:
    found = refused(host, "--image", SHELL, "--kernel", kernel)
    assert found == f"kernel {kernel}: {message}"


def test_kernel_without_drivers(host: Host) -> None:
    """Debian's kernel file alone: its virtio drivers are modules."""
    from pyvmm import kernel

    path = str(kernel.find("stock").path)
    assert refused(host, "--image", SHELL, "--kernel", path) == (
        f"kernel {path}: the kernel has no built-in virtio-mmio, virtio-blk, virtio-vsock"
    )


@pytest.mark.parametrize("kernel", ["minimal", "stock"])
def test_memory_too_small_for_the_kernel(host: Host, kernel: str) -> None:
    found = refused(host, "--image", SHELL, "--kernel", kernel, "--memory", "16M")
    assert re.fullmatch(
        rf"memory of 16 MiB is too small for kernel {kernel}: it needs at least \d+M \(--memory\)",
        found,
    )


def test_disk_too_small_for_the_image(host: Host) -> None:
    done = host.pyvmm(
        "run", "--image", SHELL, "--kernel", "minimal", "--disk", "1M", "--", "true"
    ).finish()
    assert (done.code, done.out) == (125, b"")
    assert re.fullmatch(
        rb"(pyvmm: layer 1 of 1: [^\n]*\n)?(pyvmm: writing the filesystem\n)?"
        rb"pyvmm: disk too small for the image: 1 MiB, \d+ MiB would do\n",
        done.err,
    ), done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory", "lots"], "memory 'lots': write a size as 512M or 2G"),
        (["--memory", "5000"], "memory of 5000 bytes: must be a positive multiple of 4096"),
        (["--vcpus", "0"], "vcpus 0: must be 1 to 64"),
        (["--timeout", "-1"], "timeout -1.0: must be more than 0 seconds"),
        (["--workdir", "here"], "workdir 'here': must be an absolute path in the guest"),
        (["--output", "here"], "output 'here': must be an absolute path in the guest"),
        (["--output", "/dir/"], "output '/dir/': names a directory, not a file"),
        (["--env", "=x"], "environment variable '': not a usable name or value"),
    ],
)
def test_usage(host: Host, words: list[str], message: str) -> None:
    assert refused(host, "--image", SHELL, *words, code=2) == message


def test_unknown_option(host: Host) -> None:
    done = host.pyvmm("run", "--image", SHELL, "--nonsense").finish()
    assert (done.code, done.out) == (2, b"")
    assert b"Traceback" not in done.err


def test_user_that_the_image_lacks(host: Host) -> None:
    done = host.run("true", kernel="minimal", user="nobody-here")
    assert (done.code, done.out) == (125, b"")
    assert re.fullmatch(rb"pyvmm: [^\n]*nobody-here[^\n]*\n", done.err), done.err


def test_command_line_too_long(host: Host) -> None:
    found = refused(host, "--image", SHELL, "--kernel", "minimal", "--cmdline-extra", "x" * 5000)
    assert re.fullmatch(
        r"kernel command line of \d+ bytes: at most 4095, shorten --cmdline-extra", found
    )
