"""How much of the host a run may take: what it is made of, and no more. The cgroup's limits."""

from __future__ import annotations

from fcntl import F_GET_SEALS, fcntl

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from .cgroup import Cgroup
    from .config import Config

MiB = 1 << 20
VMM = 64 * MiB  # seen: 4, and 11 in a worker that has read its Python from the disk itself
VMM_VCPU = MiB  # seen: 0.25
CACHE = 256 * MiB


def limit(group: Cgroup, config: Config, fds: dict[str, int]) -> None:
    """Set the limits of a run with these open files. Raises HostError as Cgroup.limit()."""
    ram = 0 if config.hugepages else config.memory_bytes  # those are counted elsewhere
    on_tmpfs = is_on_tmpfs(fds["overlay"])
    rate = config.disk_rate
    group.limit(
        memory=memory_for(
            ram, config.vcpus, config.disk_bytes, config.vsock_buffer_bytes, on_tmpfs=on_tmpfs
        ),
        pids=pids_for(config.vcpus),
        cpus=config.vcpus + 1,
        cpuset=config.cpus,
        disk_rate=(int(rate), (fds["base"], fds["overlay"])) if rate else None,
    )


def describe(group: Cgroup) -> str:
    """What limit() has set, for Result.walls."""
    if group.reason:
        return f"none: {group.reason}"
    return "; ".join([", ".join(group.limits), *group.notes])


def memory_for(ram: int, vcpus: int, disk: int, vsock_buffer: int, *, on_tmpfs: bool) -> int:
    """memory.max of a run. All sizes are in bytes.

    Beside guest RAM there are the page tables of it, the process's own and KVM's: 1/512 each of 4
    KiB pages, twice that with what KVM notes of each page where guests nest. And the disks' pages
    are the worker's, who reads and writes them: those that can be written back have some room, for
    with none a guest's writes would wait for the host's disk; on tmpfs all of the overlay must fit.
    """
    tables = (ram // 128 + 4095) & -4096
    cache = disk + (disk // 256 & -4096) if on_tmpfs else min(disk, CACHE)
    return ram + tables + VMM + vcpus * VMM_VCPU + vsock_for(vsock_buffer) + cache


def vsock_for(buffer: int) -> int:
    """Bytes that the 4,096 connections may hold: all but 64 have small buffers (core_cdef.h)."""
    return 64 * buffer + (4096 - 64) * (MiB >> 4)


def pids_for(vcpus: int) -> int:
    """pids.max of a run: main, io, the vCPUs, and the thread that KVM itself adds to each VM's
    process (kvm-nx-lpage-recovery).
    """
    return vcpus + 3


def is_on_tmpfs(fd: int) -> bool:
    """Whether an open file is one of tmpfs, the only ones that have seals (fcntl(2))."""
    try:
        fcntl(fd, F_GET_SEALS)
    except OSError:
        return False
    return True
