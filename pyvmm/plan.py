"""What a run will be, decided without touching /dev/kvm: what ``--dry-run`` shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import boot, initramfs, kernel, layout
from .config import Config, environment, host_cpus, program
from .errors import KernelError
from .oci import Image

DEVICES = ("virtio-blk", "virtio-vsock", "virtio-rng")
GUEST_CID = 3
INIT = Path(__file__).parent / "_data" / "init"


@dataclass(frozen=True)
class Program:
    """What the agent is told to run."""

    argv: list[str]
    env: list[str]
    workdir: str
    user: str


@dataclass(frozen=True)
class Plan:
    """One run, decided. ``spec`` is the plain data that the worker gets."""

    kernel: kernel.Kernel
    initramfs: Path
    program: Program
    spec: dict[str, Any]
    warnings: list[str]

    def describe(self) -> str:
        """The plan for people, one fact a line."""
        spec, lines = self.spec, [f"kernel   {self.kernel.name} {self.kernel.version}"]
        lines.append(f"         {self.kernel.path}")
        lines.append(f"entry    {spec['entry']} at {spec['address']:#x}")
        lines.append(f"cmdline  {spec['cmdline']}")
        lines.append(f"program  {' '.join(self.program.argv)}")
        lines.append(f"vcpus    {spec['vcpus']}")
        for address, size, kind in layout.e820(spec["memory"]):
            name = "RAM" if kind == 1 else "reserved"
            lines.append(f"memory   {address:#012x}-{address + size - 1:#012x} {name}")
        start, size = spec["initrd"]
        lines.append(f"memory   {start:#012x}-{start + size - 1:#012x} initramfs")
        for slot, name in enumerate(DEVICES):
            address, gsi = layout.device(slot)
            lines.append(f"device   {name} at {address:#x}, interrupt {gsi}")
        port, gsi = layout.PORT_SERIAL, layout.GSI_SERIAL
        lines.append(f"device   16550A at port {port:#x}, interrupt {gsi}")
        lines.append(f"disk     {spec['disk']} bytes, ext4")
        return "\n".join(lines)


def make(config: Config, image: Image, progress: Any = None) -> Plan:
    """Decide. Raises PyvmmError for an image or kernel that cannot be run as configured."""
    found = kernel.find(config.kernel, progress=progress)
    address = found.pvh_entry if config.entry != "linux64" else found.entry
    if address is None and config.entry == "pvh":
        raise KernelError(f"kernel {found.name} has no PVH entry: use --entry linux64")
    archive = initramfs.initramfs_for(found, INIT)
    segments = [[s.offset, s.filesz, s.paddr, s.memsz] for s in found.segments]
    size = archive.stat().st_size
    where = boot.place_initrd(config.memory_bytes, segments, size, found.name)
    spec = {
        "vcpus": config.vcpus,
        "memory": config.memory_bytes,
        "disk": config.disk_bytes,
        "cid": GUEST_CID,
        "devices": len(DEVICES),
        "acpi": found.acpi,
        "entry": "linux64" if config.entry == "linux64" or address is None else "pvh",
        "address": found.entry if address is None else address,
        "segments": segments,
        "initrd": [where, size],
        "cmdline": boot.cmdline(
            acpi_kernel=found.acpi, devices=len(DEVICES), extra=config.cmdline_extra
        ),
    }
    image_config = image.config
    return Plan(
        kernel=found,
        initramfs=archive,
        program=Program(
            argv=program(config, image_config),
            env=environment(config, image_config),
            workdir=config.workdir or image_config.workdir,
            user=config.user if config.user is not None else image_config.user,
        ),
        spec=spec,
        warnings=_warnings(config),
    )


def _warnings(config: Config) -> list[str]:
    cpus = host_cpus()
    if config.vcpus > cpus:
        return [f"{config.vcpus} vCPUs share {cpus} host CPUs: timings will suffer"]
    return []
