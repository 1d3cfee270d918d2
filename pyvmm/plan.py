"""What a run will be, decided without touching /dev/kvm: what ``--dry-run`` shows."""

from __future__ import annotations

import os

from . import initramfs, kernel, layout
from .config import Config, environment, program
from .errors import KernelError
from .oci import Image
from .record import Record

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from typing import Any

DEVICES = ("virtio-blk", "virtio-vsock", "virtio-rng")
GUEST_CID = 3
# What a kernel needs beside itself to come up at all, and more for each CPU: measured. With less,
# Debian's is short of memory for so long that it seems to hang, or panics.
FREE_AFTER_KERNEL = 9 << 20
FREE_PER_VCPU = 1 << 19

# What every guest gets on its command line, and why.
CMDLINE = [
    "loglevel=3",  # each character on the console is an exit; a panic still says why
    "panic=-1",  # no waiting: a panic is a reboot,
    "reboot=t",  # and a reboot a triple fault, one exit
    "tsc=reliable",  # no clocksource watchdog
    "no_timer_check",
    "nox2apic",  # 400 exits: Linux saves and masks the IOAPIC around enabling it, for nothing here
    "random.trust_cpu=on",
    "swiotlb=noforce",  # or a guest of more than 3 GiB clears 64 MiB, for devices with short arms
    "cryptomgr.notests",
]
CMDLINE_ACPI = [
    "pci=off",  # 91 exits look for a bus that is not there
]
# A panic is written to the port without a driver, which would look for the chip by 59 exits.
CONSOLE = ["8250.nr_uarts=0", "earlyprintk=ttyS0,115200,keep"]
# With --console: a terminal for whoever opens /dev/console. The test is for a chip's bug.
CONSOLE_LIVE = ["console=ttyS0", "8250.nr_uarts=1", "8250.skip_txen_test=1"]
# What the worker is told of the host: any pages, any of our CPUs (else see placement.find).
ANYWHERE: dict[str, Any] = {
    "hugepages": 0,  # bytes
    "node": None,
    "prefault": False,
    "affinity": [],  # CPUs for the worker
    "pins": [],  # a CPU for each vCPU
}
INIT = os.path.join(os.path.dirname(__file__), "_data", "init")


class Program(Record):
    """What the agent is told to run."""

    argv: list[str]
    env: list[str]
    workdir: str
    user: str


class Plan(Record):
    """One run, decided. ``spec`` is the plain data that the worker gets."""

    kernel: kernel.Kernel
    initramfs: str
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
        pins = "".join(f" {cpu}" for cpu in spec["pins"])
        lines.append(f"vcpus    {spec['vcpus']}" + (f", on host CPUs{pins}" if pins else ""))
        for address, size, kind in layout.e820(spec["memory"]):
            name = "RAM" if kind == 1 else "reserved"
            lines.append(f"memory   {address:#012x}-{address + size - 1:#012x} {name}")
        if spec["hugepages"]:
            lines.append(f"memory   in huge pages of {spec['hugepages'] >> 20} MiB")
        if spec["node"] is not None:
            lines.append(f"memory   from NUMA node {spec['node']}")
        start, size = spec["initrd"]
        lines.append(f"memory   {start:#012x}-{start + size - 1:#012x} initramfs")
        for slot, name in enumerate(DEVICES):
            address, gsi = layout.device(slot)
            lines.append(f"device   {name} at {address:#x}, interrupt {gsi}")
        port, gsi = layout.PORT_SERIAL, layout.GSI_SERIAL
        lines.append(f"device   16550A at port {port:#x}, interrupt {gsi}")
        lines.append(f"disk     {spec['disk']} bytes, ext4")
        return "\n".join(lines)


def make(config: Config, placed: dict[str, Any], image: Image, progress: Any = None) -> Plan:
    """Decide; ``placed`` is what place() found.

    Raises PyvmmError for an image or kernel that cannot be run as configured.
    """
    placed = placed | {"affinity": placed["affinity"] or sorted(os.sched_getaffinity(0))}
    found = kernel.find(config.kernel, progress=progress)
    address = found.pvh_entry if config.entry == "pvh" else found.entry
    if address is None:
        raise KernelError(f"kernel {found.name} has no PVH entry: use --entry linux64")
    archive = initramfs.initramfs_for(found, INIT)
    segments = [[s.offset, s.filesz, s.paddr, s.memsz] for s in found.segments]
    size = os.stat(archive).st_size
    where = place_initrd(config.memory_bytes, config.vcpus, segments, size, found.name)
    spec = {
        "vcpus": config.vcpus,
        "memory": config.memory_bytes,
        "disk": config.disk_bytes,
        "cid": GUEST_CID,
        "vsock_buffer": config.vsock_buffer_bytes,
        "devices": len(DEVICES),
        "acpi": found.acpi,
        "entry": config.entry,
        "address": address,
        "segments": segments,
        "initrd": [where, size],
        "cmdline": cmdline(
            acpi_kernel=found.acpi,
            devices=len(DEVICES),
            extra=config.cmdline_extra,
            live=config.console is not None,
        ),
        **placed,
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
        warnings=_warnings(config, placed),
    )


def place(config: Config) -> dict[str, Any]:
    """Where on the host, as the worker is told. Raises HostError for what the host lacks."""
    if not config.placed:
        return ANYWHERE
    from . import placement

    return placement.find(config)


def _warnings(config: Config, placed: dict[str, Any]) -> list[str]:
    cpus = len(set(placed["pins"] or placed["affinity"]))
    if config.vcpus > cpus:
        return [f"{config.vcpus} vCPUs share {cpus} host CPUs: timings will suffer"]
    return []


def cmdline(*, acpi_kernel: bool, devices: int, extra: str, live: bool = False) -> str:
    """The kernel's command line."""
    words = list(CMDLINE)
    if acpi_kernel:
        words += CMDLINE_ACPI
    else:
        for slot in range(devices):
            address, gsi = layout.device(slot)
            words.append(f"virtio_mmio.device=4K@{address:#x}:{gsi}")
    if extra:
        words.append(extra)
    words += CONSOLE_LIVE if live else CONSOLE  # last: what it shows first depends on loglevel
    line = " ".join(words)
    if len(line.encode()) >= layout.CMDLINE_MAX:
        raise KernelError(
            f"kernel command line of {len(line)} bytes: at most {layout.CMDLINE_MAX - 1}, "
            "shorten --cmdline-extra"
        )
    return line


def place_initrd(memory: int, vcpus: int, segments: list[list[int]], size: int, kernel: str) -> int:
    """Where the initramfs goes: page-aligned, at the end of low RAM.

    Raises KernelError if kernel, initramfs and a little to live on do not fit.
    """
    top = min(memory, layout.HOLE)
    end = max(paddr + memsz for _, _, paddr, memsz in segments)
    need = end + FREE_AFTER_KERNEL + FREE_PER_VCPU * vcpus + size
    need = -(-need >> 20)  # in MiB, so that what is named is the limit
    if top < need << 20:
        amount = f"{memory} bytes" if memory & (1 << 20) - 1 else f"{memory >> 20} MiB"
        raise KernelError(
            f"memory of {amount} is too small for kernel {kernel}: "
            f"it needs at least {need}M (--memory)"
        )
    return (top - size) & ~(layout.PAGE - 1)
