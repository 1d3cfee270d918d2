"""SIGKILL for the caller, its server, its worker, at any moment of a run: nothing is left.

The kernel is crash.c. Each run has a cache of its own, so that disk, kernel and initramfs are made
in it, too. tests/soak.py does the same with Linux.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from .crash import SAID, Bench, End
from .hostile import FLAGS

sys.path.append(str(Path(__file__).parents[1] / "unit"))

import images

CALLERS = ("caller",), ("caller", "worker")
NUMBER = 100
SEED = 1
FILES = 48  # of 64 KiB in the image: to make it takes about as long as the guest takes
SOURCES = ("hostile.S", "hostile_machine.c", "crash.c")

KILLED = b"pyvmm: worker killed by signal 9 (Killed)\n"
ALONE = b"pyvmm: pyvmm-server was killed, and the worker with it\n"


class Tiny:
    """The kernel and an image that it does not look at."""

    def __init__(self, place: Path) -> None:
        self._kernel = place / "kernel"
        sources = [Path(__file__).with_name(name) for name in SOURCES]
        subprocess.run(["gcc", *FLAGS, "-o", self._kernel, *sources], check=True)
        files = [images.file(f"f{n}", os.urandom(1 << 16)) for n in range(FILES)]
        self._image = images.layout(place / "image", images.layer(images.directory("./"), *files))

    def prepare(self, place: Path) -> None:
        shutil.copy(self._kernel, place / "kernel")  # to be adopted anew

    def line(self, place: Path, other: bool) -> list[str | Path]:
        return [
            Path(sys.executable).with_name("pyvmm"), "run", "--image", self._image,
            "--kernel", place / "kernel", "--memory", "64M", "--disk", "16M" if other else "8M",
            "--output", "/out:out", "--", "never",
        ]  # fmt: skip


def test_nothing_is_left(tmp_path: Path) -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm: not to be had")
    ends = Counter(Bench(Tiny(tmp_path), tmp_path).crash(NUMBER, SEED))
    for end, number in ends.items():
        print(number, *end)
    callers = [
        End(who, code, out, b"")
        for who in (("caller",), ("caller", "worker"))
        # 0: it had ended by itself, and was not reaped yet.
        for code, out in ((-9, b""), (-9, SAID), (0, SAID))
    ]
    others = [
        End(who, code, out, err)
        for who, killed in ((("worker",), KILLED), (("server",), ALONE))
        for code, out, err in ((0, SAID, b""), (125, b"", killed), (125, SAID, killed))
    ]
    assert ends.keys() <= {*callers, *others}
