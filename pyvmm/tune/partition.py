"""Which CPUs a benchmark gets, and who else may use them.

layout() divides the CPUs. move_work() keeps the kernel's own work, interrupts and work queues, on
the housekeeping ones; isolate() takes the benchmark's from every other process, by a cpuset
partition (Linux, admin-guide/cgroup-v2.rst, "cpuset.cpus.partition"). Both write through the
Journal, whose undo() is their end, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from glob import glob

from ..delegation import MOUNTS, enable, read, refusal, write
from ..placement import parse_list, ranges
from .journal import Journal
from .knobs import CPU, look

NAME = "pyvmm-partition"
MANY_CORES = 8  # from so many on, two are for housekeeping
DEFAULT_IRQ = "proc/irq/default_smp_affinity"
WORKQUEUE = "sys/devices/virtual/workqueue/cpumask"


# ---- which ----


def layout(
    cpus: Sequence[int],
    siblings: Mapping[int, Sequence[int]] | None = None,
    nodes: Mapping[int, Sequence[int]] | None = None,
) -> tuple[list[int], list[int]]:
    """Divide CPUs: (the benchmark's, best first; housekeeping's). Whole cores go to either.

    ``siblings``: for a CPU, all of its core; ``nodes``: for a NUMA node, its CPUs. Housekeeping
    gets the first core, of 8 and more the first two: CPU 0 has work that cannot be moved. Of the
    benchmark's CPUs the first of each core come before all second ones, and those of the node that
    has the most left before other nodes', so that the first n are the best n. With one core there
    is nothing to divide: all is the benchmark's, and housekeeping's list is empty.
    """
    siblings, nodes = siblings or {}, nodes or {}
    cores: list[list[int]] = []
    for cpu in sorted(cpus):
        if not any(cpu in core for core in cores):
            cores.append(sorted({cpu, *siblings.get(cpu, ())} & set(cpus)))
    if len(cores) < 2:
        return sorted(cpus), []
    kept = 2 if len(cores) >= MANY_CORES else 1
    node_of = {cpu: node for node, members in nodes.items() for cpu in members}
    free = [cpu for core in cores[kept:] for cpu in core]
    at_node = [node_of.get(cpu, 0) for cpu in free]

    def rank(cpu: int) -> tuple[int, int, int, int]:
        node = node_of.get(cpu, 0)
        thread = next(core.index(cpu) for core in cores if cpu in core)
        return thread, -at_node.count(node), node, cpu

    return sorted(free, key=rank), sorted(cpu for core in cores[:kept] for cpu in core)


def host_layout(root: str = "/") -> tuple[list[int], list[int]]:
    """layout() of the CPUs that are online now."""
    cpus = parse_list(look(root, f"{CPU}/online") or "0")
    siblings = {
        cpu: parse_list(look(root, f"{CPU}/cpu{cpu}/topology/thread_siblings_list") or str(cpu))
        for cpu in cpus
    }
    nodes = {}
    for path in glob("sys/devices/system/node/node[0-9]*/cpulist", root_dir=root):
        node = int(os.path.basename(os.path.dirname(path)).removeprefix("node"))
        nodes[node] = parse_list(look(root, path) or "")
    return layout(cpus, siblings, nodes)


# ---- the kernel's work ----


def interrupts(root: str) -> list[str]:
    """The files that say on which CPUs each interrupt may arrive."""
    paths = glob("proc/irq/[0-9]*/smp_affinity_list", root_dir=root)
    return sorted(paths, key=lambda path: int(path.split("/")[2]))


def move_work(journal: Journal, housekeeping: Sequence[int]) -> None:
    """Interrupts and unbound work to these CPUs. Some interrupts cannot be moved: they are noted.

    Before SMT is switched off, so that it is on again before an interrupt goes back to a sibling.
    """
    for path in (DEFAULT_IRQ, WORKQUEUE):
        old = look(journal.root, path)
        if old is not None:
            name = "IRQ affinity" if path == DEFAULT_IRQ else "work queues"
            journal.set(name, path, mask(housekeeping, old))
    for path in interrupts(journal.root):
        journal.set("IRQ affinity", path, ranges(sorted(housekeeping)))


def mask(cpus: Iterable[int], like: str) -> str:
    """A mask of CPUs as the kernel prints it: as wide as ``like``, 32 bits to a comma."""
    digits = f"{sum(1 << cpu for cpu in cpus):0{len(like.replace(',', ''))}x}"
    groups = [digits[max(0, end - 8) : end] for end in range(len(digits), 0, -8)]
    return ",".join(reversed(groups))


# ---- the partition ----


def mount(root: str) -> str:
    """The mount of cgroup2, below the root; "" without one."""
    for place in MOUNTS:
        if os.path.exists(os.path.join(root, place[1:], "cgroup.controllers")):
            return place[1:]
    return ""


def obstacle(root: str, cpus: Sequence[int]) -> str:
    """Why no partition of these CPUs can be made; "" if it can, for root."""
    top = mount(root)
    if not top:
        return "no cgroup2 here"
    if "cpuset" not in (look(root, f"{top}/cgroup.controllers") or "").split():
        return "no cgroup2 here has the cpuset controller"
    online = parse_list(look(root, f"{CPU}/online") or "0")
    if set(online) <= set(cpus):
        return "one core only: none is left for housekeeping"
    return ""


def isolate(journal: Journal, cpus: Sequence[int]) -> str:
    """Make a partition of CPUs. Returns its directory, for run's ``--cgroup``; or "", and a note.

    What the kernel does not take as an ``isolated`` partition (no load balancing) is tried as a
    ``root`` one, and is at the least a plain member of its parent: then others may run there, too.
    """
    name, top = "partition", mount(journal.root)
    why = obstacle(journal.root, cpus)
    if why:
        journal.note(name, top or MOUNTS[0][1:], why)
        return ""
    try:
        # They stay on, as those that cgroup.py needs: by the end somebody else may use them.
        parent = journal.at(top)
        enable(parent, "cpuset")
    except OSError as e:
        journal.note(name, top, refusal(parent, "cpuset", e))
        return ""
    path = f"{top}/{NAME}"
    if not journal.make(name, path):
        return ""
    full = journal.at(path)
    try:
        write(f"{full}/cpuset.cpus", ranges(sorted(cpus)))
    except OSError as e:
        journal.note(name, f"{path}/cpuset.cpus", f"cannot be set: {e.strerror}")
        return ""
    for controller in ("cpu", "memory", "pids", "io"):  # what a VM's cgroup in it limits
        for directory in (parent, full):
            try:
                enable(directory, controller)
            except OSError:
                pass  # Cgroup.limit() says what is not to be had
    kind = _kind(full)
    if kind:
        journal.note(name, path, kind)
    return full


def _kind(full: str) -> str:
    """Make it isolated; or else a root, or a member: why."""
    why = ""
    for kind in ("isolated", "root"):
        try:
            write(f"{full}/cpuset.cpus.partition", kind)
            now = read(f"{full}/cpuset.cpus.partition").strip()
        except OSError as e:
            now = e.strerror or ""
        if now == kind:
            return f"is a {kind} one: {why}" if why else ""
        why = why or f"isolated was not taken: {now}"
    try:
        write(f"{full}/cpuset.cpus.partition", "member")
    except OSError:
        pass
    return f"is no partition, others may run on its CPUs: {why}"
