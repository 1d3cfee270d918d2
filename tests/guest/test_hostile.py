"""Images that would have a runner write to the host: they run, and the host stays as it is.

All the ways in which an image could try are in tests/unit/test_hostile.py; these are the places
that pyvmm and its init know by name.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import images
import pytest
from harness import Host
from images import Entry, directory, file, symlink

ROOT_NAMES = ("bin", "dev", "etc", "home", "init", "proc", "root", "run", "sbin", "sys", "tmp")
MOUNTED = ("dev", "proc", "sys", "run")

# What is in the image beside /busybox, where links lead to; a script, and what it says
ATTACKS: dict[str, tuple[Callable[[str], list[Entry]], str, str]] = {
    "init": (
        lambda decoy: [symlink("init", f"{decoy}/secret"), symlink("sbin", decoy)],
        "readlink /init; readlink /sbin",
        "{decoy}/secret\n{decoy}\n",
    ),
    "etc": (
        lambda decoy: [symlink("etc", decoy)],
        "readlink /etc; cat /etc/hosts; hostname",
        "{decoy}\nguest\n",
    ),
    "names of the machine": (
        lambda decoy: [
            directory("etc"),
            symlink("etc/hosts", f"{decoy}/secret"),
            symlink("etc/hostname", f"{decoy}/new"),
        ],
        "readlink /etc/hosts; hostname",
        "{decoy}/secret\nguest\n",
    ),
    "files for directories": (
        lambda decoy: [file(name) for name in MOUNTED],
        "stat -c %F /dev /proc /sys /run",
        "directory\n" * 4,
    ),
    "nothing but links": (
        lambda decoy: [symlink(name, decoy) for name in ROOT_NAMES],
        "stat -c %F /dev /proc /sys /run; readlink /etc; readlink /tmp; readlink /root",
        "directory\n" * 4 + "{decoy}\n" * 3,
    ),
}


def snapshot(path: Path) -> list[object]:
    found: list[object] = []
    for each in sorted([path, *path.rglob("*")]):
        status = each.lstat()
        numbers = (status.st_ino, status.st_mode, status.st_nlink, status.st_ctime_ns)
        found.append((each, numbers, each.read_bytes() if each.is_file() else b""))
    return found


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_host_is_out_of_reach(host: Host, attack: str) -> None:
    build, script, words = ATTACKS[attack]
    decoy = host.place / "decoy"
    (decoy / "d").mkdir(parents=True)
    (decoy / "secret").write_bytes(b"secret")
    before = snapshot(decoy)
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    root = [directory("./"), file("busybox", busybox, mode=0o755)]
    image = images.layout(host.place / "image", images.layer(*root, *build(str(decoy))))
    script = "\n".join(f"/busybox {line.strip()} 2>/dev/null" for line in script.split(";"))
    done = host.run(
        "/busybox", "sh", "-c", script, image=image, kernel="minimal", hostname="guest"
    )  # fmt: skip
    done.check(0, words.format(decoy=decoy).encode())
    assert snapshot(decoy) == before
