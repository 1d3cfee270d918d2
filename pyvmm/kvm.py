"""/dev/kvm by ioctl (Linux, Documentation/virt/kvm/api.rst §4). One method for one request.

Structures are packed bytes; what they mean to a PC stands in cpu.py and boot.py.
"""

from __future__ import annotations

import os
import struct
from fcntl import ioctl

from ._core import ffi, lib
from .errors import HostError

GET_API_VERSION = 0xAE00
CREATE_VM = 0xAE01
CHECK_EXTENSION = 0xAE03
GET_VCPU_MMAP_SIZE = 0xAE04
GET_SUPPORTED_CPUID = 0xC008AE05
CREATE_VCPU = 0xAE41
SET_USER_MEMORY_REGION = 0x4020AE46
SET_TSS_ADDR = 0xAE47
SET_IDENTITY_MAP_ADDR = 0x4008AE48
CREATE_IRQCHIP = 0xAE60
GET_IRQCHIP = 0xC208AE62
SET_IRQCHIP = 0x8208AE63
REGISTER_COALESCED_MMIO = 0x4010AE67
IRQFD = 0x4020AE76
CREATE_PIT2 = 0x4040AE77
IOEVENTFD = 0x4040AE79
GET_REGS = 0x8090AE81
SET_REGS = 0x4090AE82
GET_SREGS = 0x8138AE83
SET_SREGS = 0x4138AE84
TRANSLATE = 0xC018AE85
SET_MSRS = 0x4008AE89
SET_FPU = 0x41A0AE8D
GET_LAPIC = 0x8400AE8E
SET_LAPIC = 0x4400AE8F
SET_CPUID2 = 0x4008AE90
GET_TSC_KHZ = 0xAEA3
SET_XCRS = 0x4188AEA7
GET_STATS_FD = 0xAECE

CAPABILITIES = {
    "IRQCHIP": 0,
    "USER_MEMORY": 3,
    "SET_TSS_ADDR": 4,
    "EXT_CPUID": 7,
    "MP_STATE": 14,
    "IRQFD": 32,
    "PIT2": 33,
    "IOEVENTFD": 36,
    "READONLY_MEM": 81,
    "IMMEDIATE_EXIT": 136,
}
CAP_COALESCED_MMIO = 15
CAP_MAX_VCPUS = 66
CAP_TSC_DEADLINE_TIMER = 72
CAP_BINARY_STATS_FD = 203

IOEVENTFD_DATAMATCH = 1
MEM_READONLY = 2
PIT_SPEAKER_DUMMY = 1


class Kvm:
    """The system: an open /dev/kvm."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def check(self) -> None:
        """Raise HostError unless this KVM has all that pyvmm needs."""
        version = ioctl(self.fd, GET_API_VERSION, 0)
        if version != 12:
            raise HostError(f"/dev/kvm speaks KVM API version {version}, pyvmm needs 12")
        missing = [name for name, cap in CAPABILITIES.items() if not self.extension(cap)]
        if missing:
            raise HostError(f"KVM here lacks KVM_CAP_{', KVM_CAP_'.join(missing)}: use a newer one")

    def extension(self, cap: int) -> int:
        return int(ioctl(self.fd, CHECK_EXTENSION, cap))

    def vcpu_mmap_size(self) -> int:
        return int(ioctl(self.fd, GET_VCPU_MMAP_SIZE, 0))

    def supported_cpuid(self) -> list[tuple[int, ...]]:
        """Return ``(function, index, flags, eax, ebx, ecx, edx)`` for each leaf."""
        room = 256
        buf = bytearray(8 + 40 * room)
        struct.pack_into("<I", buf, 0, room)
        ioctl(self.fd, GET_SUPPORTED_CPUID, buf)
        (count,) = struct.unpack_from("<I", buf)
        return [struct.unpack_from("<7I", buf, 8 + 40 * i) for i in range(count)]

    def create_vm(self) -> Vm:
        return Vm(ioctl(self.fd, CREATE_VM, 0))


class Vm:
    """A virtual machine."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def create_irqchip(self) -> None:
        ioctl(self.fd, CREATE_IRQCHIP, 0)

    def hide_pic(self) -> None:
        """Leave both 8259s masked, and the first waiting for its second initialization word.

        Linux writes the mask of the first and reads it back: what it reads is not what it wrote,
        so to it there is no PIC (and no ExtINT pin to look for), which saves 400 exits. A guest
        that initializes the PIC first finds it working.
        """
        for chip, init_state in ((0, 1), (1, 0)):
            state = bytearray(520)  # struct kvm_irqchip: chip_id, pad, struct kvm_pic_state
            struct.pack_into("<I", state, 0, chip)
            ioctl(self.fd, GET_IRQCHIP, state)
            state[8 + 2] = 0xFF  # imr
            state[8 + 9] = init_state
            ioctl(self.fd, SET_IRQCHIP, bytes(state))

    def create_pit(self) -> None:
        ioctl(self.fd, CREATE_PIT2, struct.pack("<I60x", PIT_SPEAKER_DUMMY))

    def set_tss(self, identity_map: int, tss: int) -> None:
        ioctl(self.fd, SET_IDENTITY_MAP_ADDR, struct.pack("<Q", identity_map))
        # By the core: the address does not fit fcntl.ioctl's int.
        if lib.ioctl(self.fd, SET_TSS_ADDR, ffi.cast("unsigned long", tss)) < 0:
            raise OSError(ffi.errno, os.strerror(ffi.errno))

    def set_memory(self, slot: int, gpa: int, size: int, address: int, flags: int = 0) -> None:
        region = struct.pack("<IIQQQ", slot, flags, gpa, size, address)
        ioctl(self.fd, SET_USER_MEMORY_REGION, region)

    def ioeventfd(self, fd: int, address: int, value: int | None) -> None:
        """Signal ``fd`` when the guest writes 32 bits (None: any) to ``address``."""
        flags = 0 if value is None else IOEVENTFD_DATAMATCH
        ioctl(self.fd, IOEVENTFD, struct.pack("<QQIiI36x", value or 0, address, 4, fd, flags))

    def coalesce(self, address: int, size: int) -> None:
        """Keep the guest's writes there in the ring until another exit to user space."""
        ioctl(self.fd, REGISTER_COALESCED_MMIO, struct.pack("<QII", address, size, 0))

    def irqfd(self, fd: int, gsi: int) -> None:
        ioctl(self.fd, IRQFD, struct.pack("<III20x", fd, gsi, 0))

    def create_vcpu(self, index: int) -> Vcpu:
        return Vcpu(ioctl(self.fd, CREATE_VCPU, index))


class Vcpu:
    """A virtual CPU. The C core runs it; here it gets its first state, and its last is read."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def _get(self, request: int) -> bytes:
        buf = bytearray(request >> 16 & 0x3FFF)
        ioctl(self.fd, request, buf)
        return bytes(buf)

    def get_regs(self) -> bytes:
        return self._get(GET_REGS)

    def set_regs(self, regs: bytes) -> None:
        ioctl(self.fd, SET_REGS, regs)

    def get_sregs(self) -> bytes:
        return self._get(GET_SREGS)

    def set_sregs(self, sregs: bytes) -> None:
        ioctl(self.fd, SET_SREGS, sregs)

    def set_fpu(self, fpu: bytes) -> None:
        ioctl(self.fd, SET_FPU, fpu)

    def set_xcr0(self, features: int) -> None:
        # struct kvm_xcrs: nr_xcrs, flags, then each: number, reserved, value
        ioctl(self.fd, SET_XCRS, struct.pack("<IIIIQ368x", 1, 0, 0, 0, features))

    def get_lapic(self) -> bytes:
        return self._get(GET_LAPIC)

    def set_lapic(self, lapic: bytes) -> None:
        ioctl(self.fd, SET_LAPIC, lapic)

    def set_msrs(self, msrs: list[tuple[int, int]]) -> None:
        body = b"".join(struct.pack("<IIQ", index, 0, value) for index, value in msrs)
        done = ioctl(self.fd, SET_MSRS, bytearray(struct.pack("<II", len(msrs), 0) + body))
        if done != len(msrs):
            raise HostError(f"KVM refuses to set MSR {msrs[done][0]:#x}")

    def set_cpuid(self, leaves: list[tuple[int, ...]]) -> None:
        body = b"".join(struct.pack("<7I12x", *leaf) for leaf in leaves)
        # A bytearray: fcntl.ioctl takes immutable arguments of at most 1024 bytes.
        ioctl(self.fd, SET_CPUID2, bytearray(struct.pack("<II", len(leaves), 0) + body))

    def tsc_khz(self) -> int:
        """The guest's TSC frequency in kHz; 0 if KVM does not know."""
        try:
            return int(ioctl(self.fd, GET_TSC_KHZ, 0))
        except OSError:
            return 0

    def translate(self, address: int) -> int | None:
        """The physical address behind a linear one; None if nothing is mapped there."""
        buf = bytearray(struct.pack("<Q16x", address))
        ioctl(self.fd, TRANSLATE, buf)
        physical, valid = struct.unpack_from("<QB", buf, 8)
        return physical if valid else None

    def exits_counter(self) -> tuple[int, int]:
        """``(fd, offset)`` of the kernel's own 64-bit count of this vCPU's exits, or ``(-1, 0)``.

        The layout is api.rst §4.133, KVM_GET_STATS_FD.
        """
        try:
            fd = ioctl(self.fd, GET_STATS_FD, 0)
        except OSError:
            return -1, 0
        _, name_size, count, _, desc_at, data_at = struct.unpack("<6I", os.pread(fd, 24, 0))
        size = 16 + name_size
        descriptors = os.pread(fd, size * count, desc_at)
        for at in range(0, size * count, size):
            if descriptors[at + 16 : at + size].split(b"\0", 1)[0] == b"exits":
                (offset,) = struct.unpack_from("<I", descriptors, at + 8)
                return fd, data_at + offset
        os.close(fd)
        return -1, 0
