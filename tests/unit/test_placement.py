"""Where a VM is put: the CPU list, what a host (a made-up /sys) lacks, what the worker is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyvmm._core import lib

from pyvmm import placement, plan
from pyvmm.config import Config
from pyvmm.errors import HostError, UsageError
from pyvmm.memory import GuestMemory

from .virtq import Machine

MiB, GiB = 1 << 20, 1 << 30


class Host:
    """A made-up host: 8 CPUs online, nodes 0 (CPUs 0-3), 1 (CPUs 4-7) and 2 (memory only)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.put("devices/system/cpu/online", "0-7")
        self.put("devices/system/node/online", "0-3")
        self.put("devices/system/node/has_memory", "0-2")
        for node, cpus in enumerate(("0-3", "4-7", "", "")):
            self.put(f"devices/system/node/node{node}/cpulist", cpus)
        self.allow("0-3")

    def put(self, name: str, text: object) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def allow(self, nodes: str) -> None:
        self.put("status", f"Name:\tx\nMems_allowed:\t0f\nMems_allowed_list:\t{nodes}")

    def pool(self, where: str = "kernel/mm", page: int = 2048, **numbers: int) -> str:
        """Make a pool of huge pages; returns its path."""
        pool = f"{where}/hugepages/hugepages-{page}kB"
        for name in ("nr", "free", "resv", "surplus", "nr_overcommit"):
            self.put(f"{pool}/{name}_hugepages", numbers.get(name, 0))
        return f"{self.root}/{pool}"

    def find(self, *, mine: str = "0-7", **options: object) -> dict[str, object]:
        return placement.find(
            Config("image", **options), sysfs=str(self.root), status=f"{self.root}/status",
            mine=set(placement.parse_cpus(mine)),
        )  # fmt: skip


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


# ---- the list ----


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0", [0]),
        ("3,1", [3, 1]),
        ("0,2-3", [0, 2, 3]),
        ("5-5", [5]),
        ("4-6, 1", [4, 5, 6, 1]),
        ("1023", [1023]),
    ],
)
def test_lists(text, cpus):
    assert placement.parse_cpus(text) == cpus


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "write it as 0,2-3"),
        ("a", "write it as 0,2-3"),
        ("0,", "write it as 0,2-3"),
        ("0-", "write it as 0,2-3"),
        ("-1", "write it as 0,2-3"),
        ("0-1-2", "write it as 0,2-3"),
        ("0 1", "write it as 0,2-3"),
        ("0x1", "write it as 0,2-3"),
        ("²", "write it as 0,2-3"),
        ("9" * 900, "write it as 0,2-3"),
        ("0,3-1", "3-1 runs backwards"),
        ("1024", "CPU 1024 is above 1023, the last possible"),
        ("0-999999999", "CPU 999999999 is above 1023, the last possible"),
        ("0-3,2", "CPU 2 is in it twice"),
    ],
)
def test_what_is_no_list(text, why):
    with pytest.raises(UsageError) as caught:
        Config("image", cpus=text)
    assert str(caught.value) == f"CPU list {text!r}: {why}"


# ---- what cannot be meant ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hugepages": "4M"}, "huge pages of '4M': must be 2M or 1G"),
        ({"hugepages": ""}, "huge pages of '': must be 2M or 1G"),
        (
            {"hugepages": "2M", "memory": "513M"},
            "memory of 537919488 bytes: not a multiple of 2M, the size of its huge pages; "
            "the next one up is 514M (--memory)",
        ),
        (
            {"hugepages": "2M", "memory": 4096},
            "memory of 4096 bytes: not a multiple of 2M, the size of its huge pages; "
            "the next one up is 2M (--memory)",
        ),
        (
            {"hugepages": "1G"},
            "memory of 536870912 bytes: not a multiple of 1G, the size of its huge pages; "
            "the next one up is 1G (--memory)",
        ),
        (
            {"hugepages": "1G", "memory": "4097M"},
            "memory of 4296015872 bytes: not a multiple of 1G, the size of its huge pages; "
            "the next one up is 5G (--memory)",
        ),
        ({"numa_node": -1}, "NUMA node -1: must be 0 or more"),
    ],
)
def test_what_cannot_be_meant(options, message):
    with pytest.raises(UsageError) as caught:
        Config("image", **options)
    assert str(caught.value) == message


# ---- what the worker is told ----


@pytest.mark.parametrize(("options", "imported"), [("", False), (", prefault=True", True)])
def test_only_a_run_that_asks_for_it_imports_it(options, imported):
    script = (
        "import sys; from pyvmm import plan; from pyvmm.config import Config; "
        f"plan.place(Config('image'{options})); print('pyvmm.placement' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert done.stdout == b"%r\n" % imported


def test_nothing_asked_for_is_nothing_told():
    assert plan.place(Config("image")) is plan.ANYWHERE
    told = {"hugepages": 0, "node": None, "prefault": False, "affinity": [], "pins": []}
    assert told == plan.ANYWHERE


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prefault": True}, {"prefault": True}),
        # a CPU each, the rest of the worker on those left over
        ({"cpus": "3,5", "vcpus": 2}, {"affinity": [3, 5], "pins": [3, 5]}),
        ({"cpus": "3,5,6-7", "vcpus": 2}, {"affinity": [6, 7], "pins": [3, 5]}),
        ({"cpus": "3", "vcpus": 1}, {"affinity": [3], "pins": [3]}),
        # fewer CPUs than vCPUs: in turn
        ({"cpus": "1,2", "vcpus": 5}, {"affinity": [1, 2], "pins": [1, 2, 1, 2, 1]}),
        ({"numa_node": 1}, {"node": 1, "affinity": [4, 5, 6, 7]}),
        ({"numa_node": 1, "cpus": "0"}, {"node": 1, "affinity": [0], "pins": [0]}),
        ({"numa_node": 2}, {"node": 2}),
    ],
)
def test_told(host, options, told):
    assert host.find(**options) == plan.ANYWHERE | told


def test_of_a_node_s_cpus_those_that_this_process_may_use(host):
    assert host.find(numa_node=0, mine="2-5")["affinity"] == [2, 3]


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        ({"cpus": "1,2", "vcpus": 2}, None),
        ({"cpus": "1,2,3", "vcpus": 2}, None),
        ({"cpus": "1,2", "vcpus": 3}, 2),
        ({"cpus": "0", "vcpus": 2, "numa_node": 1}, 1),
        ({"numa_node": 1, "vcpus": 4}, None),
        ({"numa_node": 1, "vcpus": 5}, 4),
    ],
)
def test_warning_of_too_few_cpus(host, options, shared):
    warnings = plan._warnings(Config("image", **options), host.find(**options))
    text = f"{options['vcpus']} vCPUs share {shared} host CPUs: timings will suffer"
    assert warnings == ([text] if shared else [])


# ---- what the host lacks ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"numa_node": 99}, "no NUMA node 99: this host has 0-2 (--numa-node)"),
        ({"numa_node": 3}, "NUMA node 3 has no memory: this host has 0-2 (--numa-node)"),
        (
            {"numa_node": 1, "mine": "0-2"},
            "NUMA node 1 has CPUs 4-7, and this process may use only 0-2: "
            "name some of those (--cpu-list)",
        ),
        ({"cpus": "0,99"}, "CPU 99 is not online: this host has 0-7 (--cpu-list)"),
        (
            {"cpus": "0,5", "mine": "0-2,6"},
            "CPU 5 is not in this process's affinity mask or cpuset: it may use 0-2,6 (--cpu-list)",
        ),
        (
            {"hugepages": "2M"},
            "this host has no huge pages of 2M: its kernel lacks CONFIG_HUGETLBFS",
        ),
    ],
)
def test_what_the_host_lacks(host, options, message):
    with pytest.raises(HostError) as caught:
        host.find(**options)
    assert str(caught.value) == message


def test_node_outside_the_cpuset(host):
    host.allow("0,2")
    with pytest.raises(HostError) as caught:
        host.find(numa_node=1)
    assert str(caught.value) == (
        "NUMA node 1 is not in this process's cpuset: it may use 0,2 (--numa-node)"
    )


def test_host_without_1g_pages(host):
    host.pool(nr=512, free=512)
    with pytest.raises(HostError) as caught:
        host.find(hugepages="1G", memory="1G")
    assert str(caught.value) == "this host has no huge pages of 1G: only of 2M (--hugepages)"


@pytest.mark.parametrize(
    ("numbers", "free", "write"),
    [
        ({}, 0, 256),
        ({"nr": 255, "free": 255}, 255, 256),
        ({"nr": 300, "free": 255}, 255, 301),
        ({"nr": 300, "free": 300, "resv": 100}, 200, 356),
        ({"nr": 310, "free": 10, "surplus": 10}, 10, 546),
        ({"nr": 310, "free": 10, "surplus": 10, "nr_overcommit": 20}, 20, 536),
    ],
)
def test_too_few_huge_pages(host, numbers, free, write):
    pool = host.pool(**numbers)
    with pytest.raises(HostError) as caught:
        host.find(hugepages="2M")
    assert str(caught.value) == (
        f"huge pages of 2M: 256 needed, {free} free: write {write} to {pool}/nr_hugepages"
    )


def test_too_few_1g_pages_can_also_be_had_at_boot(host):
    pool = host.pool(page=1048576, nr=1, free=1)
    with pytest.raises(HostError) as caught:
        host.find(hugepages="1G", memory="3G")
    assert str(caught.value) == (
        f"huge pages of 1G: 3 needed, 1 free: write 3 to {pool}/nr_hugepages, "
        "or boot with hugepagesz=1G hugepages=3"
    )


def test_too_few_huge_pages_on_the_node(host):
    host.pool(nr=1000, free=1000)
    host.pool("devices/system/node/node0", nr=990, free=990)
    pool = host.pool("devices/system/node/node1", nr=10, free=8)
    assert host.find(hugepages="2M", numa_node=0)["hugepages"] == 2 * MiB
    with pytest.raises(HostError) as caught:
        host.find(hugepages="2M", numa_node=1)
    assert str(caught.value) == (
        f"huge pages of 2M: 256 needed, 8 free: write 258 to {pool}/nr_hugepages"
    )


@pytest.mark.parametrize(
    "numbers",
    [
        {"nr": 256, "free": 256},
        {"nr": 300, "free": 300, "resv": 44},
        {"nr_overcommit": 256},
    ],
)
def test_enough_huge_pages(host, numbers):
    host.pool(**numbers)
    assert host.find(hugepages="2M")["hugepages"] == 2 * MiB


# ---- guest RAM, here ----


def mapping(address: int) -> dict[str, str]:
    """What /proc/self/smaps says of the mapping that begins at or holds ``address``."""
    found: dict[str, str] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if not head.endswith(":"):
            low, high = (int(x, 16) for x in head.split("-"))
            inside = low <= address < high
        elif inside:
            found[head[:-1]] = line.partition(":")[2].strip()
    return found


@pytest.mark.parametrize("size", [2 * MiB, 6 * MiB])
def test_prefault_touches_all(size):
    (region,) = GuestMemory(size).regions
    assert mapping(region.address)["Rss"] == "0 kB"
    (region,) = GuestMemory(size, prefault=True).regions
    assert mapping(region.address)["Rss"] == f"{size >> 10} kB"


def test_regions_agree_with_the_guest_s_addresses_modulo_the_page_size():
    for region in GuestMemory(5 * GiB).regions:
        assert (region.address - region.gpa) % (2 * MiB) == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/numa_maps"), reason="a kernel without NUMA")
def test_memory_is_bound_to_a_node():
    memory = GuestMemory(4 * MiB, node=0)
    policies = dict(
        line.split()[:2] for line in Path("/proc/self/numa_maps").read_text().splitlines()
    )
    assert policies[f"{memory.regions[0].address:08x}"] == "bind:0"


@pytest.mark.parametrize("node", [1000, 1024, 1 << 31])
def test_node_that_is_not_there(node):
    with pytest.raises(HostError) as caught:
        GuestMemory(4 * MiB, node=node)
    assert str(caught.value) == f"cannot bind memory to NUMA node {node}: Invalid argument"


@pytest.mark.parametrize(("page", "name", "kb"), [(2 * MiB, "2M", 2048), (GiB, "1G", 1048576)])
def test_huge_pages_are_reserved_at_once(page, name, kb):
    """More than any host has: an error now, not a SIGBUS later."""
    if not os.path.isdir(f"/sys/kernel/mm/hugepages/hugepages-{kb}kB"):
        pytest.skip(f"this host has no pages of {name}")
    with pytest.raises(HostError) as caught:
        GuestMemory(1 << 45, hugepages=page)
    assert str(caught.value) == (
        f"cannot reserve {3 * GiB // page} huge pages of {name}: Cannot allocate memory "
        f"(raise /sys/kernel/mm/hugepages/hugepages-{kb}kB/nr_hugepages)"
    )


@pytest.mark.parametrize(("index", "host_cpu"), [(0, 0), (1, 0), (0, 1024)])
def test_pin_of_what_is_not_there(index, host_cpu):
    with Machine() as machine:
        assert lib.vm_pin_vcpu(machine.core, index, host_cpu) == -22
