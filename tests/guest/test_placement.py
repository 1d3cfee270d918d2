"""Huge pages, NUMA node, pins and prefault of real guests, read in /proc of their worker.

tests/run.sh runs test_pins_… also where KVM cannot run Linux: there are more CPUs than in the box.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import IMAGES, RUN_LIMIT, UNTIL_GO, Host

import pyvmm

MEMORY_KB = 128 << 10
CPUS = sorted(os.sched_getaffinity(0))
Reserve = Callable[[str, int], bool]
POOLS = Path("/sys/kernel/mm/hugepages")


@pytest.fixture(autouse=True)
def temporary(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(host.temporary))


@pytest.fixture
def pages() -> Iterator[Reserve]:
    """pages("2M", n): have n free huge pages, if the host can, until the test's end."""
    before: dict[Path, str] = {}

    def reserve(size: str, count: int) -> bool:
        pool = POOLS / {"2M": "hugepages-2048kB", "1G": "hugepages-1048576kB"}[size]
        file = pool / "nr_hugepages"
        before[file] = file.read_text()
        file.write_text(str(int(before[file]) + count))
        return int((pool / "free_hugepages").read_text()) >= count

    yield reserve
    for file, number in before.items():
        file.write_text(number)


def pool_2m() -> dict[str, int]:
    """Free pages, and those of them that are promised."""
    pool = POOLS / "hugepages-2048kB"
    return {name: int((pool / f"{name}_hugepages").read_text()) for name in ("free", "resv")}


@dataclass
class Seen:
    """A worker at one moment."""

    ram: dict[str, int]  # the numbers in smaps of the mapping with most in it: kB
    policy: str
    cpus: dict[str, str]  # where each thread may run; "main" is Python's
    faults: int  # of the first vCPU


def look(pid: int | None) -> Seen:
    proc = Path(f"/proc/{pid}")
    mappings: dict[str, dict[str, int]] = {}
    for line in (proc / "smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            inside = mappings.setdefault(words[0].partition("-")[0], {})
        elif words[-1] == "kB":
            inside[words[0][:-1]] = int(words[1])
    at, ram = max(mappings.items(), key=lambda item: item[1]["Rss"] + item[1]["Private_Hugetlb"])
    policies = (line.split()[:2] for line in (proc / "numa_maps").read_text().splitlines())
    seen = Seen(ram, dict(policies)[at], {}, -1)
    for task in (proc / "task").iterdir():
        name = "main" if task.name == str(pid) else (task / "comm").read_text().strip()
        if name.startswith("kvm-"):
            continue  # KVM's own, which newer kernels show here
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        seen.cpus[name] = status["Cpus_allowed_list"].strip()
        if name == "vcpu00":
            seen.faults = int((task / "stat").read_text().rpartition(")")[2].split()[7])
    return seen


def machine(**options: object) -> pyvmm.Machine:
    command = ["sh", "-c", "echo ready; exec sleep 3600"]
    options = {"kernel": "minimal", "memory": MEMORY_KB << 10} | options
    return pyvmm.Machine(IMAGES / "shell", command, **options)  # type: ignore[arg-type]


def watch(begin: list[Seen] | None = None, **options: object) -> Seen:
    """Run a guest, look while its program sleeps, and end it. ``begin`` gets the first sight."""
    seen: list[Seen] = []

    def ready(_output: bytes) -> None:
        seen.append(look(vm.pid))
        vm.stop()

    with machine(on_stdout=ready, **options) as vm:
        if begin is not None:
            first_sight(vm, "vcpu00")
            begin.append(look(vm.pid))  # the memory is read before the threads
        with pytest.raises(pyvmm.GuestError, match="stopped"):
            vm.wait()
    assert len(seen) == 1
    return seen[0]


def first_sight(vm: pyvmm.Machine, *threads: str) -> Seen:
    """A started machine's worker as soon as it has these threads, and io: each with its name."""
    deadline = time.monotonic() + RUN_LIMIT
    while time.monotonic() < deadline:
        with suppress(OSError, KeyError):
            seen = look(vm.pid)
            if {"io", *threads} <= set(seen.cpus):
                return seen
    pytest.fail(f"no threads {threads} within {RUN_LIMIT:g} s")


@pytest.fixture(scope="module")
def ordinary() -> Seen:
    """A run that asks for nothing."""
    return watch()


def text(cpus: list[int]) -> str:
    """As /proc writes it, of CPUs that are neighbours."""
    return f"{cpus[0]}-{cpus[-1]}" if len(cpus) > 1 else str(cpus[0])


def test_asked_for_nothing(ordinary: Seen) -> None:
    assert ordinary.ram["KernelPageSize"] == 4
    assert 0 < ordinary.ram["Rss"] < MEMORY_KB
    assert ordinary.policy == "default"
    assert ordinary.cpus == {name: text(CPUS) for name in ("main", "io", "vcpu00")}


def test_2m_pages(pages: Reserve) -> None:
    assert pages("2M", MEMORY_KB // 2048)
    before = pool_2m()
    seen = watch(hugepages="2M")
    assert (seen.ram["Size"], seen.ram["KernelPageSize"]) == (MEMORY_KB, 2048)
    assert 0 < seen.ram["Private_Hugetlb"] < MEMORY_KB
    assert pool_2m() == before  # at once: the next run needs them


def test_1g_pages_or_why_not(host: Host, pages: Reserve) -> None:
    if pages("1G", 1):
        seen = watch(hugepages="1G", memory="1G")
        assert (seen.ram["Size"], seen.ram["KernelPageSize"]) == (1 << 20, 1 << 20)
        assert seen.ram["Private_Hugetlb"] + seen.ram["Shared_Hugetlb"] == 1 << 20
    else:
        pool = POOLS / "hugepages-1048576kB"
        free, total = (int((pool / f"{n}_hugepages").read_text()) for n in ("free", "nr"))
        assert refusal(host, 125, hugepages="1G", memory="1G") == (
            f"pyvmm: huge pages of 1G: 1 needed, {free} free: write {total - free + 1} to "
            f"{pool}/nr_hugepages, "
            f"or boot with hugepagesz=1G hugepages={total - free + 1}\n"
        )


def test_numa_node() -> None:
    seen = watch(numa_node=0)
    assert seen.policy == "bind:0"
    node = Path("/sys/devices/system/node/node0/cpulist").read_text().strip()
    assert seen.cpus == dict.fromkeys(("main", "io", "vcpu00"), node)


def test_all_at_once_by_the_command(host: Host, pages: Reserve) -> None:
    assert pages("2M", MEMORY_KB // 2048)
    before = pool_2m()
    last = str(CPUS[-1])
    running = host.start(
        "sh", "-c", f"echo ready; {UNTIL_GO}", kernel="minimal", memory="128M", vcpus="2",
        hugepages="2M", numa_node="0", cpu_list=last, prefault="", name="placed",
    )  # fmt: skip
    running.until(b"ready")
    seen = look(running.worker())
    assert (seen.ram["KernelPageSize"], seen.ram["Private_Hugetlb"]) == (2048, MEMORY_KB)
    assert seen.policy == "bind:0"
    assert seen.cpus == dict.fromkeys(("main", "io", "vcpu00", "vcpu01"), last)
    host.let_go("placed")
    warning = b"pyvmm: warning: 2 vCPUs share 1 host CPUs: timings will suffer\n"
    running.finish().check(0, b"ready\n", warning)
    assert pool_2m() == before


def test_pins_of_a_list_in_its_order() -> None:
    """As many CPUs as vCPUs: the rest of the worker shares them."""
    order = CPUS[::-1]
    names = [f"vcpu{i:02}" for i in range(len(order))]
    with machine(cpus=",".join(map(str, order)), vcpus=len(order)) as vm:
        seen = first_sight(vm, *names)
    assert [seen.cpus[name] for name in names] == [str(cpu) for cpu in order]
    assert (seen.cpus["main"], seen.cpus["io"]) == (text(CPUS), text(CPUS))


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU")
def test_pins_leave_the_rest_to_the_rest() -> None:
    """More CPUs than vCPUs: those left over are not the vCPUs'."""
    with machine(cpus=f"{CPUS[-1]},{CPUS[0]}") as vm:
        seen = first_sight(vm, "vcpu00")
    first, last = str(CPUS[0]), str(CPUS[-1])
    assert seen.cpus == {"vcpu00": last, "main": first, "io": first}


def test_prefault(ordinary: Seen) -> None:
    """All memory is there when a vCPU first is, and the guest's own touching faults no more."""
    first: list[Seen] = []
    ready = watch(first, prefault=True)
    (begin,) = first
    assert begin.ram["Rss"] == ready.ram["Rss"] == MEMORY_KB
    assert ready.faults < ordinary.faults


def refusal(host: Host, code: int, **options: str) -> str:
    """What the command says of options that cannot be fulfilled, before it starts anything."""
    done = host.start("true", kernel="minimal", **options).finish()
    assert (done.code, done.out) == (code, b"")
    return done.err.decode()


def test_errors_are_one_clear_line(host: Host) -> None:
    pool = POOLS / "hugepages-2048kB"
    free, total = (int((pool / f"{n}_hugepages").read_text()) for n in ("free", "nr"))
    assert refusal(host, 125, hugepages="2M", memory="64G") == (
        f"pyvmm: huge pages of 2M: 32768 needed, {free} free: "
        f"write {32768 + total - free} to {pool}/nr_hugepages\n"
    )
    assert refusal(host, 125, numa_node="99") == (
        "pyvmm: no NUMA node 99: this host has 0 (--numa-node)\n"
    )
    assert refusal(host, 125, cpu_list="99") == (
        f"pyvmm: CPU 99 is not online: this host has {text(CPUS)} (--cpu-list)\n"
    )
    assert refusal(host, 2, cpu_list="3-1") == "pyvmm: CPU list '3-1': 3-1 runs backwards\n"
    assert refusal(host, 2, hugepages="1G") == (
        "pyvmm: memory of 536870912 bytes: not a multiple of 1G, the size of its huge pages; "
        "the next one up is 1G (--memory)\n"
    )
