"""virtio-rng: how much it gives, and where."""

from __future__ import annotations

import pytest

from .virtq import Machine


@pytest.fixture
def queue():
    with Machine() as machine:
        yield machine.rng().start(num=8)[0]


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (64, 64), (256, 256), (4096, 256)])
def test_gives_at_most_256_bytes(queue, asked, given):
    buffer = queue.machine.room(asked)
    head = queue.add(into=[buffer])
    queue.kick_and_run()
    assert queue.take_all() == [(head, given)]
    assert queue.machine.read(*buffer)[given:] == b"\xee" * (asked - given)


def test_bytes_are_random(queue):
    seen = set()
    for _ in range(20):
        buffer = queue.machine.room(16)
        queue.add(into=[buffer])
        queue.kick_and_run()
        assert queue.take()
        seen.add(queue.machine.read(*buffer))
    assert len(seen) == 20


def test_readable_buffers_are_left_alone(queue):
    secret = queue.machine.put(b"do not touch")
    head = queue.add(out=[secret])
    queue.kick_and_run()
    assert queue.take_all() == [(head, 0)]
    assert queue.machine.read(*secret) == b"do not touch"


def test_no_config_space(queue):
    assert queue.device.config(0, 4) == b"\xff" * 4


def test_many_at_once_in_order_with_one_interrupt(queue):
    heads = [queue.add(into=[queue.machine.room(4)]) for _ in range(8)]
    queue.kick_and_run()
    assert queue.take_all() == [(head, 4) for head in heads]
    assert queue.device.interrupts() == 1
