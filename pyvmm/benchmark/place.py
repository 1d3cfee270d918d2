"""Where benchmarks' VMs run on the host, unless the caller says: vCPUs apart from all else."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .. import placement
from ..config import Config
from ..errors import HostError, UsageError
from ..options import Options
from ..tune.partition import host_layout


def settle(
    vms: Sequence[Options], best: Sequence[int], others: Sequence[int], *, alive: int, at_once: bool
) -> list[str]:
    """Fill in ``cpus``, ``prefault`` and ``hugepages`` where they are not said; return warnings.

    vCPUs get the ``best`` CPUs, one each (with ``at_once`` each VM its own), and the workers' other
    threads ``others``, or what is left over. ``alive`` VMs are there at the same time: their memory
    is in huge pages if there are enough for all.
    """
    for options in vms:
        options.setdefault("prefault", True)
        if options.get("hugepages") is None and _huge_pages(options, alive):
            options["hugepages"] = "2M"
    unplaced = [vm for vm in vms if vm.get("cpus") is None and vm.get("numa_node") is None]
    if not unplaced:
        return []
    counts = [vm.get("vcpus", 1) for vm in unplaced]
    need = sum(counts) if at_once else max(counts)
    if need > len(best):
        best, others = [*best, *reversed(others)], []
    if need > len(best) and at_once:
        raise UsageError(f"VMs at once with {need} vCPUs in all: there are {len(best)} CPUs")
    if need > len(best):
        return []  # each run warns that vCPUs share CPUs
    left, rest = list(best), list(others) or list(best[need:])
    for vm, count in zip(unplaced, counts, strict=True):
        vm["cpus"] = ",".join(map(str, left[:count] + rest))
        if at_once:
            del left[:count]
    if rest:
        return []
    return [f"no CPU is left beside {need} for vCPUs: pyvmm's own work runs on them, too"]


def cpus() -> tuple[list[int], list[int]]:
    """This process's CPUs: (for vCPUs, best first; for all else)."""
    mine = os.sched_getaffinity(0)
    best, others = ([cpu for cpu in some if cpu in mine] for some in host_layout())
    return (best, others) if best else (others, [])


def _huge_pages(options: Options, alive: int) -> bool:
    try:
        memory = Config("", memory=options.get("memory", Config.memory)).memory_bytes * alive
        placement.find(Config("", memory=memory, hugepages="2M"))
    except (HostError, UsageError):  # too few, or the memory is no multiple of them
        return False
    return True
