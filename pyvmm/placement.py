"""Where a VM is put on its host: huge pages, NUMA node, CPUs. Checked before anything is started.

Only a run that asks for one of these imports this module.
"""

from __future__ import annotations

import os

from .errors import HostError, UsageError

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from typing import Any

    from .config import Config

PAGES = {"2M": 2 << 20, "1G": 1 << 30}
MAX_CPU = 1023  # what a cpu_set_t holds
SYSFS = "/sys"
STATUS = "/proc/self/status"


def check(config: Config) -> None:
    """Refuse, by UsageError, what can be meant on no host."""
    if config.hugepages is not None:
        page = PAGES.get(config.hugepages)
        if page is None:
            raise UsageError(f"huge pages of {config.hugepages!r}: must be 2M or 1G")
        memory = config.memory_bytes
        if memory % page:
            next_up = -(-memory // page) * page
            text = f"{next_up >> 20}M" if page < PAGES["1G"] else f"{next_up >> 30}G"
            raise UsageError(
                f"memory of {memory} bytes: not a multiple of {config.hugepages}, the size of its "
                f"huge pages; the next one up is {text} (--memory)"
            )
    if config.numa_node is not None and config.numa_node < 0:
        raise UsageError(f"NUMA node {config.numa_node}: must be 0 or more")
    if config.cpus is not None:
        parse_cpus(config.cpus)


def parse_cpus(text: str) -> list[int]:
    """The CPUs of ``"0,2-3"``, in this order; UsageError for what is no list."""
    cpus: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        numbers = (first, last) if dash else (first, first)
        if not all(n.isascii() and n.isdigit() and len(n) < 10 for n in numbers):
            raise UsageError(f"CPU list {text!r}: write it as 0,2-3")
        low, high = int(numbers[0]), int(numbers[1])
        if low > high:
            raise UsageError(f"CPU list {text!r}: {part.strip()} runs backwards")
        if high > MAX_CPU:
            raise UsageError(f"CPU list {text!r}: CPU {high} is above {MAX_CPU}, the last possible")
        cpus += range(low, high + 1)
    for cpu in cpus:
        if cpus.count(cpu) > 1:
            raise UsageError(f"CPU list {text!r}: CPU {cpu} is in it twice")
    return cpus


def find(
    config: Config, *, sysfs: str = SYSFS, status: str = STATUS, mine: set[int] | None = None
) -> dict[str, Any]:
    """What the worker is told (see plan.ANYWHERE). Raises HostError for what this host lacks.

    vCPU i gets the list's i-th CPU, cyclically; all else of the worker gets the CPUs that are left
    over, or the whole list if none are.
    """
    mine = _usable(config.cgroup) if mine is None else mine
    node, affinity, pins = config.numa_node, [], []
    if node is not None:
        _check_node(node, sysfs, status)
    if config.hugepages:
        _check_pages(config.hugepages, config.memory_bytes, node, sysfs)
    if config.cpus is not None:
        cpus = parse_cpus(config.cpus)
        _check_cpus(cpus, mine, sysfs)
        affinity = cpus[config.vcpus :] or cpus
        pins = [cpus[i % len(cpus)] for i in range(config.vcpus)]
    elif node is not None:
        affinity = _node_cpus(node, mine, sysfs)
    return {
        "hugepages": PAGES[config.hugepages] if config.hugepages else 0,
        "node": node,
        "prefault": config.prefault,
        "affinity": affinity,
        "pins": pins,
    }


def _usable(cgroup: str | None) -> set[int]:
    """The CPUs that a worker may use: this process's, or of a cgroup that has its own those."""
    if cgroup is not None:
        from .delegation import MOUNTS

        for mount in MOUNTS:
            if cpus := _numbers(f"{mount}/{cgroup.strip('/')}/cpuset.cpus.effective"):
                return set(cpus)
    return os.sched_getaffinity(0)


def _check_node(node: int, sysfs: str, status: str) -> None:
    nodes = f"{sysfs}/devices/system/node"
    usable = _numbers(f"{nodes}/has_memory") or [0]  # a kernel without NUMA has no nodes to list
    if node not in usable:
        is_there = node in _numbers(f"{nodes}/online")
        what = f"NUMA node {node} has no memory" if is_there else f"no NUMA node {node}"
        raise HostError(f"{what}: this host has {ranges(usable)} (--numa-node)")
    allowed = usable
    for line in _read(status).splitlines():
        if line.startswith("Mems_allowed_list:"):
            allowed = parse_list(line.partition(":")[2])
    if node not in allowed:
        raise HostError(
            f"NUMA node {node} is not in this process's cpuset: "
            f"it may use {ranges(allowed)} (--numa-node)"
        )


def _node_cpus(node: int, mine: set[int], sysfs: str) -> list[int]:
    cpus = _numbers(f"{sysfs}/devices/system/node/node{node}/cpulist")
    usable = [cpu for cpu in cpus if cpu in mine]
    if cpus and not usable:
        raise HostError(
            f"NUMA node {node} has CPUs {ranges(cpus)}, and this process may use only "
            f"{ranges(sorted(mine))}: name some of those (--cpu-list)"
        )
    return usable  # a node of memory only has none: then anywhere


def _check_cpus(cpus: list[int], mine: set[int], sysfs: str) -> None:
    online = _numbers(f"{sysfs}/devices/system/cpu/online")
    for cpu in cpus:
        if cpu not in online:
            has = ranges(online)
            raise HostError(f"CPU {cpu} is not online: this host has {has} (--cpu-list)")
        if cpu not in mine:
            raise HostError(
                f"CPU {cpu} is not in this process's affinity mask or cpuset: "
                f"it may use {ranges(sorted(mine))} (--cpu-list)"
            )


def _check_pages(size: str, memory: int, node: int | None, sysfs: str) -> None:
    """Enough huge pages that are neither used nor promised to others?"""
    has = [name for name, page in PAGES.items() if os.path.isdir(_pool(sysfs, page))]
    if size not in has:
        mend = f"only of {has[0]} (--hugepages)" if has else "its kernel lacks CONFIG_HUGETLBFS"
        raise HostError(f"this host has no huge pages of {size}: {mend}")
    pool = _pool(sysfs, PAGES[size])
    surplus = _number(f"{pool}/surplus_hugepages")
    free = _number(f"{pool}/free_hugepages") - _number(f"{pool}/resv_hugepages")
    free += max(0, _number(f"{pool}/nr_overcommit_hugepages") - surplus)
    if node is not None:
        pool = _pool(sysfs, PAGES[size], node)
        surplus = _number(f"{pool}/surplus_hugepages")
        free = min(free, _number(f"{pool}/free_hugepages"))
    need = memory // PAGES[size]
    if free < need:
        total = _number(f"{pool}/nr_hugepages") - surplus + need - free
        boot = f", or boot with hugepagesz=1G hugepages={total}" if size == "1G" else ""
        raise HostError(
            f"huge pages of {size}: {need} needed, {free} free: "
            f"write {total} to {pool}/nr_hugepages{boot}"
        )


def _pool(sysfs: str, page: int, node: int | None = None) -> str:
    """The directory of a pool of huge pages: the host's, or a node's part of it."""
    where = "kernel/mm" if node is None else f"devices/system/node/node{node}"
    return f"{sysfs}/{where}/hugepages/hugepages-{page >> 10}kB"


# ---- files of numbers ----


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _number(path: str) -> int:
    return int(_read(path) or 0)


def _numbers(path: str) -> list[int]:
    return parse_list(_read(path))


def parse_list(text: str) -> list[int]:
    """The kernel's own lists, which may be empty."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    return numbers


def ranges(numbers: list[int]) -> str:
    """``[0, 1, 2, 5]`` as ``0-2,5``."""
    parts: list[str] = []
    for index, number in enumerate(numbers):
        if index and numbers[index - 1] == number - 1:
            parts[-1] = f"{parts[-1].partition('-')[0]}-{number}"
        else:
            parts.append(str(number))
    return ",".join(parts)
