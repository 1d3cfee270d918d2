"""Where benchmarks' VMs run on the host, unless the caller says: vCPUs apart from all else."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

from .. import placement
from ..config import Config
from ..errors import HostError, UsageError
from ..memory import MADV_POPULATE_WRITE
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
    warnings, prefault = [], can_prefault()
    if not prefault:
        warnings.append("guest memory is not there before the clock starts: needs Linux 5.14")
    for options in vms:
        options.setdefault("prefault", prefault)
        if options.get("hugepages") is None and _huge_pages(options, alive):
            options["hugepages"] = "2M"
    unplaced = [vm for vm in vms if vm.get("cpus") is None and vm.get("numa_node") is None]
    if at_once and (said := vms[0].get("cpus")):  # one list for all: each gets its own of it
        unplaced, best, others = list(vms), placement.parse_cpus(said), []
    if not unplaced:
        return warnings
    counts = [vm.get("vcpus", 1) for vm in unplaced]
    need = sum(counts) if at_once else max(counts)
    if need > len(best):
        best, others = [*best, *reversed(others)], []
    if need > len(best) and at_once:
        raise UsageError(f"VMs at once with {need} vCPUs in all: there are {len(best)} CPUs")
    if need > len(best):
        return warnings  # each run warns that vCPUs share CPUs
    left, rest = list(best), list(others) or list(best[need:])
    for vm, count in zip(unplaced, counts, strict=True):
        vm["cpus"] = ",".join(map(str, left[:count] + rest))
        if at_once:
            del left[:count]
    if rest:
        return warnings
    return [
        *warnings,
        f"no CPU is left beside {need} for vCPUs: pyvmm's own work runs on them, too",
    ]


def can_prefault() -> bool:
    """Whether this host's kernel can have memory there before it is used (Linux 5.14)."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        try:
            page.madvise(MADV_POPULATE_WRITE)
        except OSError:
            return False
    return True


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
