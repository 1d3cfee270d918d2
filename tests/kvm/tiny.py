"""Guests of a few instructions, assembled here, run by the C core on real KVM."""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from pyvmm._core import ffi, lib

from pyvmm import boot, cpu, layout
from pyvmm.counters import open_all
from pyvmm.kvm import CAP_BINARY_STATS_FD, Kvm
from pyvmm.memory import GuestMemory
from pyvmm.worker import Worker, check

CODE = 0x100000  # of protected and long mode
REAL_CODE = 0x1000
STACK = 0x8000
RING = 4096
PF_EXITING = 4  # proc_pid_stat(5), linux/sched.h

# ---- an assembler for what the tests need (Intel SDM 2) ----


def out(port: int, value: int) -> bytes:
    """out dx, al: the same bytes in every mode, but for the immediate's width in real mode."""
    return b"\xb0" + bytes([value]) + set_dx(port) + b"\xee"


def out16(port: int, value: int) -> bytes:
    """The same for real mode, where 16 bits are the operands' own width."""
    return b"\xb0" + bytes([value]) + b"\xba" + struct.pack("<H", port) + b"\xee"


def set_dx(port: int) -> bytes:
    return b"\x66\xba" + struct.pack("<H", port)


def load_rbx(address: int) -> bytes:
    return b"\x48\xbb" + struct.pack("<Q", address)


def store(address: int, value: int) -> bytes:
    """mov rbx, address; mov dword [rbx], value (long mode)."""
    return load_rbx(address) + b"\xc7\x03" + struct.pack("<I", value)


def fetch(address: int) -> bytes:
    """mov rbx, address; mov eax, [rbx] (long mode)."""
    return load_rbx(address) + b"\x8b\x03"


def until_word_is(address: int, value: int) -> bytes:
    """Poll a 16-bit word (long mode): cmp word [rbx], value; jne back."""
    loop = b"\x66\x81\x3b" + struct.pack("<H", value)
    return load_rbx(address) + loop + b"\x75" + struct.pack("b", -(len(loop) + 2))


def tasks() -> dict[str, Path]:
    """This process's threads in /proc by their names, but for the kernel's own and those that end:
    one that was joined may be there for a while.
    """
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # gone meanwhile
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
            if not int(rest.split()[6]) & PF_EXITING and not name.startswith("kvm-nx-"):
                found[f"{name} {task.name}"] = task
    return found


PRINT_EAX = set_dx(layout.PORT_SERIAL) + (b"\xee" + b"\xc1\xe8\x08") * 4  # out dx, al; shr eax, 8
RESET = out(layout.PORT_RESET, 0)
FOREVER = b"\xeb\xfe"
HALT = b"\xf4"


def text(message: bytes) -> bytes:
    return b"".join(out(layout.PORT_SERIAL, byte) for byte in message)


class Guest:
    """A VM with code at CODE, in long mode unless told otherwise."""

    def __init__(
        self,
        kvm_fd: int,
        code: bytes,
        *,
        mode: str = "long",
        size: int = 4 << 20,
        vcpus: int = 1,
        irqchip: bool = True,
        entry: int | None = None,
        events: Sequence[tuple[int, int]] = (),
        **placement: object,
    ) -> None:
        """Without ``irqchip`` every vCPU starts at once; with it all but the first wait for a
        start-up interrupt. ``entry``: where, if not at the code. ``events``: to count, as in
        counters.py. ``placement``: GuestMemory's.
        """
        kvm = Kvm(kvm_fd)
        self.fds: list[int] = []
        self.core = lib.vm_new()
        self.counters = open_all(events)
        for counter in self.counters:
            if not counter["errno"]:
                self.fds.append(counter["fd"])
                check(lib.vm_add_counter(self.core, counter["fd"]))
        self.vm = kvm.create_vm()
        self.fds.append(self.vm.fd)
        if irqchip:
            self.vm.set_tss(layout.IDENTITY_MAP, layout.TSS)
            self.vm.create_irqchip()
        self.memory = GuestMemory(size, **placement)
        self.memory.map_into(self.vm)
        for region in self.memory.regions:
            host = ffi.cast("void *", region.address)
            check(lib.vm_add_memory(self.core, region.gpa, region.size, host))
        boot.write_page_tables(self.memory)
        start = REAL_CODE if mode == "real" else CODE
        self.memory.write(start, code)
        self.ring_memory = ffi.new("uint8_t[]", 8 + RING)
        self.ring = ffi.cast("struct console_ring *", self.ring_memory)
        check(lib.vm_set_serial(self.core, -1, -1, self.ring, RING))
        supported = kvm.supported_cpuid()
        stats = bool(kvm.extension(CAP_BINARY_STATS_FD))
        self.vcpus, self.exits = [], []
        for index in range(vcpus):
            vcpu = self.vm.create_vcpu(index)
            self.fds.append(vcpu.fd)
            if irqchip:
                cpu.set_up(kvm, vcpu, index, vcpus, supported)
            else:
                vcpu.set_cpuid(cpu.cpuid(supported, index, vcpus, 0, False))
            self.exits.append(vcpu.exits_counter() if stats else (-1, 0))
            if self.exits[-1][0] >= 0:
                self.fds.append(self.exits[-1][0])
            if index == 0 or not irqchip:
                self._enter(vcpu, mode, start if entry is None else entry)
            check(lib.vm_add_vcpu(self.core, vcpu.fd, kvm.vcpu_mmap_size(), *self.exits[-1]))
            self.vcpus.append(vcpu)

    @staticmethod
    def _enter(vcpu, mode: str, start: int) -> None:
        reset = vcpu.get_sregs()
        if mode == "long":
            vcpu.set_sregs(cpu.long_mode(reset))
        elif mode == "protected":
            vcpu.set_sregs(cpu.protected_mode(reset))
        else:
            sregs = bytearray(reset)
            struct.pack_into("<QIH", sregs, 0, 0, 0xFFFF, 0)  # CS: base 0, not the reset vector's
            vcpu.set_sregs(bytes(sregs))
        vcpu.set_regs(cpu.regs(rip=start, rsp=STACK))

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exc: object) -> None:
        lib.vm_free(self.core)
        self.memory.regions.clear()  # a failed test keeps this object, and must not keep huge pages
        for fd in self.fds:
            os.close(fd)

    def eventfd(self) -> int:
        self.fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        return self.fds[-1]

    def wire(self, slot: int) -> int:
        """Connect a device as the worker does; returns its address."""
        address, gsi = layout.device(slot)
        kicks = []
        for queue in range(lib.vm_device_queues(self.core, slot)):
            kicks.append(self.eventfd())
            self.vm.ioeventfd(kicks[-1], address + 0x50, queue)
        irq = self.eventfd()
        self.vm.irqfd(irq, gsi)
        check(lib.vm_wire_device(self.core, slot, irq, kicks))
        return address

    def start(self) -> None:
        check(lib.vm_spawn(self.core))
        check(lib.vm_start(self.core))

    def until_printed(self, count: int) -> None:
        """Wait until so many bytes are on the console."""
        deadline = time.monotonic() + 60
        while self.ring.written < count and time.monotonic() < deadline:
            time.sleep(0.001)

    def wait(self, timeout: float = 60) -> None:
        """Wait for the guest's own end."""
        poll = select.poll()
        poll.register(lib.vm_done_fd(self.core), select.POLLIN)
        ended = poll.poll(timeout * 1000)
        lib.vm_stop(self.core)
        assert ended, f"no end in {timeout} s; {self.report()} console {self.console!r}"

    def run(self) -> dict:
        """Start, wait, report."""
        self.start()
        self.wait()
        return self.report()

    def report(self) -> dict:
        """What the worker would report of this VM, and when it started and ended."""
        worker = SimpleNamespace(
            core=self.core, vcpus=self.vcpus, memory=self.memory, exits=self.exits,
            counters=self.counters, times={}, _counted=Worker._counted,
        )  # fmt: skip
        worker._post_mortem = lambda vcpu: Worker._post_mortem(worker, vcpu)
        report = Worker.report(worker)
        start, end = lib.vm_start_ns(self.core), lib.vm_get_end(self.core).time_ns
        return report | {"start_ns": start, "end_ns": end}

    @property
    def console(self) -> bytes:
        written = self.ring.written
        assert written <= RING
        return bytes(ffi.buffer(self.ring_memory)[8 : 8 + written])
