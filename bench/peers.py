"""Other VMMs for Python, all on libkrun, as far as they start: `bench/run --peers`.

Each runs /bin/true from the bench's busybox, as a command. What cannot is listed with its error:
that is what a user of it would see here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import image

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build/peers"
SITE = PLACE / "site"
PAGE = ROOT / "build/bench-peers.md"
TIMEOUT_S = 120.0
# On ext4, not /share or /tmp: microsandbox wants extended attributes, and the kvmbox's counted
# clock runs away while its host reads files for it.
HOME = Path("/root/peers")

SMOL = """
from smol import Machine, MachineConfig, ResourceSpec
config = MachineConfig(image="{rootfs}", resources=ResourceSpec(cpus=1, memory_mb=256))
with Machine.create(config) as machine:
    machine.exec(["/bin/true"]).assert_success()
"""
BOXLITE = """
import asyncio, boxlite
async def main():
    async with boxlite.SimpleBox(rootfs_path="{layout}", memory_mib=256, cpus=1) as box:
        assert (await box.exec("/bin/true")).exit_code == 0
asyncio.run(main())
"""


@dataclass(frozen=True)
class Peer:
    name: str
    command: tuple[str, ...]


MSB = "microsandbox/_bundled/bin/msb"
PEERS = (
    Peer(
        "microsandbox",
        ("{site}/" + MSB, "run", "--no-stdin", "--no-tty", "{rootfs}", "--", "/bin/true"),
    ),
    Peer("boxlite", (sys.executable, "-c", BOXLITE)),
    Peer("smolmachines", (sys.executable, "-c", SMOL)),
)


def fetch() -> None:
    """Install them into build/peers, by pip: the kvmbox has no network."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps"]
    names = [peer.name for peer in PEERS]
    subprocess.run([*pip, "--only-binary=:all:", "--target", SITE, *names], check=True)
    (SITE / MSB).chmod(0o755)


def measure(unit: str, per_second: float, directory: Path) -> None:
    """Run each, in the machine where KVM works, and leave a list."""
    layout = image.make(directory, {"etc/passwd": b"root:x:0:0:root:/:/bin/sh\n"})
    rootfs, site = HOME / "rootfs", HOME / "site"
    shutil.copytree(SITE, site, dirs_exist_ok=True)
    rootfs.mkdir(parents=True, exist_ok=True)
    for layer in (layout / "blobs/sha256").iterdir():
        if tarfile.is_tarfile(layer):
            with tarfile.open(layer) as tar:
                tar.extractall(rootfs)
    lines = [f"{date.today()}, /bin/true, command to exit:\n"]
    for peer in PEERS:
        words = [word.format(rootfs=rootfs, layout=layout, site=site) for word in peer.command]
        lines.append(f"- {peer.name} {_version(peer.name)}: {_run(words, unit, per_second)}")
        print(lines[-1], flush=True)
    PAGE.write_text("\n".join(lines) + "\n")


def _run(words: list[str], unit: str, per_second: float) -> str:
    """The second of two runs, or why there was none."""
    environment = os.environ | {"HOME": str(HOME), "PYTHONPATH": str(HOME / "site")}
    for _ in range(2):
        begin = time.monotonic()
        try:
            done = subprocess.run(
                words, env=environment, timeout=TIMEOUT_S, text=True, errors="replace",
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"not done after {TIMEOUT_S:g} s of the box's clock"
        took = time.monotonic() - begin
        if done.returncode:
            errors = [line.strip() for line in done.stdout.splitlines() if "rror" in line]
            return f"fails: `{(errors or ['no message'])[-1]}`"
    return f"{took * per_second:,.0f} {unit}"


def _version(name: str) -> str:
    (found,) = SITE.glob(f"{name}-*.dist-info")
    return found.name.removesuffix(".dist-info").rpartition("-")[2]
