"""A Debian image with real benchmarks: by hyperfine, pytest-benchmark and Google Benchmark.

Kept in the cache as debian_images.py's are, since it takes a minute.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "kvmbox"), str(HERE.parents[1])]

from box import mirror, release  # noqa: E402
from debian_images import TRIMMED  # noqa: E402
from reference import run  # noqa: E402

from pyvmm.cache import cache_dir  # noqa: E402

SOURCES = ("benchmark_images.py", "benchmark_google.cc", "benchmark_pytest.py")
PACKAGES = "hyperfine,libbenchmark1debian,python3-pytest-benchmark"
# Beside what no program needs: what of Python's own library pytest does without.
TOO = (
    "usr/share/bash-completion",
    "usr/share/fonts",
    "usr/share/perl",
    "usr/share/zoneinfo",
    "usr/lib/python3/dist-packages/pip",
)


def make(target: Path) -> None:
    """Put the layout into a directory, made now if the cache lacks it."""
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in SOURCES))
    place = Path(cache_dir("debian-images")) / f"benchmarks-{digest.hexdigest()[:16]}"
    if not place.exists():
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=place.parent) as work:
            build(Path(work, "made"), Path(work, "tree"))
            Path(work, "made").rename(place)
    shutil.copytree(place, target)


def build(oci: Path, tree: Path) -> None:
    suite = release("VERSION_CODENAME")
    run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, tree, mirror(suite))
    for name in (*TRIMMED, *TOO):
        shutil.rmtree(tree / name, ignore_errors=True)
    run("g++", "-O2", "-s", "-o", tree / "usr/local/bin/google-benchmark",
        HERE / "benchmark_google.cc", "-lbenchmark")  # fmt: skip
    (tree / "bench").mkdir()
    shutil.copy(HERE / "benchmark_pytest.py", tree / "bench" / "test_speed.py")
    run("umoci", "init", "--layout", oci)
    run("umoci", "new", "--image", f"{oci}:latest")
    run("umoci", "insert", "--image", f"{oci}:latest", tree, "/")
    run("umoci", "config", "--image", f"{oci}:latest", "--config.workingdir", "/bench")
