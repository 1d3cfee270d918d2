"""The core's VM without vCPUs: made, ended and freed."""

from __future__ import annotations

import os
import resource
import time

import pytest
from pyvmm._core import ffi, lib

from .virtq import Machine


@pytest.fixture
def descriptors():
    """Limit the descriptors that may be open to the next ``n``."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(n: int) -> None:
        taken = [os.dup(0) for _ in range(n + 1)]  # the table may have holes
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1], before[1]))
        for fd in taken:
            os.close(fd)

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("available", [0, 1, 2])
def test_out_of_descriptors_makes_no_vm_and_closes_nothing(descriptors, available):
    stdin = os.fstat(0)
    descriptors(available)
    assert lib.vm_new() == ffi.NULL
    assert os.path.samestat(os.fstat(0), stdin)


def test_three_descriptors_are_enough(descriptors):
    descriptors(3)
    core = lib.vm_new()
    assert core != ffi.NULL
    lib.vm_free(core)


def test_more_memory_than_there_are_slots():
    with Machine() as machine:
        results = [lib.vm_add_memory(machine.core, i << 32, 4096, ffi.NULL) for i in range(1, 5)]
    assert results[:3] == [0, 0, 0]
    assert results[3] < 0


def test_nothing_to_do_waits_for_the_time_out():
    with Machine() as machine:
        machine.rng()
        begin = time.monotonic()
        assert lib.vm_poll(machine.core, 30) == 0
        assert time.monotonic() - begin >= 0.03


def test_io_thread_serves_and_stops():
    with Machine() as machine:
        queue = machine.rng().start()[0]
        assert lib.vm_spawn(machine.core) == 0
        assert lib.vm_start(machine.core) == 0
        head = queue.add(into=[machine.room(16)])
        queue.kick()
        deadline = time.monotonic() + 60
        while not queue.used_idx and time.monotonic() < deadline:
            time.sleep(0.001)
        lib.vm_stop(machine.core)
        assert queue.take_all() == [(head, 16)]
        assert lib.vm_get_end(machine.core).reason == lib.VM_END_STOPPED
