"""From an image to a disk: pyvmm's base, beside umoci and mkfs.ext4, and beside gzip alone.

Run as a program this is one subject of it, in a process of its own: ``rootfs.py base|open LAYOUT``.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from table import Row

DISK = 1 << 30
GOALS = {"umoci": 0.5, "gzip": 1.5, "memory": 100.0, "cached": 5.0}


def measure(runs: int) -> list[Row]:
    """The rows; everything takes its turn ``runs`` times, and its median counts."""
    import large_image
    import registry
    from table import Row

    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as name:
        work = Path(name)
        layout = large_image.make(work / "layout")
        subjects: dict[str, Callable[[], float]] = {
            "umoci": lambda: _umoci(work, layout),
            "gzip": lambda: _decompress(layout, "gzip"),
            "igzip": lambda: _decompress(layout, "igzip"),
            "base": lambda: _base(work, layout),
        }
        if not shutil.which("igzip"):
            del subjects["igzip"]
        times: dict[str, list[float]] = defaultdict(list)
        with registry.serve(layout, work) as image:
            subjects |= registry.subjects(layout, image, work)
            for _ in range(runs):
                for subject, run in subjects.items():
                    times[subject].append(run() * 1e3)
        memory = json.loads((work / "memory").read_text())
        cached = statistics.median(json.loads(_ours("open", work, layout)) for _ in range(runs))
    ms = {subject: statistics.median(values) for subject, values in times.items()}
    cold = "image to disk, cold"
    rows = [
        Row("", "image", cold, "ms", ms["base"], "umoci unpack + mkfs.ext4 -d", ms["umoci"],
            goal=GOALS["umoci"]),
        Row("", "image", f"{cold}, beside gzip -dc alone", "ms", ms["base"], "gzip -dc",
            ms["gzip"], goal=GOALS["gzip"]),
    ]  # fmt: skip
    if "igzip" in ms:
        rows.append(
            Row("", "image", f"{cold}, beside igzip -dc alone", "ms", ms["base"], "igzip -dc",
                ms["igzip"])
        )  # fmt: skip
    return [
        *rows,
        *registry.rows(ms),
        Row("", "image", "most memory while making it", "MiB", memory, goal=GOALS["memory"]),
        Row("", "image", "image to disk, cached", "ms", cached, goal=GOALS["cached"]),
    ]


def _timed(*command: str | Path) -> float:
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def _umoci(work: Path, layout: Path) -> float:
    """What one would do without us: a tree, and a filesystem of it. On disk, as ours is."""
    bundle, disk = work / "bundle", work / "disk.ext4"
    with disk.open("wb") as file:
        file.truncate(DISK)
    seconds = _timed("umoci", "unpack", "--image", f"{layout}:large", bundle)
    seconds += _timed("/sbin/mkfs.ext4", "-q", "-F", "-d", bundle / "rootfs", disk)
    seconds += _timed("sync", disk)
    shutil.rmtree(bundle)
    disk.unlink()
    os.sync()
    return seconds


def _decompress(layout: Path, program: str) -> float:
    script = f'for blob in "$0"/blobs/sha256/*; do {program} -dc <"$blob" 2>/dev/null; done; :'
    return _timed("sh", "-c", script, layout)


def _base(work: Path, layout: Path) -> float:
    """A process that makes the disk, from its start to its end."""
    shutil.rmtree(work / "cache", ignore_errors=True)
    os.sync()
    start = time.monotonic()
    memory = _ours("base", work, layout)
    seconds = time.monotonic() - start
    (work / "memory").write_text(memory)
    return seconds


def _ours(what: str, work: Path, layout: Path) -> str:
    command = [sys.executable, __file__, what, layout]
    environment = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
    return subprocess.run(
        command, check=True, env=environment, stdout=subprocess.PIPE, text=True
    ).stdout


def _subject(what: str, layout: str) -> float:
    """MiB of memory that making the disk took; or the ms that an image needs to a cached disk."""
    from pyvmm.disk import base_disk
    from pyvmm.oci import open_image

    if what == "base":
        with open_image(layout) as image:
            base_disk(image, DISK)
        return _peak()
    start = time.monotonic()
    with open_image(layout) as image:
        base_disk(image, DISK)
    return (time.monotonic() - start) * 1e3


def _peak() -> float:
    """MiB. Not getrusage's, which counts what the process was before exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise LookupError("VmHWM")


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    print(json.dumps(_subject(*sys.argv[1:])))
