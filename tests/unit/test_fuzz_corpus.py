"""The fuzzers' corpora (fuzz/), replayed without a fuzzer."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUZZ = ROOT / "fuzz"
FEEDS = {
    name: feed
    for module in ("images.py", "agent.py")
    for name, feed in runpy.run_path(str(FUZZ / module))["FEEDS"].items()
}
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
INPUTS = {
    "agent-archive": 27,
    "agent-program": 19,
    "agent-run": 23,
    "agent-tree": 27,
    "answers": 35,
    "archive": 33,
    "directory": 24,
    "docker": 22,
    "layout": 34,
    "name": 13,
    "stream": 8,
    "tar": 122,
}
DISKS = 38  # inputs of tar that are images
DEVICES = {  # and how many inputs of a device's get somewhere
    "blk": (95, "29 that write"),
    "console": (37, "14 that say something"),
    "registers": (67, "48 that start a device"),
    "rng": (63, "23 that get bytes"),
    "vsock": (166, "90 that talk both ways"),
}


needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")


def corpus(name: str, count: int) -> list[Path]:
    inputs = sorted((FUZZ / "corpus" / name).iterdir())
    assert len(inputs) == count
    return inputs


def build(*command: str | Path) -> None:
    built = subprocess.run(command, capture_output=True, text=True)
    if "cannot find -lasan" in built.stderr or "cannot find -lubsan" in built.stderr:
        pytest.skip("gcc's sanitizers are not installed")
    assert (built.returncode, built.stderr) == (0, "")


def replay(program: Path, inputs: list[Path], says: str) -> None:
    done = subprocess.run(
        [program, *inputs], capture_output=True, text=True, env={**os.environ, "PATH": PATH}
    )
    # Nothing of a sanitizer's, and of e2fsck's only if there are faults.
    assert done.stderr == "".join(f"{path}\n" for path in inputs)
    assert done.stdout == f"{len(inputs)} inputs, {says}\n"
    assert done.returncode == 0


@needs_gcc
@pytest.mark.skipif(not shutil.which("e2fsck", path=PATH), reason="e2fsck is not installed")
def test_layers_to_disks(tmp_path: Path) -> None:
    program = tmp_path / "replay"
    flags = "-std=c11 -D_GNU_SOURCE -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
    sources = [path for path in (ROOT / "rootfs").glob("*.c") if path.name != "_ext4.c"]
    sources += [FUZZ / "tar.c", FUZZ / "replay.c"]
    include = f"-I{ROOT / 'rootfs'}"
    build("gcc", *flags.split(), include, *sources, "-lext2fs", "-lcom_err", "-o", program)
    replay(program, corpus("tar", INPUTS["tar"]), f"{DISKS} disks")


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    programs = tmp_path_factory.mktemp("devices")
    build("make", "-s", "-j2", "-C", FUZZ, "CC=gcc", f"OUT={programs}")
    return programs


@needs_gcc
@pytest.mark.parametrize("name", DEVICES)
def test_devices(name: str, devices: Path) -> None:
    count, says = DEVICES[name]
    replay(devices / f"fuzz-{name}", corpus(name, count), says)


@pytest.mark.parametrize("name", FEEDS)
def test_python(name: str) -> None:
    for path in corpus(name, INPUTS[name]):
        FEEDS[name](path.read_bytes())
