"""virtio-blk: requests, the copy-on-write overlay, and what a hostile driver asks for."""

from __future__ import annotations

import hashlib
import os
import random
import struct
from itertools import pairwise

import pytest
from pyvmm._core import lib

from .virtq import INDIRECT_DESC, NEEDS_RESET, VERSION_1, Buffer, Machine, Queue

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
F_SEG_MAX, F_RO, F_BLK_SIZE, F_FLUSH = 1 << 2, 1 << 5, 1 << 6, 1 << 9
F_DISCARD, F_WRITE_ZEROES = 1 << 13, 1 << 14

SECTOR, CLUSTER = 512, 4096
ODD_SIZE = 16 * CLUSTER + 5 * SECTOR  # the last cluster is there in part
UNMAP = 1


def header(kind: int, sector: int) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


class Disk:
    """A device over files in a directory, and a driver that does one request at a time."""

    def __init__(
        self,
        machine: Machine,
        directory,
        *,
        size: int = ODD_SIZE,
        content: bytes | None = None,
        overlay: bool = True,
        read_only: bool = False,
        serial: bytes = b"pyvmm-root",
    ) -> None:
        self.machine, self.size = machine, size
        self.content = pattern(size) if content is None else content
        self.base_path = directory / "base"
        self.base_path.write_bytes(self.content)
        mode = os.O_RDONLY if overlay or read_only else os.O_RDWR
        self.base = os.open(self.base_path, mode)
        self.overlay = -1
        if overlay:
            self.overlay = os.open(directory / "overlay", os.O_RDWR | os.O_CREAT)
            os.ftruncate(self.overlay, size)
        machine.fds += [fd for fd in (self.base, self.overlay) if fd >= 0]
        self.device = machine.blk(self.base, self.overlay, size, read_only=read_only, serial=serial)
        self.queue: Queue = self.device.start(VERSION_1 | INDIRECT_DESC)[0]
        self.header = machine.alloc(16)
        self.data = machine.alloc(1 << 20, CLUSTER)
        self.status = machine.alloc(1)

    def submit(self, out: list[Buffer], into: list[Buffer]) -> int:
        """Do a chain; returns the length that the device says it has written."""
        head = self.queue.add(out, into)
        self.queue.kick_and_run()
        element = self.queue.take()
        assert element is not None, "the request was not used"
        assert element[0] == head
        return element[1]

    def request(
        self, kind: int, sector: int, out: bytes = b"", room: int = 0
    ) -> tuple[int, bytes, int]:
        """Returns ``(status, data, used length)``."""
        self.machine.write(self.header, header(kind, sector))
        self.machine.write(self.data, out or b"\xee" * room)
        self.machine.write(self.status, b"\xee")
        outs = [(self.header, 16)] + ([(self.data, len(out))] if out else [])
        ins = ([(self.data, room)] if room else []) + [(self.status, 1)]
        used = self.submit(outs, ins)
        return self.machine.read(self.status, 1)[0], self.machine.read(self.data, room), used

    def read(self, sector: int, size: int) -> bytes:
        status, data, used = self.request(IN, sector, room=size)
        assert (status, used) == (OK, size + 1)
        return data

    def write(self, sector: int, data: bytes) -> None:
        assert self.request(OUT, sector, data) == (OK, b"", 1)

    def zero(self, kind: int, sector: int, sectors: int, flags: int = 0) -> int:
        return self.request(kind, 0, struct.pack("<QII", sector, sectors, flags))[0]

    def all(self) -> bytes:
        return self.read(0, self.size)

    def base_is_untouched(self) -> bool:
        on_disk = hashlib.sha256(self.base_path.read_bytes()).digest()
        return on_disk == hashlib.sha256(self.content).digest()


@pytest.fixture
def machine():
    with Machine() as machine:
        yield machine


@pytest.fixture
def make(machine, tmp_path):
    """Make the machine's disk."""
    return lambda **options: Disk(machine, tmp_path, **options)


@pytest.fixture
def disk(make):
    return make()


class TestConfig:
    def test_fields(self, disk):
        config = disk.device.config
        assert struct.unpack("<Q", config(0, 8)) == (ODD_SIZE // SECTOR,)
        assert struct.unpack("<I", config(12, 4)) == (128,)  # seg_max
        assert struct.unpack("<I", config(20, 4)) == (SECTOR,)  # blk_size
        assert struct.unpack("<H", config(34, 2)) == (1,)  # num_queues
        discard = struct.unpack("<5I", b"".join(config(at, 4) for at in range(36, 56, 4)))
        assert discard == (1 << 22, 1, CLUSTER // SECTOR, 1 << 22, 1)
        assert config(56, 1) == b"\1"  # write_zeroes_may_unmap
        assert config(60, 4) == b"\xff" * 4

    def test_features(self, disk):
        own = disk.device.offered() & 0xFFFFFF
        assert own == F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_DISCARD | F_WRITE_ZEROES

    def test_features_of_a_read_only_disk(self, make):
        own = make(overlay=False, read_only=True).device.offered() & 0xFFFFFF
        assert own == F_SEG_MAX | F_BLK_SIZE | F_RO

    @pytest.mark.parametrize("size", [0, 511, 513, 2**63, 2**64 - 512])
    def test_impossible_sizes(self, machine, size):
        with pytest.raises(OSError, match="Invalid argument"):
            machine.blk(0, -1, size)


class TestRequests:
    def test_read_whole_disk(self, disk):
        assert disk.all() == disk.content

    def test_write_then_read(self, disk):
        data = pattern(3 * SECTOR, 2)
        disk.write(7, data)
        assert disk.read(7, len(data)) == data
        assert disk.base_is_untouched()

    def test_nothing_asked(self, disk):
        assert disk.request(IN, 3) == (OK, b"", 1)
        assert disk.request(OUT, 3) == (OK, b"", 1)
        assert disk.all() == disk.content

    def test_flush(self, disk):
        assert disk.request(FLUSH, 0) == (OK, b"", 1)

    def test_get_id(self, disk):
        assert disk.request(GET_ID, 0, room=20) == (OK, b"pyvmm-root".ljust(20, b"\0"), 21)

    def test_get_id_into_less_and_more_room(self, disk):
        assert disk.request(GET_ID, 0, room=5) == (OK, b"pyvmm", 6)
        status, data, used = disk.request(GET_ID, 0, room=32)
        assert (status, used) == (OK, 21)
        assert data == b"pyvmm-root".ljust(20, b"\0") + b"\xee" * 12

    def test_get_id_of_20_characters_and_more(self, make):
        disk = make(serial=b"0123456789abcdefghijk")
        assert disk.request(GET_ID, 0, room=20) == (OK, b"0123456789abcdefghij", 21)

    @pytest.mark.parametrize("kind", [2, 3, 5, 7, 10, 14, 16, 0x80000000, 0xFFFFFFFF])
    def test_unsupported_type(self, disk, kind):
        assert disk.request(kind, 0, room=SECTOR) == (UNSUPP, b"\xee" * SECTOR, 1)

    @pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
    def test_zeroing(self, disk, kind):
        assert disk.zero(kind, 3, 20) == OK
        expected = bytearray(disk.content)
        expected[3 * SECTOR : 23 * SECTOR] = bytes(20 * SECTOR)
        assert disk.all() == bytes(expected)
        assert disk.base_is_untouched()

    def test_write_zeroes_may_unmap_but_a_discard_does_by_nature(self, disk):
        """§5.2.6.2: the unmap flag in a discard is UNSUPP, so are unknown flags in both."""
        assert disk.zero(WRITE_ZEROES, 0, 8, UNMAP) == OK
        assert disk.zero(DISCARD, 0, 8, UNMAP) == UNSUPP
        assert disk.zero(WRITE_ZEROES, 0, 8, 2) == UNSUPP
        assert disk.zero(DISCARD, 0, 8, 2) == UNSUPP

    @pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
    def test_zeroing_bounds(self, disk, kind):
        sectors = ODD_SIZE // SECTOR
        assert disk.zero(kind, 0, (1 << 22) + 1) == UNSUPP
        assert disk.zero(kind, sectors - 1, 2) == IOERR
        assert disk.zero(kind, sectors, 1) == IOERR
        assert disk.zero(kind, 2**64 - 1, 1) == IOERR
        assert disk.zero(kind, 2**55, 1) == IOERR
        assert disk.zero(kind, 5, 0) == OK
        assert disk.all() == disk.content
        assert disk.zero(kind, 0, sectors) == OK
        assert disk.all() == bytes(ODD_SIZE)

    @pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
    @pytest.mark.parametrize("length", [0, 8, 15, 17, 32])
    def test_zeroing_takes_one_range_exactly(self, disk, kind, length):
        """max_discard_seg is 1: what is beyond it must not be answered as done."""
        ranges = struct.pack("<QII", 0, 8, 0) * 2
        assert disk.request(kind, 0, ranges[:length])[0] == IOERR
        assert disk.all() == disk.content


class TestBounds:
    @pytest.mark.parametrize(
        "sector",
        [ODD_SIZE // SECTOR, 2**32, 2**55 - 1, 2**55, 2**55 + 1, 2**63, 2**64 - 1],
    )
    def test_sector_out_of_range(self, disk, sector):
        assert disk.request(IN, sector, room=SECTOR) == (IOERR, b"\xee" * SECTOR, 1)
        assert disk.request(OUT, sector, pattern(SECTOR))[0] == IOERR
        assert disk.all() == disk.content

    def test_over_the_end(self, disk):
        last = ODD_SIZE // SECTOR - 1
        assert disk.request(IN, last, room=2 * SECTOR) == (IOERR, b"\xee" * 2 * SECTOR, 1)
        assert disk.request(OUT, last, pattern(2 * SECTOR))[0] == IOERR
        assert disk.read(last, SECTOR) == disk.content[-SECTOR:]
        assert os.fstat(disk.overlay).st_size == ODD_SIZE

    @pytest.mark.parametrize("size", [1, 511, 513, 1023])
    def test_data_not_a_multiple_of_512(self, disk, size):
        assert disk.request(IN, 0, room=size) == (IOERR, b"\xee" * size, 1)
        assert disk.request(OUT, 0, pattern(size))[0] == IOERR
        assert disk.all() == disk.content


class TestChainLayout:
    """§2.7.4.2: a device may not assume how the driver splits a request over descriptors."""

    def test_header_split_bytewise(self, disk):
        machine = disk.machine
        outs = [machine.put(bytes([b])) for b in header(IN, 2)]
        data, status = machine.room(SECTOR), machine.room(1)
        assert disk.submit(outs, [data, status]) == SECTOR + 1
        assert machine.read(*status) == bytes([OK])
        assert machine.read(*data) == disk.content[2 * SECTOR : 3 * SECTOR]

    def test_status_in_the_data_buffer(self, disk):
        machine = disk.machine
        both = machine.room(SECTOR + 1)
        assert disk.submit([machine.put(header(IN, 2))], [both]) == SECTOR + 1
        assert machine.read(*both) == disk.content[2 * SECTOR : 3 * SECTOR] + bytes([OK])

    def test_header_and_data_in_one_buffer(self, disk):
        machine = disk.machine
        data, status = pattern(SECTOR, 3), machine.room(1)
        assert disk.submit([machine.put(header(OUT, 2) + data)], [status]) == 1
        assert machine.read(*status) == bytes([OK])
        assert disk.read(2, SECTOR) == data

    def test_data_split_oddly(self, disk):
        machine = disk.machine
        data = pattern(2 * SECTOR, 4)
        cuts = [0, 1, 100, 511, 513, 1000, 1024]
        outs = [machine.put(data[a:b]) for a, b in pairwise(cuts)]
        status = machine.room(1)
        assert disk.submit([machine.put(header(OUT, 7)), *outs], [status]) == 1
        ins = [machine.room(b - a) for a, b in pairwise(cuts)]
        assert disk.submit([machine.put(header(IN, 7))], [*ins, status]) == 1025
        assert b"".join(machine.read(*b) for b in ins) == data

    def test_seg_max_segments_through_an_indirect_table(self, disk):
        machine = disk.machine
        data, status = pattern(128 * SECTOR, 5), machine.room(1)
        outs = [machine.put(data[i : i + SECTOR]) for i in range(0, len(data), SECTOR)]
        disk.queue.add_indirect([machine.put(header(OUT, 1)), *outs], [status])
        disk.queue.kick_and_run()
        assert len(disk.queue.take_all()) == 1
        assert machine.read(*status) == bytes([OK])
        assert disk.read(1, len(data)) == data

    def test_short_header(self, disk):
        machine = disk.machine
        status = machine.room(1)
        assert disk.submit([machine.put(header(IN, 0)[:15])], [status]) == 1
        assert machine.read(*status) == bytes([IOERR])

    def test_no_header(self, disk):
        status = disk.machine.room(1)
        assert disk.submit([], [status]) == 1
        assert disk.machine.read(*status) == bytes([IOERR])

    def test_no_room_for_a_status_breaks_the_device(self, disk):
        disk.queue.add(out=[disk.machine.put(header(FLUSH, 0))])
        disk.queue.kick_and_run()
        assert disk.queue.used_idx == 0
        assert disk.device.status & NEEDS_RESET

    def test_empty_last_buffer_breaks_the_device(self, disk):
        disk.queue.add(out=[disk.machine.put(header(FLUSH, 0))], into=[disk.machine.room(0)])
        disk.queue.kick_and_run()
        assert disk.queue.used_idx == 0
        assert disk.device.status & NEEDS_RESET

    def test_many_requests_in_one_kick(self, disk):
        machine = disk.machine
        requests = []
        for sector in range(50):
            data, status = machine.room(SECTOR), machine.room(1)
            disk.queue.add([machine.put(header(IN, sector))], [data, status])
            requests.append((sector, data, status))
        disk.queue.kick_and_run()
        assert len(disk.queue.take_all()) == 50
        for sector, data, status in requests:
            assert machine.read(*status) == bytes([OK])
            assert machine.read(*data) == disk.content[sector * SECTOR :][:SECTOR]

    def test_a_machine_that_has_ended_does_no_more_of_them(self, disk):
        disk.machine.write(disk.header, header(IN, 0))
        for _ in range(4):
            disk.queue.add([(disk.header, 16)], [(disk.data, SECTOR), (disk.status, 1)])
        lib.vm_stop(disk.machine.core)
        disk.queue.kick_and_run()
        assert disk.queue.take_all() == []
        assert disk.device.status & NEEDS_RESET


class TestOverlay:
    @pytest.mark.parametrize("sector", [0, 1, 7, 8, 15, 127, 128, 129, 130, 132])
    @pytest.mark.parametrize("sectors", [1, 2, 8, 9, 17])
    def test_write_of_partial_clusters(self, disk, sector, sectors):
        size = min(sectors * SECTOR, ODD_SIZE - sector * SECTOR)
        data = pattern(size, 6)
        disk.write(sector, data)
        expected = bytearray(disk.content)
        expected[sector * SECTOR : sector * SECTOR + size] = data
        assert disk.all() == bytes(expected)
        assert disk.base_is_untouched()

    def test_read_over_runs_of_base_and_overlay(self, disk):
        expected = bytearray(disk.content)
        for cluster in (1, 2, 5, 9, 10, 11, 15):
            data = pattern(CLUSTER, cluster)
            disk.write(cluster * 8, data)
            expected[cluster * CLUSTER : (cluster + 1) * CLUSTER] = data
        for first in range(0, 40, 3):
            for sectors in (1, 9, 33, 80):
                at = first * SECTOR
                assert disk.read(first, sectors * SECTOR) == expected[at : at + sectors * SECTOR]

    def test_last_partial_cluster(self, disk):
        last = ODD_SIZE // SECTOR - 1
        disk.write(last, b"\xaa" * SECTOR)
        assert disk.read(last - 4, 5 * SECTOR) == disk.content[-5 * SECTOR : -SECTOR] + (
            b"\xaa" * SECTOR
        )
        assert os.fstat(disk.overlay).st_size == ODD_SIZE

    def test_second_write_to_a_cluster_keeps_the_first(self, disk):
        disk.write(8, b"\1" * SECTOR)
        disk.write(10, b"\2" * SECTOR)
        middle = disk.content[9 * SECTOR : 10 * SECTOR]
        assert disk.read(8, 3 * SECTOR) == b"\1" * SECTOR + middle + b"\2" * SECTOR

    def test_whole_clusters_are_written_without_copying_up(self, disk):
        disk.write(8, pattern(CLUSTER, 7))
        assert os.pread(disk.overlay, CLUSTER, 0) == bytes(CLUSTER)
        assert os.pread(disk.overlay, CLUSTER, 2 * CLUSTER) == bytes(CLUSTER)

    def test_discarded_clusters_do_not_show_the_base_again(self, disk):
        disk.write(8, pattern(CLUSTER, 8))
        assert disk.zero(DISCARD, 8, 16) == OK
        assert disk.read(8, 2 * CLUSTER) == bytes(2 * CLUSTER)

    def test_base_shorter_than_the_disk_reads_as_zeros(self, make):
        content = pattern(CLUSTER + 100, 9)
        disk = make(content=content)
        assert disk.all() == content.ljust(ODD_SIZE, b"\0")
        disk.write(10, b"\xaa" * SECTOR)
        expected = bytearray(content.ljust(ODD_SIZE, b"\0"))
        expected[10 * SECTOR : 11 * SECTOR] = b"\xaa" * SECTOR
        assert disk.all() == bytes(expected)
        assert disk.base_is_untouched()

    def test_empty_base(self, make):
        assert make(content=b"").all() == bytes(ODD_SIZE)

    @pytest.mark.parametrize("size", [SECTOR, 8 * CLUSTER, 8 * CLUSTER + SECTOR, 64 * CLUSTER])
    def test_sizes_around_the_bitmap_bytes(self, make, size):
        disk = make(size=size)
        disk.write(size // SECTOR - 1, b"\xaa" * SECTOR)
        assert disk.all() == disk.content[:-SECTOR] + b"\xaa" * SECTOR

    def test_reset_keeps_what_was_written(self, disk):
        disk.write(3, b"\xaa" * SECTOR)
        disk.queue = disk.device.start()[0]
        assert disk.read(3, SECTOR) == b"\xaa" * SECTOR

    def test_failing_overlay_is_an_io_error_and_leaves_the_disk_as_it_was(self, make, machine):
        disk = make()
        full = os.open("/dev/full", os.O_RDWR)
        os.dup2(full, disk.overlay)
        os.close(full)
        assert disk.request(OUT, 8, pattern(CLUSTER, 10))[0] == IOERR
        assert disk.request(OUT, 1, pattern(SECTOR, 10))[0] == IOERR
        assert disk.all() == disk.content


class TestWithoutOverlay:
    def test_read_only_disk(self, make):
        disk = make(overlay=False, read_only=True)
        assert disk.all() == disk.content
        assert disk.request(OUT, 0, pattern(SECTOR))[0] == IOERR
        assert disk.zero(DISCARD, 0, 8) == IOERR
        assert disk.zero(WRITE_ZEROES, 0, 8) == IOERR
        assert disk.request(FLUSH, 0)[0] == OK
        assert disk.base_is_untouched()

    def test_writable_base(self, make):
        disk = make(overlay=False)
        disk.write(3, b"\xaa" * SECTOR)
        assert disk.zero(WRITE_ZEROES, 8, 1) == OK
        assert disk.request(FLUSH, 0)[0] == OK
        expected = bytearray(disk.content)
        expected[3 * SECTOR : 4 * SECTOR] = b"\xaa" * SECTOR
        expected[8 * SECTOR : 9 * SECTOR] = bytes(SECTOR)
        assert disk.base_path.read_bytes() == bytes(expected)
        assert disk.all() == bytes(expected)


def split(rng: random.Random, address: int, size: int) -> list[Buffer]:
    """Cut a buffer into 1 to 4 at random."""
    cuts = sorted({0, size, *(rng.randrange(size + 1) for _ in range(rng.randrange(4)))})
    return [(address + a, b - a) for a, b in pairwise(cuts)]


@pytest.mark.parametrize("seed", range(4))
def test_random_requests_do_what_a_bytearray_does(make, seed):
    rng = random.Random(seed)
    size = 40 * CLUSTER + 3 * SECTOR
    disk = make(size=size, content=pattern(30 * CLUSTER + 77, seed))
    model = bytearray(disk.content.ljust(size, b"\0"))
    sectors = size // SECTOR
    for _ in range(3000):
        (kind,) = rng.choices((IN, OUT, DISCARD, WRITE_ZEROES), (5, 8, 1, 1))
        first = rng.randrange(sectors)
        count = rng.randint(1, min(rng.choice((1, 3, 8, 40)), sectors - first))
        at, length = first * SECTOR, count * SECTOR
        if kind in (DISCARD, WRITE_ZEROES):
            assert disk.zero(kind, first, count) == OK
            model[at : at + length] = bytes(length)
            continue
        disk.machine.write(disk.header, header(kind, first))
        buffers = split(rng, disk.data, length)
        if kind == OUT:
            data = rng.randbytes(length)
            disk.machine.write(disk.data, data)
            used = disk.submit([*split(rng, disk.header, 16), *buffers], [(disk.status, 1)])
            assert used == 1
            model[at : at + length] = data
        else:
            used = disk.submit(split(rng, disk.header, 16), [*buffers, (disk.status, 1)])
            assert used == length + 1
            assert disk.machine.read(disk.data, length) == model[at : at + length]
        assert disk.machine.read(disk.status, 1) == bytes([OK])
    assert disk.all() == bytes(model)
    assert disk.base_is_untouched()
