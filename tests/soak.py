#!/usr/bin/env python3
"""Linux guests whose caller, server and worker are killed: soak.py [MOMENTS [SEED]].

As tests/kvm/test_crash.py, with a cgroup around each worker where there are any.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests/guest")]

from harness import IMAGES, command  # noqa: E402

from pyvmm.cache import cache_dir  # noqa: E402
from tests.kvm.crash import Bench  # noqa: E402

SCRIPT = """
i=0
while [ $i -lt 2000 ]; do i=$((i + 1)); done
dd if=/dev/zero of=/out bs=64k count=8 2>/dev/null
echo ok
"""


class Linux:
    """The minimal kernel and a shell."""

    def __init__(self) -> None:
        self._kernels = cache_dir("kernels")

    def prepare(self, place: Path) -> None:
        (place / "cache/pyvmm/kernels").symlink_to(self._kernels)

    def line(self, place: Path, other: bool) -> list[str | Path]:
        return [
            command(), "run", "--image", IMAGES / "shell", "--kernel", "minimal",
            "--disk", "64M" if other else "32M", "--output", "/out:out", "--", "sh", "-c", SCRIPT,
        ]  # fmt: skip


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time()) % 1_000_000
    print(f"{number} moments, seed {seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(Linux(), Path(place))
        print(f"a run takes {bench.length:.1f} s", flush=True)
        ends: Counter[str] = Counter()
        for end in bench.crash(number, seed):
            ends[f"{'+'.join(end.targets)}: {end.code} {end.out!r} {end.err[:60]!r}"] += 1
            if ends.total() % 10 == 0:
                print(f"{ends.total()} killed, {time.monotonic() - began:.0f} s", flush=True)
    for text, times in sorted(ends.items()):
        print(f"{times:4} {text}")
    print("nothing left")


if __name__ == "__main__":
    main()
