"""What both VMMs run: one image, kernel, initramfs and disk, decided by pyvmm's own plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyvmm import plan
from pyvmm.config import Config
from pyvmm.disk import base_disk
from pyvmm.oci import open_image

MEMORY_MIB = 128
TRUE = ("/bin/true",)
IDLE = ("/bin/sh", "-c", "echo ready; exec sleep 600")


@dataclass(frozen=True)
class Subject:
    """One kernel with everything around it."""

    name: str
    image: Path
    kernel: Path
    initramfs: Path
    disk: Path
    cmdline: str
    acpi: bool
    entries: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One run by the host's CLOCK_MONOTONIC."""

    begin: float
    end: float
    """the host had the END frame"""
    exit: float
    """the command had ended"""


def prepare(name: str, image: Path) -> Subject:
    """Decide, and make the disk, so that no measured run does."""
    config = Config(image, kernel=name, memory=MEMORY_MIB << 20)
    with open_image(image) as opened:
        made = plan.make(config, plan.place(config), opened)
        disk = base_disk(opened, config.disk_bytes)
    return Subject(
        name=name,
        image=image,
        kernel=made.kernel.path,
        initramfs=made.initramfs,
        disk=disk,
        cmdline=made.spec["cmdline"],
        acpi=made.spec["acpi"],
        entries=(made.spec["address"],),
    )
