"""The driver's side of virtio for tests: guest RAM, virtio-mmio registers, split virtqueues.

A Machine has the C core's devices but no vCPU: a test plays the driver and turns the io loop.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence

from pyvmm._core import ffi, lib

from pyvmm import layout

NEXT, WRITE, INDIRECT = 1, 2, 4
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
ISR_QUEUE, ISR_CONFIG = 1, 2
INDIRECT_DESC, EVENT_IDX, VERSION_1 = 1 << 28, 1 << 29, 1 << 32

MAGIC, VERSION, DEVICE_ID, VENDOR_ID = 0x000, 0x004, 0x008, 0x00C
DEVICE_FEATURES, DEVICE_FEATURES_SEL = 0x010, 0x014
DRIVER_FEATURES, DRIVER_FEATURES_SEL = 0x020, 0x024
QUEUE_SEL, QUEUE_NUM_MAX, QUEUE_NUM, QUEUE_READY, QUEUE_NOTIFY = 0x030, 0x034, 0x038, 0x044, 0x050
INTERRUPT_STATUS, INTERRUPT_ACK, STATUS = 0x060, 0x064, 0x070
QUEUE_DESC, QUEUE_AVAIL, QUEUE_USED = 0x080, 0x090, 0x0A0
SHM_LEN, SHM_BASE, CONFIG_GENERATION, CONFIG = 0x0B0, 0x0B8, 0x0FC, 0x100

Buffer = tuple[int, int]  # guest-physical address, length

SPIN_LIMIT = 10_000


def check(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return int(result)


class Machine:
    """A VM without KVM: RAM at address 0, devices, and the io loop turned by hand."""

    def __init__(self, size: int = 16 << 20) -> None:
        self.core = lib.vm_new()
        assert self.core != ffi.NULL
        self.size = size
        self.ram = mmap.mmap(-1, size)
        check(lib.vm_add_memory(self.core, 0, size, ffi.from_buffer(self.ram)))
        self.fds: list[int] = []
        self._next = 0x1000

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exc: object) -> None:
        lib.vm_free(self.core)
        for fd in self.fds:
            os.close(fd)

    # ---- memory ----

    def alloc(self, size: int, align: int = 16) -> int:
        """Guest-physical memory that nothing else in the test uses."""
        address = -(-self._next // align) * align
        self._next = address + size
        assert self._next <= self.size, "the test machine is out of RAM"
        return address

    def room(self, size: int) -> Buffer:
        """A buffer for the device to write to, filled with a pattern it would not write."""
        address = self.alloc(size, 1)
        self.write(address, b"\xee" * size)
        return address, size

    def put(self, data: bytes) -> Buffer:
        """A buffer that holds ``data``."""
        address = self.alloc(len(data), 1)
        self.write(address, data)
        return address, len(data)

    def read(self, address: int, size: int) -> bytes:
        return self.ram[address : address + size]

    def write(self, address: int, data: bytes) -> None:
        self.ram[address : address + len(data)] = data

    # ---- devices ----

    def rng(self) -> Device:
        return Device(self, check(lib.vm_add_rng(self.core)))

    def blk(
        self, base: int, overlay: int, size: int, *, read_only: bool = False, serial: bytes = b"id"
    ) -> Device:
        slot = lib.vm_add_blk(self.core, base, overlay, size, read_only, serial)
        return Device(self, check(slot))

    def vsock(self, cid: int, buffer: int = 1 << 20) -> Device:
        return Device(self, check(lib.vm_add_vsock(self.core, cid, buffer)))

    def eventfd(self) -> int:
        self.fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        return self.fds[-1]

    def run(self) -> int:
        """Turn the loop until nothing is left to do; returns how many events there were."""
        for rounds in range(SPIN_LIMIT):
            if check(lib.vm_poll(self.core, 0)) == 0:
                return rounds
        raise AssertionError("the io loop spins")


class Device:
    """A virtio-mmio device as its driver sees it."""

    def __init__(self, machine: Machine, slot: int) -> None:
        self.machine = machine
        self.slot = slot
        self.address, _ = layout.device(slot)
        self.irq = machine.eventfd()
        queues = check(lib.vm_device_queues(machine.core, slot))
        self.kicks = [machine.eventfd() for _ in range(queues)]
        check(lib.vm_wire_device(machine.core, slot, self.irq, self.kicks))

    def access(self, offset: int, size: int, value: bytes | None = None) -> bytes:
        """A load of ``size`` bytes, or the store of ``value``."""
        data = ffi.new("uint8_t[]", value or bytes(size))
        write = value is not None
        lib.vm_mmio(self.machine.core, self.address + offset, data, size, write)
        return bytes(ffi.buffer(data, size))

    def read(self, register: int) -> int:
        return int.from_bytes(self.access(register, 4), "little")

    def write(self, register: int, value: int) -> None:
        self.access(register, 4, struct.pack("<I", value))

    def write64(self, register: int, value: int) -> None:
        self.write(register, value & 0xFFFFFFFF)
        self.write(register + 4, value >> 32)

    def config(self, offset: int, size: int) -> bytes:
        return self.access(CONFIG + offset, size)

    @property
    def status(self) -> int:
        return self.read(STATUS)

    def interrupts(self) -> int:
        """How many interrupts there were since the last call."""
        try:
            return os.eventfd_read(self.irq)
        except BlockingIOError:
            return 0

    def offered(self) -> int:
        features = 0
        for half in (0, 1):
            self.write(DEVICE_FEATURES_SEL, half)
            features |= self.read(DEVICE_FEATURES) << 32 * half
        return features

    def accept(self, features: int) -> bool:
        """Reset the device and negotiate; False if FEATURES_OK does not stick."""
        self.write(STATUS, 0)
        self.write(STATUS, ACKNOWLEDGE | DRIVER)
        for half in (0, 1):
            self.write(DRIVER_FEATURES_SEL, half)
            self.write(DRIVER_FEATURES, features >> 32 * half & 0xFFFFFFFF)
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        return bool(self.status & FEATURES_OK)

    def go(self) -> None:
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def start(self, features: int = VERSION_1, num: int = 256) -> list[Queue]:
        """All of initialisation; returns the queues."""
        assert self.accept(features)
        queues = [Queue(self, i, num, features) for i in range(len(self.kicks))]
        self.go()
        self.machine.run()
        return queues

    def set_queue(self, index: int, num: int, desc: int, avail: int, used: int) -> None:
        """Name a queue's rings and make it ready."""
        self.write(QUEUE_SEL, index)
        self.write(QUEUE_NUM, num)
        self.write64(QUEUE_DESC, desc)
        self.write64(QUEUE_AVAIL, avail)
        self.write64(QUEUE_USED, used)
        self.write(QUEUE_READY, 1)


class Queue:
    """A split virtqueue, the driver's side (Virtio 1.2 §2.7)."""

    def __init__(self, device: Device, index: int, num: int, features: int = VERSION_1) -> None:
        machine = device.machine
        self.device, self.machine, self.index, self.num = device, machine, index, num
        self.event_idx = bool(features & EVENT_IDX)
        self.desc = machine.alloc(16 * num, 16)
        self.avail = machine.alloc(6 + 2 * num, 2)
        self.used = machine.alloc(6 + 8 * num, 4)
        self.free = list(range(num))
        self.chains: dict[int, list[int]] = {}
        self.avail_idx = self.seen = 0
        device.set_queue(index, num, self.desc, self.avail, self.used)

    # ---- raw access ----

    def set_desc(self, i: int, address: int, length: int, flags: int = 0, next_: int = 0) -> None:
        entry = struct.pack("<QIHH", address, length, flags, next_)
        self.machine.write(self.desc + 16 * i, entry)

    def set_avail_idx(self, value: int) -> None:
        self.machine.write(self.avail + 2, struct.pack("<H", value & 0xFFFF))

    def set_used_event(self, value: int) -> None:
        self.machine.write(self.avail + 4 + 2 * self.num, struct.pack("<H", value & 0xFFFF))

    def set_avail_flags(self, value: int) -> None:
        self.machine.write(self.avail, struct.pack("<H", value))

    @property
    def used_idx(self) -> int:
        return self._u16(self.used + 2)

    @property
    def avail_event(self) -> int:
        return self._u16(self.used + 4 + 8 * self.num)

    def _u16(self, address: int) -> int:
        (value,) = struct.unpack("<H", self.machine.read(address, 2))
        return int(value)

    def publish(self, head: int) -> None:
        """Make the chain that starts at ``head`` available."""
        slot = self.avail + 4 + 2 * (self.avail_idx % self.num)
        self.machine.write(slot, struct.pack("<H", head))
        self.avail_idx = self.avail_idx + 1 & 0xFFFF
        self.set_avail_idx(self.avail_idx)

    # ---- as a driver does it ----

    def add(self, out: Sequence[Buffer] = (), into: Sequence[Buffer] = ()) -> int:
        """Make a chain available; returns its head. ``out`` is for the device to read."""
        buffers = [(b, 0) for b in out] + [(b, WRITE) for b in into]
        chain = [self.free.pop(0) for _ in buffers]
        for at, ((address, length), flags) in enumerate(buffers):
            last = at + 1 == len(chain)
            link = (flags, 0) if last else (flags | NEXT, chain[at + 1])
            self.set_desc(chain[at], address, length, *link)
        self.chains[chain[0]] = chain
        self.publish(chain[0])
        return chain[0]

    def add_indirect(self, out: Sequence[Buffer] = (), into: Sequence[Buffer] = ()) -> int:
        """The same through an indirect table."""
        buffers = [(b, 0) for b in out] + [(b, WRITE) for b in into]
        table = self.machine.alloc(16 * len(buffers), 16)
        for at, ((address, length), flags) in enumerate(buffers):
            link = (flags, 0) if at + 1 == len(buffers) else (flags | NEXT, at + 1)
            self.machine.write(table + 16 * at, struct.pack("<QIHH", address, length, *link))
        head = self.free.pop(0)
        self.set_desc(head, table, 16 * len(buffers), INDIRECT)
        self.chains[head] = [head]
        self.publish(head)
        return head

    def kick(self) -> None:
        os.eventfd_write(self.device.kicks[self.index], 1)

    def kick_and_run(self) -> int:
        self.kick()
        return self.machine.run()

    def take(self) -> tuple[int, int] | None:
        """The next used element as ``(head, length)``; None if there is none."""
        if self.seen == self.used_idx:
            return None
        slot = self.used + 4 + 8 * (self.seen % self.num)
        head, length = struct.unpack("<II", self.machine.read(slot, 8))
        self.seen = self.seen + 1 & 0xFFFF
        self.free += self.chains.pop(head, [])
        return head, length

    def take_all(self) -> list[tuple[int, int]]:
        taken = []
        while (element := self.take()) is not None:
            taken.append(element)
        return taken
