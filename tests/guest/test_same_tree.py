"""The tree that a guest has is the one that ``umoci unpack`` makes of the same image as root.

Names, types, modes, owners, times to the nanosecond, sizes, contents, targets, device numbers, hard
links and extended attributes: both were written down by lister.c, here inside the guest.

These images have what init would make, and the lister looks below what init mounts; what init makes
in an image that has nothing is the last test's.
"""

from __future__ import annotations

import subprocess

import pytest
from harness import IMAGES, Host

from pyvmm.disk import base_disk
from pyvmm.oci import open_image

TREES = IMAGES / "trees"
pytestmark = pytest.mark.skipif(
    not TREES.exists(), reason="no trees to compare: make_images.py was not run by root"
)
ENTRIES = {
    "ustar": 28,
    "gnu": 18,
    "pax": 30,
    "sparse": 14,
    "whiteouts": 22,
    "links": 28,
    "replaced": 63,
    "many": 65_011,
    "deep": 26,
    "repacked": 18,
    "buildah": 18,
}
DEBIAN_ENTRIES_MIN = 3000


def listing(host: Host, name: str, kernel: str = "minimal") -> bytes:
    done = host.run(image=TREES / name, kernel=kernel, privileged="")
    assert (done.code, done.err) == (0, b"")
    return done.out


def check(host: Host, name: str, kernel: str = "minimal") -> int:
    """Compare the trees, check the filesystem; return how many entries there are."""
    expected = (TREES / f"{name}.listing").read_bytes()
    seen = listing(host, name, kernel)
    fsck = ["e2fsck", "-fn", base_disk(open_image(TREES / name), 1 << 30)]  # the run's own
    done = subprocess.run(fsck, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    missing, more = (
        sorted(set(one.splitlines()) - set(other.splitlines()))
        for one, other in ((expected, seen), (seen, expected))
    )
    assert (missing[:20], more[:20]) == ([], [])  # pytest would take minutes to tell all
    assert len(seen) == len(expected)
    assert seen == expected
    return expected.count(b"\n")


@pytest.mark.parametrize("name", ENTRIES)
def test_generated(host: Host, name: str) -> None:
    assert check(host, name) == ENTRIES[name]


@pytest.mark.parametrize("name", ["debian", "debian-built"])
def test_debian(host: Host, name: str) -> None:
    assert check(host, name) > DEBIAN_ENTRIES_MIN


def test_stock_kernel(host: Host) -> None:
    assert check(host, "pax", "stock") == ENTRIES["pax"]


def test_what_init_makes(host: Host) -> None:
    before = (TREES / "bare.listing").read_text().splitlines()
    after = listing(host, "bare").decode().splitlines()
    assert [line.split()[0] for line in before] == ["/", "/lister"]
    made = [line.split() for line in after if line not in before]
    assert [words[:4] for words in made] == [
        ["/", "d", "0755", "0:0"],
        ["/dev", "d", "0755", "0:0"],
        ["/etc", "d", "0755", "0:0"],
        ["/etc/hostname", "-", "0644", "0:0"],
        ["/etc/hosts", "-", "0644", "0:0"],
        ["/proc", "d", "0555", "0:0"],
        ["/run", "d", "0755", "0:0"],
        ["/sys", "d", "0555", "0:0"],
        ["/tmp", "d", "1777", "0:0"],
    ]
