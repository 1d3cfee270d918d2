"""Guests of every size: 1 to 16 vCPUs, the least memory to more than the hole leaves below 4 GiB,
both kernels, both entries. What is asserted is what the guest itself sees.

Not the full product (a boot takes seconds): every kernel, every entry and every edge of the memory
map once, and the pairs of them that go different ways in pyvmm.
"""

from __future__ import annotations

import re

import pytest
from harness import Host, sections, sharing

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4096

SCRIPT = """
item() { echo "== $1"; }
item loader; cat /proc/sys/kernel/bootloader_type
item online; cd /sys/devices/system/cpu; cat online present; nproc
item topology
grep . cpu*/topology/physical_package_id cpu*/topology/core_id \
    cpu*/topology/thread_siblings_list cpu*/topology/core_siblings_list
item cpuinfo; grep -E '^(processor|physical id|siblings|core id|cpu cores|(initial )?apicid)' \
    /proc/cpuinfo
item iomem; cat /proc/iomem
item total; sed -n 's/^MemTotal: *//p' /proc/meminfo
item cpus; probe cpus
item high; probe high
"""

LOADER = {"linux64": "255", "pvh": "176"}  # no number of its own; PVH's 0xb, 0

GUESTS = [
    ("minimal", "linux64", 1, 64 * MIB),
    ("minimal", "linux64", 2, 64 * MIB + PAGE),  # nothing in it is aligned to a large page
    ("minimal", "linux64", 3, 3071 * MIB),
    ("minimal", "linux64", 1, 3072 * MIB),  # exactly up to the hole
    ("minimal", "linux64", 2, 3072 * MIB + PAGE),  # and one page that lies beyond it
    ("minimal", "linux64", 1, 3073 * MIB),
    ("minimal", "linux64", 2, 4 * GIB),
    ("minimal", "linux64", 4, 5 * GIB),
    ("minimal", "pvh", 1, 64 * MIB),
    ("minimal", "pvh", 3, 5 * GIB),
    ("minimal", "pvh", 16, 512 * MIB),
    ("stock", "linux64", 2, 5 * GIB),
    ("stock", "linux64", 16, 512 * MIB),
    ("stock", "pvh", 5, 256 * MIB),
]


def expected_ram(memory: int) -> list[tuple[int, int]]:
    """System RAM as Linux lists it: it keeps page 0 for itself."""
    ram = [(PAGE, 0x9FC00), (MIB, min(memory, 3 * GIB))]
    return ram if memory <= 3 * GIB else [*ram, (4 * GIB, memory + GIB)]


def ranges(iomem: list[str], name: str) -> list[tuple[int, int]]:
    """The ranges of that name in /proc/iomem as [start, end); neighbours are one.

    Linux splits RAM where a piece was handed over separately (setup_data).
    """
    found: list[tuple[int, int]] = []
    for line in iomem:
        if match := re.fullmatch(rf"\s*([0-9a-f]+)-([0-9a-f]+) : {name}", line):
            start, end = int(match[1], 16), int(match[2], 16) + 1
            if found and found[-1][1] == start:
                start = found.pop()[0]
            found.append((start, end))
    return found


def overhead(facts: dict[str, list[str]], vcpus: int, memory: int) -> tuple[int, int]:
    """What a kernel takes from RAM before MemTotal: at least, and at most.

    A struct page of 64 bytes for every page it takes in any case. At most also: its own image; the
    hash tables of dentries and inodes (a 512th and a 1024th of RAM); 256 KiB of per-CPU data a
    CPU; and 4 MiB of what is small. No bounce buffers: they would be 64 MiB as soon as there is RAM
    above 4 GiB (plan.py, swiotlb=).
    """
    pages = memory // PAGE * 64
    ((start, _),) = ranges(facts["iomem"], "Kernel code")
    ((_, end),) = ranges(facts["iomem"], "Kernel bss")
    most = pages + end - start + memory // 512 + memory // 1024 + vcpus * 256 * KIB + 4 * MIB
    return pages, most


@pytest.mark.parametrize(
    ("kernel", "entry", "vcpus", "memory"),
    GUESTS,
    ids=[f"{k}-{e}-{v}-{m // MIB}M{'+' if m % MIB else ''}" for k, e, v, m in GUESTS],
)
def test_size(host: Host, kernel: str, entry: str, vcpus: int, memory: int) -> None:
    done = host.run(
        "sh", "-c", SCRIPT, kernel=kernel, entry=entry, vcpus=str(vcpus), memory=str(memory),
        boot_timeout="400", limit=480,  # 16 vCPUs take turns on the one CPU of the kvmbox
        privileged="",  # /proc/iomem and pagemap hide addresses from others
    )  # fmt: skip
    assert (done.code, done.err) == (0, sharing(vcpus)), done.out
    facts = sections(done.out)
    assert facts["loader"] == [LOADER[entry]]
    check_cpus(facts, vcpus)
    check_memory(facts, vcpus, memory)


def check_cpus(facts: dict[str, list[str]], vcpus: int) -> None:
    """One package of cores with one thread each; each runs, with the APIC id of its number."""
    every = "0" if vcpus == 1 else f"0-{vcpus - 1}"
    assert facts["online"] == [every, every, str(vcpus)]
    assert facts["cpus"] == [f"{cpu} {cpu} {cpu}" for cpu in range(vcpus)]
    assert sorted(facts["topology"]) == sorted(
        f"cpu{cpu}/topology/{name}:{value}"
        for cpu in range(vcpus)
        for name, value in (
            ("physical_package_id", 0),
            ("core_id", cpu),
            ("thread_siblings_list", cpu),
            ("core_siblings_list", every),
        )
    )
    assert [re.sub(r"\s*:\s*", "=", line) for line in facts["cpuinfo"]] == [
        fact
        for cpu in range(vcpus)
        for fact in (
            f"processor={cpu}",
            "physical id=0",
            f"siblings={vcpus}",
            f"core id={cpu}",
            f"cpu cores={vcpus}",
            f"apicid={cpu}",
            f"initial apicid={cpu}",
        )
    ]


def check_memory(facts: dict[str, list[str]], vcpus: int, memory: int) -> None:
    found = ranges(facts["iomem"], "System RAM")
    assert found == expected_ram(memory)
    ram = sum(end - start for start, end in found)
    assert ram == memory - PAGE - (MIB - 0x9FC00)
    (total,) = facts["total"]
    assert total.endswith(" kB")
    least, most = overhead(facts, vcpus, memory)
    assert least <= ram - int(total[:-3]) * KIB <= most
    # A gigabyte of it is more than a kernel uses up for itself; a megabyte is not.
    high = memory >= 4 * GIB
    assert facts["high"] == [
        f"{512 if high else 0} pages above 4 GiB",
        "0 words wrong",
        f"code {'above' if high else 'below'} 4 GiB",
    ]


def refused(host: Host, **options: str) -> tuple[int, str]:
    done = host.run("true", **options)
    assert done.out == b""
    (line,) = done.err.decode().splitlines()
    return done.code, line


def test_least_memory(host: Host, kernel: str) -> None:
    """The number that pyvmm names is enough, and with a page less it names it again."""
    code, line = refused(host, kernel=kernel, memory="1M")
    found = re.search(r"at least (\d+)M", line)
    assert found, line
    least = int(found[1])
    message = (
        f"pyvmm: memory of {{}} is too small for kernel {kernel}: "
        f"it needs at least {least}M (--memory)"
    )
    assert (code, line) == (125, message.format("1 MiB"))
    almost = least * MIB - PAGE
    assert refused(host, kernel=kernel, memory=str(almost)) == (
        125,
        message.format(f"{almost} bytes"),
    )
    host.run("probe", "cpus", kernel=kernel, memory=f"{least}M").check(0, b"0 0 0\n")


@pytest.mark.parametrize(
    ("name", "value", "code", "message"),
    [
        ("vcpus", "65", 2, "vcpus 65: must be 1 to 64"),
        ("memory", "0", 2, "memory of 0 bytes: must be a positive multiple of 4096"),
        ("memory", "65T", 2, "memory of 71468255805440 bytes: at most 64T"),
        ("memory", "64T", 125,
         "memory of 67108864 MiB: more than KVM can address on this host"),
    ],
)  # fmt: skip
def test_what_no_guest_has(host: Host, name: str, value: str, code: int, message: str) -> None:
    found = refused(host, kernel="minimal", **{name: value})
    assert found == (code, f"pyvmm: {message}")
