"""A vCPU's first state: CPUID by topology on a canned leaf list, registers at their offsets."""

from __future__ import annotations

import struct

import pytest

from pyvmm import cpu, layout

# What KVM might say on a host of 16 threads: function, index, flags, eax, ebx, ecx, edx.
CANNED = [
    (0x0, 0, 0, 0x1F, 0x756E6547, 0x6C65746E, 0x49656E69),
    (0x1, 0, 0, 0x000806F8, 0x07100800, 0x76FA3223, 0x178BFBFF),
    (0x4, 0, 1, 0x3C004121, 0x02C0003F, 0x3F, 0),
    (0x4, 2, 1, 0x3C004143, 0x03C0003F, 0x7FF, 0),
    (0x4, 3, 1, 0x3C07C163, 0x0340003F, 0x1FFFF, 4),
    (0x4, 4, 1, 0, 0, 0, 0),
    (0x7, 0, 1, 2, 0xF1BF07AB, 0x1A405F66, 0xBC040412),
    (0xA, 0, 0, 0x08300805, 0, 0xF, 0x8604),
    (0xB, 0, 1, 1, 2, 0x100, 7),
    (0xB, 1, 1, 4, 16, 0x201, 7),
    (0x1F, 0, 1, 1, 2, 0x100, 7),
    (0x40000000, 0, 0, 0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D),
    (0x40000001, 0, 0, 0x01007EFB, 0, 0, 0),
    (0x40000010, 0, 0, 1, 2, 3, 4),
    (0x80000008, 0, 0, 0x3039, 0x0111ED205, 0x400F, 0),
    (0x8000001D, 0, 1, 0x4121, 0x01C0003F, 0x3F, 0),
    (0x8000001D, 2, 1, 0x4143, 0x01C0003F, 0x3FF, 2),
    (0x8000001D, 3, 1, 0x3C163, 0x03C0003F, 0x7FFF, 1),
    (0x8000001D, 4, 1, 0, 0, 0, 0),
    (0x8000001E, 0, 0, 7, 0x107, 0x303, 0),
]
TSC_KHZ = 2_400_000
VCPUS = [1, 2, 3, 8]
BITS = {1: 0, 2: 1, 3: 2, 8: 3}


def leaves(vcpus: int, index: int, *, tsc_khz: int = TSC_KHZ, deadline: bool = True):
    """The adjusted list as ``{(function, index): (eax, ebx, ecx, edx)}``."""
    adjusted = cpu.cpuid(CANNED, index, vcpus, tsc_khz, deadline)
    table = {leaf[:2]: leaf[3:] for leaf in adjusted}
    assert len(table) == len(adjusted), "a leaf stands there twice"
    return table


@pytest.mark.parametrize(("vcpus", "index"), [(n, i) for n in VCPUS for i in {0, n - 1}])
class TestTopology:
    def test_leaf_1(self, vcpus, index):
        eax, ebx, ecx, edx = leaves(vcpus, index)[1, 0]
        assert eax == 0x000806F8
        assert ebx == index << 24 | vcpus << 16 | 0x0800
        assert ecx == 0x76FA3223 | 1 << 31 | 1 << 24
        assert edx == (0x178BFBFF if vcpus > 1 else 0x178BFBFF & ~(1 << 28))

    def test_extended_topology(self, vcpus, index):
        table = leaves(vcpus, index)
        for function in (0xB, 0x1F):
            assert table[function, 0] == (0, 1, 0x100, index)
            assert table[function, 1] == (BITS[vcpus], vcpus, 0x201, index)
            assert table[function, 2] == (0, 0, 2, index)

    def test_caches(self, vcpus, index):
        table = leaves(vcpus, index)
        cores = (1 << BITS[vcpus]) - 1
        assert table[4, 0][0] == 0x121 | cores << 26  # level 1: nobody shares it
        assert table[4, 2][0] == 0x143 | cores << 26
        assert table[4, 3][0] == 0x163 | (vcpus - 1) << 14 | cores << 26
        assert table[4, 4] == (0, 0, 0, 0)
        assert table[4, 0][1:] == (0x02C0003F, 0x3F, 0)

    def test_amd_caches(self, vcpus, index):
        table = leaves(vcpus, index)
        assert table[0x8000001D, 0] == (0x121, 0x01C0003F, 0x3F, 0)
        assert table[0x8000001D, 2][0] == 0x143  # nor level 2
        assert table[0x8000001D, 3][0] == 0x163 | (vcpus - 1) << 14
        assert table[0x8000001D, 4] == (0, 0, 0, 0)

    def test_amd_core_count(self, vcpus, index):
        table = leaves(vcpus, index)
        assert table[0x80000008, 0][2] == BITS[vcpus] << 12 | vcpus - 1
        assert table[0x80000008, 0][0] == 0x3039
        assert table[0x8000001E, 0] == (index, index, 0, 0)


def test_no_performance_counters():
    assert leaves(2, 0)[0xA, 0] == (0, 0, 0, 0)


def test_tsc_frequency_leaf():
    table = leaves(1, 0)
    assert table[0x40000010, 0] == (TSC_KHZ, 1_000_000, 0, 0)
    assert table[0x40000000, 0] == (0x40000010, 0x4B4D564B, 0x564B4D56, 0x4D)


def test_no_frequency_leaf_if_it_is_not_known():
    assert (0x40000010, 0) not in leaves(1, 0, tsc_khz=0)


def test_no_deadline_timer_if_kvm_has_none():
    assert leaves(1, 0, deadline=False)[1, 0][2] == 0x76FA3223 & ~(1 << 24) | 1 << 31


def test_other_leaves_pass_through():
    table = leaves(3, 2)
    assert table[0, 0] == CANNED[0][3:]
    assert table[7, 0] == CANNED[6][3:]
    assert table[0x40000001, 0] == CANNED[12][3:]


def test_without_extended_topology_none_is_made_up():
    plain = [leaf for leaf in CANNED if leaf[0] not in (0xB, 0x1F)]
    functions = {leaf[0] for leaf in cpu.cpuid(plain, 0, 2, TSC_KHZ, True)}
    assert not functions & {0xB, 0x1F}


def test_xcr0_is_all_that_xsave_may_have():
    assert cpu.xcr0(CANNED) == 0
    leaf = [(0xD, 1, 1, 0xF, 0, 0x1800, 0), (0xD, 0, 1, 0x602E7, 0x240, 0x2B00, 1)]
    assert cpu.xcr0([*CANNED, *leaf]) == 0x1_000602E7


RESET = bytes(range(256)) + bytes(range(56))


class TestRegisters:
    def test_long_mode(self):
        sregs = cpu.long_mode(RESET)
        assert len(sregs) == 312
        code = struct.unpack_from("<QIH10B", sregs, 0)
        assert code == (0, 0xFFFFFFFF, 8, 0xB, 1, 0, 0, 1, 1, 1, 0, 0, 0)
        for at in range(24, 144, 24):
            data = struct.unpack_from("<QIH10B", sregs, at)
            assert data == (0, 0xFFFFFFFF, 0x10, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0)
        task = struct.unpack_from("<QIH10B", sregs, 144)
        assert task == (0, 0x67, 0x18, 0xB, 1, 0, 0, 0, 0, 0, 0, 0, 0)
        assert struct.unpack_from("<QH6xQH", sregs, 192) == (layout.GDT, 31, layout.IDT, 7)
        control = struct.unpack_from("<6Q", sregs, 224)
        assert control == (0x80000011, 0, layout.PML4, 0x20, 0, 0x500)
        assert sregs[272:280] == RESET[272:280]  # the APIC's base
        assert sregs[168:192] == RESET[168:192]  # LDT

    def test_protected_mode(self):
        sregs = cpu.protected_mode(RESET)
        code = struct.unpack_from("<QIH10B", sregs, 0)
        assert code == (0, 0xFFFFFFFF, 8, 0xB, 1, 0, 1, 1, 0, 1, 0, 0, 0)
        assert struct.unpack_from("<6Q", sregs, 224) == (0x11, 0, 0, 0, 0, 0)

    def test_general(self):
        values = struct.unpack("<18Q", cpu.regs(rip=1, rsi=2, r15=3))
        assert values == (0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 1, 2)

    def test_describe(self):
        text = cpu.describe(cpu.regs(rip=0x100000, rax=0xAA), cpu.long_mode(RESET))
        assert text.startswith("rax=0xaa rbx=0x0 ")
        assert " rip=0x100000 rflags=0x2 cr0=0x80000011 " in text
        assert text.endswith(" efer=0x500 cs=0x8")
