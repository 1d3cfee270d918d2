"""Huge pages, prefault and pins, seen from outside while a tiny guest runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pyvmm._core import lib

from pyvmm import layout

from .test_guests import GiB
from .tiny import FOREVER, RESET, Guest, fetch, store, tasks, text

PAGES = {"2M": 2 << 20, "1G": GiB}


@pytest.fixture
def reserve():
    """reserve(name, count): that many more huge pages, until the test's end."""
    before: dict[Path, str] = {}

    def more(name: str, count: int) -> int:
        page = PAGES[name]
        file = Path(f"/sys/kernel/mm/hugepages/hugepages-{page >> 10}kB/nr_hugepages")
        if os.geteuid() or not file.exists():
            pytest.skip(f"pages of {name}: needs root and a CPU that has them")
        before[file] = file.read_text()
        wanted = int(before[file]) + count
        file.write_text(str(wanted))
        if int(file.read_text()) < wanted:
            pytest.skip(f"{count} pages of {name} are not to be had")
        return page

    yield more
    for file, number in before.items():
        file.write_text(number)


def mapping(address: int) -> dict[str, int]:
    """The kB that /proc/self/smaps says of the mapping that holds ``address``."""
    found: dict[str, int] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            low, high = (int(x, 16) for x in words[0].split("-"))
            inside = low <= address < high
        elif inside and words[-1] == "kB":
            found[words[0][:-1]] = int(words[1])
    return found


def threads() -> dict[str, str]:
    """Where this process's threads may run, by their names."""
    found = {}
    for name, task in tasks().items():
        (cpus,) = [line for line in (task / "status").read_text().splitlines()
                   if line.startswith("Cpus_allowed_list:")]  # fmt: skip
        found[name.rpartition(" ")[0]] = cpus.split()[1]
    return found


def held(address: int) -> int:
    """The kB of huge pages there. Linux calls pages of 1 GiB shared, whoever has them."""
    found = mapping(address)
    return found["Private_Hugetlb"] + found["Shared_Hugetlb"]


@pytest.mark.parametrize(("name", "pages"), [("2M", 2), ("1G", 1)])
def test_huge_pages(kvm_fd, reserve, name, pages):
    page = reserve(name, pages)
    code = store(page * pages - 4096, 1) + text(b"huge") + RESET
    with Guest(kvm_fd, code, size=pages * page, hugepages=page) as guest:
        at = guest.memory.regions[0].address
        assert at % page == 0
        assert mapping(at)["KernelPageSize"] == page >> 10
        assert guest.run()["end"] == "reset"
        assert guest.console == b"huge"
        assert held(at) == pages * page >> 10


def test_huge_pages_come_when_they_are_touched(kvm_fd, reserve):
    page = reserve("2M", 3)
    with Guest(kvm_fd, RESET, size=3 * page, hugepages=page) as guest:
        assert guest.run()["end"] == "reset"
        assert held(guest.memory.regions[0].address) == page >> 10  # the code, the page tables


def test_huge_pages_of_a_node_are_held_before_they_are_touched(kvm_fd, reserve):
    page = reserve("2M", 3)
    with Guest(kvm_fd, RESET, size=3 * page, hugepages=page, node=0) as guest:
        assert held(guest.memory.regions[0].address) == 3 * page >> 10
        assert guest.run()["end"] == "reset"


def test_1g_pages_on_both_sides_of_a_hole(kvm_fd, reserve, monkeypatch):
    """Above 1 GiB instead of 3, because more than two such pages are rarely to be had."""
    page = reserve("1G", 2)
    monkeypatch.setattr(layout, "ram_regions", lambda size: [(0, GiB), (4 * GiB, size - GiB)])
    with Guest(kvm_fd, store(GiB - 4096, 1) + RESET, size=2 * GiB, hugepages=page) as guest:
        low, high = (r.address for r in guest.memory.regions)
        assert (low % page, high % page) == (0, 0)
        assert mapping(low)["KernelPageSize"] == mapping(high)["KernelPageSize"] == page >> 10
        assert guest.run()["end"] == "reset"
        assert (held(low), held(high)) == (page >> 10, 0)


def test_prefault(kvm_fd):
    with Guest(kvm_fd, fetch(0x200000) + RESET, size=8 << 20, prefault=True) as guest:
        assert mapping(guest.memory.regions[0].address)["Rss"] == 8 << 10
        assert guest.run()["end"] == "reset"
        assert mapping(guest.memory.regions[0].address)["Rss"] == 8 << 10


def test_pins(kvm_fd):
    """Each vCPU where it is pinned; one that is not, and the io thread, where their maker is."""
    cpus = os.sched_getaffinity(0)
    first, last = min(cpus), max(cpus)
    with Guest(kvm_fd, text(b"!") + FOREVER, vcpus=3, irqchip=False) as guest:
        assert lib.vm_pin_vcpu(guest.core, 0, last) == 0
        assert lib.vm_pin_vcpu(guest.core, 1, first) == 0
        os.sched_setaffinity(0, {first})
        try:
            guest.start()
        finally:
            os.sched_setaffinity(0, cpus)
        guest.until_printed(3)
        found = threads()
        lib.vm_stop(guest.core)
    assert {name: found[name] for name in ("vcpu00", "vcpu01", "vcpu02", "io")} == {
        "vcpu00": str(last),
        "vcpu01": str(first),
        "vcpu02": str(first),
        "io": str(first),
    }


def test_pin_to_a_cpu_that_is_not_there(kvm_fd):
    with Guest(kvm_fd, FOREVER) as guest:
        assert lib.vm_pin_vcpu(guest.core, 0, 1023) == 0
        assert lib.vm_spawn(guest.core) == -22
        lib.vm_stop(guest.core)
        assert "vcpu00" not in threads()
