"""The virtio-mmio transport and the split virtqueue, through the simplest device: rng."""

from __future__ import annotations

import struct

import pytest
from pyvmm._core import ffi, lib

from pyvmm import layout

from . import virtq
from .virtq import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    EVENT_IDX,
    FEATURES_OK,
    INDIRECT,
    INDIRECT_DESC,
    NEEDS_RESET,
    NEXT,
    VERSION_1,
    WRITE,
    Machine,
    Queue,
)

COMMON = VERSION_1 | EVENT_IDX | INDIRECT_DESC


@pytest.fixture
def machine():
    with Machine() as machine:
        yield machine


@pytest.fixture
def rng(machine):
    return machine.rng()


@pytest.fixture
def queue(rng):
    return rng.start(num=8)[0]


def served(queue: Queue, length: int = 16) -> bool:
    """Whether the device fills one buffer more, exactly."""
    buffer = queue.machine.room(length)
    head = queue.add(into=[buffer])
    queue.kick_and_run()
    return queue.take_all() == [(head, length)]


def broken(device: virtq.Device) -> bool:
    """Whether the device asks for a reset and has said so by a configuration interrupt."""
    return bool(device.status & NEEDS_RESET and device.read(virtq.INTERRUPT_STATUS) & 2)


class TestIdentification:
    def test_registers(self, rng):
        assert rng.read(virtq.MAGIC) == int.from_bytes(b"virt", "little")
        assert rng.read(virtq.VERSION) == 2
        assert rng.read(virtq.DEVICE_ID) == 4

    def test_device_ids(self, machine, tmp_path):
        with open(tmp_path / "disk", "wb+") as f:
            f.truncate(4096)
            ids = [
                machine.blk(f.fileno(), -1, 4096).read(virtq.DEVICE_ID),
                machine.vsock(3).read(virtq.DEVICE_ID),
            ]
        assert ids == [2, 19]

    def test_shared_memory_that_does_not_exist_has_length_and_base_minus_one(self, rng):
        registers = (virtq.SHM_LEN, virtq.SHM_LEN + 4, virtq.SHM_BASE, virtq.SHM_BASE + 4)
        assert [rng.read(r) for r in registers] == [0xFFFFFFFF] * 4

    def test_config_generation_is_constant(self, rng):
        assert rng.read(virtq.CONFIG_GENERATION) == 0

    def test_unwired_slot_reads_as_ones_and_ignores_writes(self, machine, rng):
        data = ffi.new("uint8_t[4]", b"\1\2\3\4")
        for address in (0, layout.MMIO_BASE - 4, layout.device(1)[0], 2**64 - 4):
            lib.vm_mmio(machine.core, address, data, 4, True)
            lib.vm_mmio(machine.core, address, data, 4, False)
            assert bytes(ffi.buffer(data)) == b"\xff" * 4

    def test_no_ninth_device(self, machine):
        for slot in range(8):
            assert lib.vm_add_rng(machine.core) == slot
        assert lib.vm_add_rng(machine.core) < 0
        assert lib.vm_add_vsock(machine.core, 3, 1 << 20) < 0


class TestAccess:
    @pytest.mark.parametrize("size", [1, 2, 8])
    def test_only_32_bits_wide_writes(self, rng, size):
        # Reads are memory reads: a guest has the page mapped.
        assert rng.access(virtq.MAGIC, size) == b"virt\2\0\0\0"[:size]
        rng.access(virtq.STATUS, size, b"\1".ljust(size, b"\0"))
        assert rng.status == 0

    @pytest.mark.parametrize("offset", [1, 2, 3])
    def test_only_aligned_writes(self, rng, offset):
        assert rng.access(virtq.STATUS + offset, 4) == b"\0" * 4
        rng.access(virtq.STATUS + offset, 4, b"\1\1\1\1")
        assert rng.status == 0

    def test_reserved_registers_read_zero_and_ignore_writes(self, rng):
        reserved = (0x018, 0x028, 0x02C, 0x03C, 0x040, 0x048, 0x054, 0x068, 0x074, 0x0A8, 0x0F8)
        for register in reserved:
            rng.write(register, 0xFFFFFFFF)
            assert rng.read(register) == 0, hex(register)

    def test_write_only_registers_read_zero(self, rng):
        for register in (virtq.QUEUE_NUM, virtq.QUEUE_DESC, virtq.STATUS, virtq.DRIVER_FEATURES):
            assert rng.read(register) == 0

    def test_read_only_registers_ignore_writes(self, rng):
        for register in (virtq.MAGIC, virtq.VERSION, virtq.DEVICE_ID, virtq.QUEUE_NUM_MAX):
            before = rng.read(register)
            rng.write(register, ~before & 0xFFFFFFFF)
            assert rng.read(register) == before

    def test_config_space_at_any_width_inside_it_only(self, machine):
        vsock = machine.vsock(0x1122334455667788)
        whole = struct.pack("<Q", 0x1122334455667788)
        for size in (1, 2, 4, 8):
            assert vsock.config(0, size) == whole[:size]
        assert vsock.config(7, 1) == whole[7:]
        assert vsock.config(7, 2) == whole[7:] + b"\xff"
        assert vsock.config(8, 4) == b"\xff" * 4
        assert vsock.config(0xEFC, 8) == b"\xff" * 8  # over the end of the page

    def test_config_space_is_read_only(self, machine):
        vsock = machine.vsock(3)
        vsock.access(virtq.CONFIG, 8, b"\xff" * 8)
        assert vsock.config(0, 8) == struct.pack("<Q", 3)


class TestFeatures:
    def test_offer(self, rng):
        assert rng.offered() == COMMON

    def test_no_bits_beyond_64(self, rng):
        for select in (2, 3, 0xFFFFFFFF):
            rng.write(virtq.DEVICE_FEATURES_SEL, select)
            assert rng.read(virtq.DEVICE_FEATURES) == 0

    @pytest.mark.parametrize("features", [VERSION_1, COMMON, VERSION_1 | EVENT_IDX])
    def test_subsets_with_version_1_are_accepted(self, rng, features):
        assert rng.accept(features)

    def test_legacy_driver_is_refused(self, rng):
        assert not rng.accept(EVENT_IDX)

    @pytest.mark.parametrize("bit", [0, 24, 33, 34, 40, 63])
    def test_what_was_not_offered_is_refused(self, rng, bit):
        assert not rng.accept(VERSION_1 | 1 << bit)

    def test_selectors_beyond_64_bits_change_nothing(self, rng):
        rng.write(virtq.DRIVER_FEATURES_SEL, 2)
        rng.write(virtq.DRIVER_FEATURES, 0xFFFFFFFF)
        assert rng.accept(VERSION_1)
        rng.write(virtq.DRIVER_FEATURES_SEL, 2)
        rng.write(virtq.DRIVER_FEATURES, 0xFFFFFFFF)
        assert rng.status & FEATURES_OK

    def test_fixed_after_features_ok(self, rng):
        assert rng.accept(VERSION_1)
        rng.write(virtq.DRIVER_FEATURES_SEL, 0)
        rng.write(virtq.DRIVER_FEATURES, 0xFFFFFFFF)
        rng.go()
        assert rng.status & FEATURES_OK


class TestStatus:
    def test_steps(self, rng):
        assert rng.status == 0
        for value in (ACKNOWLEDGE, ACKNOWLEDGE | DRIVER):
            rng.write(virtq.STATUS, value)
            assert rng.status == value

    def test_driver_ok_without_features_ok_serves_nothing(self, machine, rng):
        rng.write(virtq.STATUS, ACKNOWLEDGE | DRIVER)
        queue = Queue(rng, 0, 8)
        rng.write(virtq.STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK)
        assert not served(queue)

    def test_refused_features_then_driver_ok_serves_nothing(self, machine, rng):
        assert not rng.accept(VERSION_1 | 1)
        queue = Queue(rng, 0, 8)
        rng.go()
        assert rng.status == ACKNOWLEDGE | DRIVER | DRIVER_OK
        assert not served(queue)

    def test_needs_reset_stays_until_reset(self, rng, queue):
        queue.set_avail_idx(9)
        queue.kick_and_run()
        rng.go()
        assert rng.status == ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | NEEDS_RESET
        rng.write(virtq.STATUS, 0)
        assert rng.status == 0
        assert served(rng.start()[0])

    def test_driver_cannot_set_bits_above_the_byte(self, rng):
        rng.write(virtq.STATUS, 0xFFFFFF00 | ACKNOWLEDGE)
        assert rng.status == ACKNOWLEDGE

    def test_kick_before_driver_ok_is_served_after_it(self, machine, rng):
        assert rng.accept(VERSION_1)
        queue = Queue(rng, 0, 8)
        head = queue.add(into=[machine.room(16)])
        queue.kick_and_run()
        assert queue.take() is None
        rng.go()
        machine.run()
        assert queue.take_all() == [(head, 16)]
        assert rng.interrupts() == 1


class TestReset:
    def test_forgets_queues_and_features(self, rng, queue):
        assert served(queue)
        rng.write(virtq.STATUS, 0)
        assert rng.read(virtq.QUEUE_READY) == 0
        assert rng.read(virtq.INTERRUPT_STATUS) == 0
        rng.write(virtq.STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        assert not rng.status & FEATURES_OK

    def test_with_a_request_in_flight(self, machine, rng, queue):
        buffer = machine.room(16)
        queue.add(into=[buffer])
        queue.kick()
        rng.write(virtq.STATUS, 0)
        machine.run()
        assert machine.read(*buffer) == b"\xee" * 16
        assert queue.used_idx == 0
        assert rng.interrupts() == 0

    def test_starts_over_at_ring_index_zero(self, rng, queue):
        for _ in range(5):
            assert served(queue)
        again = rng.start(num=8)[0]
        assert served(again)


class TestQueueSetup:
    RINGS = (0x10000, 0x20000, 0x30000)

    @pytest.fixture
    def set_up(self, rng):
        """Try a queue; returns whether it became ready."""
        assert rng.accept(VERSION_1)

        def set_up(num=8, desc=self.RINGS[0], avail=self.RINGS[1], used=self.RINGS[2]):
            rng.set_queue(0, num, desc, avail, used)
            return bool(rng.read(virtq.QUEUE_READY))

        return set_up

    @pytest.mark.parametrize("num", [1, 2, 128, 256])
    def test_powers_of_two_up_to_the_maximum(self, rng, set_up, num):
        assert rng.read(virtq.QUEUE_NUM_MAX) == 256
        assert set_up(num=num)

    @pytest.mark.parametrize("num", [0, 3, 255, 257, 512, 65536, 65536 + 8, 0xFFFFFFFF])
    def test_other_sizes_break_the_device(self, rng, set_up, num):
        assert not set_up(num=num)
        assert broken(rng)

    @pytest.mark.parametrize(
        "rings",
        [
            {"desc": 0x10008},
            {"avail": 0x20001},
            {"used": 0x30002},
        ],
    )
    def test_misaligned(self, rng, set_up, rings):
        assert not set_up(**rings)
        assert broken(rng)

    @pytest.mark.parametrize("ring", ["desc", "avail", "used"])
    @pytest.mark.parametrize(
        "address",
        [
            pytest.param(16 << 20, id="just behind RAM"),
            pytest.param((16 << 20) - 16, id="over the end of RAM"),
            pytest.param(layout.MMIO_BASE, id="in the MMIO hole"),
            pytest.param(1 << 32, id="high"),
            pytest.param(2**64 - 16, id="wraps"),
            pytest.param(2**63, id="sign"),
        ],
    )
    def test_outside_ram(self, rng, set_up, ring, address):
        assert not set_up(**{ring: address})
        assert broken(rng)

    def test_at_the_very_end_of_ram(self, set_up):
        size = 16 << 20
        assert set_up(desc=size - 8 * 16, avail=0x20000, used=0x30000)
        assert set_up(desc=0x10000, avail=size - (6 + 16), used=0x30000)

    def test_across_two_regions_is_outside(self, machine, rng, set_up):
        more = ffi.new("uint8_t[]", 1 << 16)
        virtq.check(lib.vm_add_memory(machine.core, machine.size, 1 << 16, more))
        assert not set_up(desc=machine.size - 16)
        assert set_up(desc=machine.size)

    def test_ready_queue_keeps_its_rings(self, machine, rng, queue):
        rng.write64(virtq.QUEUE_DESC, 0)
        rng.write(virtq.QUEUE_NUM, 1)
        assert served(queue)

    def test_queue_that_does_not_exist(self, rng):
        for select in (1, 2, 3, 0xFFFFFFFF):
            rng.set_queue(select, 8, *self.RINGS)
            assert rng.read(virtq.QUEUE_NUM_MAX) == 0
            assert rng.read(virtq.QUEUE_READY) == 0
        assert rng.status == 0

    def test_unready_queue_is_not_served(self, rng, queue):
        rng.write(virtq.QUEUE_SEL, 0)
        rng.write(virtq.QUEUE_READY, 0)
        assert rng.read(virtq.QUEUE_READY) == 0
        assert not served(queue)


class TestInterrupts:
    def test_status_and_acknowledge(self, rng, queue):
        assert served(queue)
        assert rng.interrupts() == 1
        assert rng.read(virtq.INTERRUPT_STATUS) == 1
        rng.write(virtq.INTERRUPT_ACK, 2)
        assert rng.read(virtq.INTERRUPT_STATUS) == 1
        rng.write(virtq.INTERRUPT_ACK, 1)
        assert rng.read(virtq.INTERRUPT_STATUS) == 0

    def test_acknowledge_of_bits_that_are_not_there(self, rng, queue):
        rng.write(virtq.INTERRUPT_ACK, 0xFFFFFFFF)
        assert rng.read(virtq.INTERRUPT_STATUS) == 0

    def test_none_for_an_empty_kick(self, rng, queue):
        queue.kick_and_run()
        assert rng.interrupts() == 0

    def test_none_when_the_driver_asks_for_none(self, rng, queue):
        queue.set_avail_flags(1)
        assert served(queue)
        assert rng.interrupts() == 0
        queue.set_avail_flags(0)
        assert served(queue)
        assert rng.interrupts() == 1


class TestEventIdx:
    @pytest.fixture
    def queue(self, rng):
        return rng.start(VERSION_1 | EVENT_IDX, num=8)[0]

    def test_interrupt_only_when_used_event_is_passed(self, rng, queue):
        queue.set_used_event(2)  # "when element 2 is used"
        interrupts = []
        for _ in range(4):
            assert served(queue)
            interrupts.append(rng.interrupts())
        assert interrupts == [0, 0, 1, 0]

    def test_a_batch_that_passes_it_interrupts_once(self, machine, rng, queue):
        queue.set_used_event(1)
        for _ in range(4):
            queue.add(into=[machine.room(1)])
        queue.kick_and_run()
        assert len(queue.take_all()) == 4
        assert rng.interrupts() == 1

    def test_no_notice_of_the_flag(self, rng, queue):
        queue.set_avail_flags(1)
        assert served(queue)
        assert rng.interrupts() == 1

    def test_avail_event_asks_for_the_next_chain(self, queue):
        for n in range(1, 12):
            assert served(queue)
            assert queue.avail_event == n

    def test_wrap_at_65536(self, machine, rng):
        queue = rng.start(VERSION_1 | EVENT_IDX, num=256)[0]
        buffer = machine.room(1)
        queue.set_used_event(65535 + 2)  # element 1 of the second lap
        for _ in range(65536 // 256):
            for _ in range(256):
                queue.add(into=[buffer])
            queue.kick_and_run()
            assert len(queue.take_all()) == 256
        assert queue.used_idx == 0
        assert queue.avail_event == 0
        # used_event == 1 was passed once in the first lap as well.
        assert rng.interrupts() == 1
        assert served(queue)
        assert rng.interrupts() == 0
        assert served(queue)
        assert rng.interrupts() == 1


class TestChains:
    def test_over_several_descriptors(self, machine, queue):
        buffers = [machine.room(n) for n in (1, 7, 0, 24)]
        guard = machine.room(16)
        head = queue.add(into=buffers)
        queue.kick_and_run()
        assert queue.take_all() == [(head, 32)]
        assert b"".join(machine.read(*b) for b in buffers) != b"\xee" * 32
        assert machine.read(*guard) == b"\xee" * 16

    def test_as_long_as_the_queue(self, machine, queue):
        head = queue.add(into=[machine.room(1) for _ in range(8)])
        queue.kick_and_run()
        assert queue.take_all() == [(head, 8)]

    def test_readable_before_writable(self, machine, queue):
        head = queue.add(out=[machine.put(b"ignored")], into=[machine.room(4)])
        queue.kick_and_run()
        assert queue.take_all() == [(head, 4)]

    def test_memory_of_no_length_at_the_end_of_ram(self, machine, queue):
        head = queue.add(into=[(machine.size, 0), machine.room(4)])
        queue.kick_and_run()
        assert queue.take_all() == [(head, 4)]

    def bad(self, queue: Queue, head: int = 0) -> bool:
        """Publish a chain; whether the device breaks without using it."""
        queue.publish(head)
        queue.kick_and_run()
        return broken(queue.device) and queue.used_idx == 0

    def test_readable_after_writable(self, machine, queue):
        queue.set_desc(0, *machine.room(4), WRITE | NEXT, 1)
        queue.set_desc(1, *machine.put(b"data"))
        assert self.bad(queue)

    @pytest.mark.parametrize(
        "buffer",
        [
            (16 << 20, 1),
            ((16 << 20) - 1, 2),
            (0, 0xFFFFFFFF),
            (layout.MMIO_BASE, 4),
            (2**64 - 1, 2),
            (2**64 - 4, 4),
            (16 << 20 | 1, 0),
        ],
    )
    def test_buffer_outside_ram(self, queue, buffer):
        queue.set_desc(0, *buffer, WRITE)
        assert self.bad(queue)

    def test_loop(self, machine, queue):
        room = machine.room(4)
        queue.set_desc(0, *room, WRITE | NEXT, 1)
        queue.set_desc(1, *room, WRITE | NEXT, 0)
        assert self.bad(queue)

    def test_loop_to_itself(self, machine, queue):
        queue.set_desc(0, *machine.room(4), WRITE | NEXT, 0)
        assert self.bad(queue)

    @pytest.mark.parametrize("next_", [8, 255, 65535])
    def test_next_out_of_range(self, machine, queue, next_):
        queue.set_desc(0, *machine.room(4), WRITE | NEXT, next_)
        assert self.bad(queue)

    @pytest.mark.parametrize("head", [8, 65535])
    def test_head_out_of_range(self, queue, head):
        assert self.bad(queue, head)

    @pytest.mark.parametrize("jump", [9, 32768, 65535])
    def test_avail_index_jumps(self, rng, queue, jump):
        queue.set_avail_idx(jump)
        queue.kick_and_run()
        assert broken(rng)
        assert queue.used_idx == 0

    def test_avail_index_goes_back(self, rng, queue):
        assert served(queue)
        queue.set_avail_idx(0)
        queue.kick_and_run()
        assert broken(rng)

    def test_a_good_chain_before_a_bad_one_is_used(self, machine, rng, queue):
        queue.add(into=[machine.room(4)])
        queue.set_desc(7, 2**40, 4, WRITE)
        queue.publish(7)
        queue.kick_and_run()
        assert queue.take_all() == [(0, 4)]
        assert broken(rng)

    def test_broken_device_serves_nothing_more(self, machine, rng, queue):
        queue.set_desc(0, 2**40, 4, WRITE)
        assert self.bad(queue)
        queue.set_desc(0, *machine.room(4), WRITE)
        queue.kick_and_run()
        assert queue.used_idx == 0

    def test_descriptors_may_lie_over_the_rings(self, machine, rng, queue):
        """The device writes over its own rings: what follows is anything but a crash."""
        queue.set_desc(0, queue.desc, 16 * 8, WRITE)
        for _ in range(8):
            queue.publish(0)
        queue.kick_and_run()
        assert queue.used_idx >= 1 or broken(rng)


class TestIndirect:
    @pytest.fixture
    def queue(self, rng):
        return rng.start(VERSION_1 | INDIRECT_DESC, num=8)[0]

    def test_longer_than_the_queue(self, machine, queue):
        head = queue.add_indirect(into=[machine.room(1) for _ in range(200)])
        queue.kick_and_run()
        assert queue.take_all() == [(head, 200)]

    def test_after_direct_descriptors(self, machine, queue):
        """§2.7.5.3.1 allows it: direct ones first, then one that is indirect."""
        table = machine.alloc(16)
        machine.write(table, struct.pack("<QIHH", *machine.room(4), WRITE, 0))
        queue.set_desc(0, *machine.room(4), WRITE | NEXT, 1)
        queue.set_desc(1, table, 16, INDIRECT)
        queue.publish(0)
        queue.kick_and_run()
        assert queue.take_all() == [(0, 8)]

    def test_write_flag_of_the_indirect_one_is_ignored(self, machine, queue):
        table = machine.alloc(16)
        machine.write(table, struct.pack("<QIHH", *machine.room(4), WRITE, 0))
        queue.set_desc(0, table, 16, INDIRECT | WRITE)
        queue.publish(0)
        queue.kick_and_run()
        assert queue.take_all() == [(0, 4)]

    def bad_table(self, queue: Queue, entries: bytes, length: int, flags: int = INDIRECT) -> bool:
        table = queue.machine.alloc(max(len(entries), 16))
        queue.machine.write(table, entries)
        return self.bad_descriptor(queue, table, length, flags)

    def bad_descriptor(
        self, queue: Queue, address: int, length: int, flags: int = INDIRECT
    ) -> bool:
        queue.set_desc(0, address, length, flags, 1)
        queue.publish(0)
        queue.kick_and_run()
        return broken(queue.device) and queue.used_idx == 0

    def test_nested(self, machine, queue):
        inner = machine.alloc(16)
        machine.write(inner, struct.pack("<QIHH", *machine.room(4), WRITE, 0))
        assert self.bad_table(queue, struct.pack("<QIHH", inner, 16, INDIRECT, 0), 16)

    def test_with_next(self, machine, queue):
        entry = struct.pack("<QIHH", *machine.room(4), WRITE, 0)
        queue.set_desc(1, *machine.room(4), WRITE)
        assert self.bad_table(queue, entry, 16, INDIRECT | NEXT)

    @pytest.mark.parametrize("length", [0, 1, 15, 17, 261 * 16, 65536 * 16])
    def test_table_lengths(self, machine, queue, length):
        entry = struct.pack("<QIHH", *machine.room(4), WRITE, 0)
        assert self.bad_table(queue, entry, length)

    def test_misaligned_table(self, machine, queue):
        entry = struct.pack("<QIHH", *machine.room(4), WRITE, 0)
        table = machine.alloc(32) + 1
        machine.write(table, entry)
        assert self.bad_descriptor(queue, table, 16)

    @pytest.mark.parametrize("address", [16 << 20, (16 << 20) - 8, 2**64 - 16])
    def test_table_outside_ram(self, queue, address):
        assert self.bad_descriptor(queue, address, 16)

    def test_next_out_of_the_table(self, machine, queue):
        entry = struct.pack("<QIHH", *machine.room(4), WRITE | NEXT, 1)
        assert self.bad_table(queue, entry, 16)

    def test_loop(self, machine, queue):
        entry = struct.pack("<QIHH", *machine.room(4), WRITE | NEXT, 0)
        assert self.bad_table(queue, entry * 2, 32)

    def test_more_buffers_than_fit_with_the_direct_ones_before(self, machine, queue):
        room = machine.room(1)
        for i in range(7):
            queue.set_desc(i, *room, WRITE | NEXT, i + 1)
        table = machine.alloc(16 * 256)
        for i in range(256):
            link = (WRITE | NEXT, i + 1) if i < 255 else (WRITE, 0)
            machine.write(table + 16 * i, struct.pack("<QIHH", *room, *link))
        queue.set_desc(7, table, 16 * 256, INDIRECT)
        queue.publish(0)
        queue.kick_and_run()
        assert broken(queue.device)
        assert queue.used_idx == 0
