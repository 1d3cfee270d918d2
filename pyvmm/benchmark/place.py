"""Where benchmarks' VMs run on the host, unless the caller says: vCPUs apart from all else."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .. import placement
from ..config import Config
from ..errors import HostError, UsageError
from ..options import Options


def settle(vms: Sequence[Options], *, alive: int, at_once: bool) -> list[str]:
    """Fill in ``cpus``, ``prefault`` and ``hugepages`` where they are not said; return warnings.

    vCPUs get the last CPUs, one each (with ``at_once`` each VM its own), as a host's own work runs
    mostly on the first; the rest of the workers gets what is left over. ``alive`` VMs are there at
    the same time: their memory is in huge pages if there are enough for all.
    """
    for options in vms:
        options.setdefault("prefault", True)
        if options.get("hugepages") is None and _huge_pages(options, alive):
            options["hugepages"] = "2M"
    unplaced = [vm for vm in vms if vm.get("cpus") is None and vm.get("numa_node") is None]
    if not unplaced:
        return []
    mine = sorted(os.sched_getaffinity(0))
    counts = [vm.get("vcpus", 1) for vm in unplaced]
    need = sum(counts) if at_once else max(counts)
    if need > len(mine) and at_once:
        raise UsageError(
            f"VMs at once with {need} vCPUs in all: this process may use {len(mine)} CPUs"
        )
    if need > len(mine):
        return []  # each run warns that vCPUs share CPUs
    top, others = mine[len(mine) - need :], mine[: len(mine) - need]
    for vm, count in zip(unplaced, counts, strict=True):
        own = top[-count:]
        if at_once:
            del top[-count:]
        vm["cpus"] = ",".join(map(str, own + others))
    if others:
        return []
    return [f"no CPU is left beside {need} for vCPUs: pyvmm's own work runs on them, too"]


def _huge_pages(options: Options, alive: int) -> bool:
    try:
        memory = Config("", memory=options.get("memory", Config.memory)).memory_bytes * alive
        placement.find(Config("", memory=memory, hugepages="2M"))
    except (HostError, UsageError):  # too few, or the memory is no multiple of them
        return False
    return True
