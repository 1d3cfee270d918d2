"""A vCPU's first state: CPUID, MSRs, LAPIC, FPU and registers (Intel SDM 3A; AMD APM 2)."""

from __future__ import annotations

import struct

from . import layout
from .kvm import CAP_TSC_DEADLINE_TIMER, Kvm, Vcpu

Leaf = tuple[int, ...]  # function, index, flags, eax, ebx, ecx, edx

MSRS = [
    *((msr, 0) for msr in (0x174, 0x175, 0x176)),  # SYSENTER_CS, ESP, EIP
    *((msr, 0) for msr in (0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084)),  # STAR … SFMASK
    (0xC0000102, 0),  # KERNEL_GS_BASE
    (0x10, 0),  # TSC
    (0x1A0, 1),  # MISC_ENABLE: fast strings, or Intel guests give up REP MOVSB
    (0x2FF, 0x806),  # MTRRdefType: on, write-back
]

FLAG_INDEXED = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX
TSC_DEADLINE = 1 << 24
HYPERVISOR = 1 << 31
HTT = 1 << 28


def _core_bits(vcpus: int) -> int:
    return (vcpus - 1).bit_length()


def cpuid(
    supported: list[Leaf], index: int, vcpus: int, tsc_khz: int, deadline: bool
) -> list[Leaf]:
    """What vCPU ``index`` of ``vcpus`` shall see: KVM's leaves with our topology.

    One socket, one thread a core, APIC id = index. Without a PMU (leaf 0xa is empty): the guest's
    counters are not virtualised. Leaf 0x40000010 gives the TSC's frequency, so that no guest
    calibrates it (the VMware convention, which Linux reads under KVM).
    """
    last = 0x40000010 if tsc_khz else 0
    leaves = [_adjust(leaf, index, vcpus, deadline, last) for leaf in supported]
    topology = {0x0B, 0x1F} & {leaf[0] for leaf in leaves}
    leaves = [leaf for leaf in leaves if leaf[0] not in (0x0B, 0x1F, 0x40000010)]
    for function in sorted(topology):
        leaves += [
            (function, 0, FLAG_INDEXED, 0, 1, 1 << 8, index),
            (function, 1, FLAG_INDEXED, _core_bits(vcpus), vcpus, 2 << 8 | 1, index),
            (function, 2, FLAG_INDEXED, 0, 0, 2, index),
        ]
    if tsc_khz:
        # Its unit is kHz; EBX is the APIC timer's frequency, 1 GHz in KVM.
        leaves.append((0x40000010, 0, 0, tsc_khz, 1_000_000, 0, 0))
    return leaves


def _adjust(leaf: Leaf, index: int, vcpus: int, deadline: bool, last: int) -> Leaf:
    function, sub, flags, eax, ebx, ecx, edx = leaf
    if function == 1:
        ebx = ebx & 0xFFFF | vcpus << 16 | index << 24
        ecx |= HYPERVISOR | (TSC_DEADLINE if deadline else 0)
        edx = edx | HTT if vcpus > 1 else edx & ~HTT
    elif function == 4:
        eax = eax & 0x3FFF
        if eax & 0x1F:
            shared = vcpus - 1 if eax >> 5 & 7 >= 3 else 0
            eax |= min(shared, 0xFFF) << 14 | min((1 << _core_bits(vcpus)) - 1, 0x3F) << 26
    elif function == 0xA:
        eax = ebx = ecx = edx = 0
    elif function == 0x40000000:
        eax = max(eax, last)  # the highest leaf of the hypervisor's
    elif function == 0x80000008:
        ecx = ecx & ~0xF0FF | _core_bits(vcpus) << 12 | (vcpus - 1)
    elif function == 0x8000001D:  # as leaf 4: level 3 is everybody's, the others are each core's
        eax = eax & 0x3FFF | (vcpus - 1 if eax >> 5 & 7 >= 3 else 0) << 14
    elif function == 0x8000001E:
        eax, ebx, ecx = index, index, 0
    return function, sub, flags, eax, ebx, ecx, edx


def xcr0(supported: list[Leaf]) -> int:
    """Every state that XSAVE may have here: what Linux sets XCR0 to, 0 where there is no XSAVE.

    KVM computes leaf 0xd from the XCR0 that it knows of, and QEMU's software CPU lets a guest set
    its own without an exit: there, Linux would find sizes that do not agree and give up XSAVE.
    """
    found = (
        eax | edx << 32 for leaf, sub, _, eax, _, _, edx in supported if (leaf, sub) == (0xD, 0)
    )
    return next(found, 0)


def set_up(kvm: Kvm, vcpu: Vcpu, index: int, vcpus: int, supported: list[Leaf]) -> None:
    """Give a fresh vCPU everything but its entry point."""
    deadline = bool(kvm.extension(CAP_TSC_DEADLINE_TIMER))
    vcpu.set_cpuid(cpuid(supported, index, vcpus, vcpu.tsc_khz(), deadline))
    vcpu.set_msrs(MSRS)
    if features := xcr0(supported):
        vcpu.set_xcr0(features)
    vcpu.set_fpu(struct.pack("<128xH278xI4x", 0x37F, 0x1F80))  # FCW, MXCSR: their reset values
    lapic = bytearray(vcpu.get_lapic())
    for register, mode in ((0x350, 7), (0x360, 4)):  # LINT0: ExtINT, LINT1: NMI
        (value,) = struct.unpack_from("<I", lapic, register)
        struct.pack_into("<I", lapic, register, value & ~0x700 | mode << 8)
    vcpu.set_lapic(bytes(lapic))


def _segment(
    selector: int, kind: int, *, code64: bool = False, system: bool = False, limit: int = 0xFFFFFFFF
) -> bytes:
    """A flat ``kvm_segment``: base, limit, selector, type, then present, dpl, db, s, l, g, …"""
    return struct.pack(
        "<QIH10B", 0, limit, selector, kind, 1, 0, int(not code64 and not system),
        int(not system), int(code64), int(not system), 0, 0, 0,
    )  # fmt: skip


def _sregs(reset: bytes, *, code64: bool, cr0: int, cr3: int, cr4: int, efer: int) -> bytes:
    code = _segment(8, 0xB, code64=code64)
    data = _segment(0x10, 3)
    tss = _segment(0x18, 0xB, system=True, limit=0x67)
    tables = struct.pack("<QH6xQH6x", layout.GDT, 31, layout.IDT, 7)
    # The reset state has the local APIC's base and the boot processor's mark: keep them.
    apic_base = reset[272:280]
    control = struct.pack("<QQQQQQ", cr0, 0, cr3, cr4, 0, efer)
    ldt = reset[168:192]
    return code + data * 5 + tss + ldt + tables + control + apic_base + bytes(32)


def long_mode(reset: bytes) -> bytes:
    """Special registers for the 64-bit boot protocol: long mode, the identity map of boot.py."""
    return _sregs(reset, code64=True, cr0=0x80000011, cr3=layout.PML4, cr4=0x20, efer=0x500)


def protected_mode(reset: bytes) -> bytes:
    """Special registers for PVH: flat 32-bit, no paging (Xen, docs/misc/pvh.pandoc)."""
    return _sregs(reset, code64=False, cr0=0x11, cr3=0, cr4=0, efer=0)


def regs(**values: int) -> bytes:
    """General registers, zero but for those named; RFLAGS has its fixed bit."""
    return struct.pack("<18Q", *(values.get(name, 0) for name in REGISTERS[:-1]), 2)


REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *(f"r{n}" for n in range(8, 16)),
    *("rip", "rflags"),
)


def describe(general: bytes, special: bytes) -> str:
    """All registers that explain a crash, for people: ``rax=… … cr0=… efer=…``."""
    values = dict(zip(REGISTERS, struct.unpack("<18Q", general), strict=True))
    cr0, cr2, cr3, cr4, cr8, efer = struct.unpack_from("<6Q", special, 224)
    values |= {"cr0": cr0, "cr2": cr2, "cr3": cr3, "cr4": cr4, "cr8": cr8, "efer": efer}
    values["cs"] = struct.unpack_from("<H", special, 12)[0]
    return " ".join(f"{name}={value:#x}" for name, value in values.items())
