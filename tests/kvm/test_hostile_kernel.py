"""Guests that attack the machine they run on, in ring 0, through a worker with all its walls.

The kernel is hostile.c. Each program has one way to end, and is followed by a run that is fine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm import Machine, Result
from pyvmm.doctor import why_not_linux
from pyvmm.errors import HostError

from .hostile import RANDOM, Host, MiB

CRASH = "guest crashed: triple fault or reboot, with no panic on its console"
LATE = "the guest did not start the program within 2 s"
CLOSED = "the guest did not start the program: it closed its connection"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm: not to be had")
    place = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))
        yield Host(place)


@pytest.fixture
def host(made: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield made
    assert list(tmp_path.iterdir()) == []
    made.fine()


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("program", RANDOM)
def test_random(host: Host, program: str, seed: int) -> None:
    count, vcpus = RANDOM[program]
    ended = host.run(program, seed, count, vcpus=vcpus)
    assert ended == f"guest ended early: {program} done"


@pytest.mark.parametrize(("program", "vcpus"), [("halt", 1), ("spin", 1), ("spin", 2)])
def test_nothing_happens(host: Host, program: str, vcpus: int) -> None:
    began = time.monotonic()
    assert host.run(program, vcpus=vcpus, boot_timeout=2) == LATE
    assert time.monotonic() - began < 60


def test_triple_fault(host: Host) -> None:
    assert host.run("triple") == CRASH


def test_reset_by_both_processors_at_once(host: Host) -> None:
    assert host.run("reset", vcpus=2) == "guest ended early: reset"


def test_a_jump_to_where_nothing_is(host: Host) -> None:
    """What KVM cannot emulate. Where it cannot emulate Linux's instructions either, says that."""
    if reason := why_not_linux():
        with pytest.raises(HostError) as failed:
            host.run("nowhere")
        assert str(failed.value) == reason
    else:
        ended = host.run("nowhere")
        assert isinstance(ended, str)
        assert ended.startswith("KVM exit 17 is not understood (detail 0x1, ")


def test_console_flood(host: Host) -> None:
    """More than the ring holds."""
    assert host.run("console", count=80) == "guest ended early: console done"


def test_console_flood_without_end(host: Host) -> None:
    assert host.run("console", count=1 << 31, boot_timeout=2) == LATE


def test_console_flood_that_nobody_reads(host: Host) -> None:
    """A live console's pipe is full: the processor waits there, and is got out of it."""
    reader, writer = os.pipe()
    try:
        assert host.run("console", count=1 << 31, boot_timeout=2, console=writer) == LATE
    finally:
        os.close(reader)
        os.close(writer)


def test_requests_that_take_minutes(host: Host) -> None:
    """A ring full of reads of all the disk: the machine ends between two of them."""
    began = time.monotonic()
    blocks = 1024 * MiB // 512 // 259
    assert host.run("greed", count=blocks, boot_timeout=2, disk="1G") == LATE
    assert time.monotonic() - began < 60


# ---- over vsock, to the host behind it ----


def test_the_only_connection_closed(host: Host) -> None:
    began = time.monotonic()
    assert host.run("unplug", count=1000) == CLOSED
    assert time.monotonic() - began < 60


def test_more_than_its_credit(host: Host) -> None:
    """A packet larger than all that we said we would take."""
    assert host.run("liar", count=(1 << 20) + 1) == CLOSED


@pytest.mark.parametrize("kind", [0, 2, 5, 8, 99])
def test_frames_before_hello(host: Host, kind: int) -> None:
    ended = host.run("babble", count=kind)
    assert ended == f"the guest's agent began with frame type {kind}, not HELLO"


def test_output_without_end(host: Host) -> None:
    """The program's time is over, the guest is told to kill it, and goes on."""
    began = time.monotonic()
    result = host.run("stdout", count=60000, timeout=2, max_output=MiB // 16)
    assert isinstance(result, Result)
    assert time.monotonic() - began < 60
    assert (result.exit_code, result.timed_out, result.truncated) == (124, True, ["stdout"])
    assert len(result.stdout) == MiB // 16


def test_output_file_that_nobody_asked_for(host: Host) -> None:
    ended = host.run("file", count=60000)
    assert ended == "the guest's agent sent output number 0: not asked for"


def test_output_file_without_end(host: Host) -> None:
    """Its length is the host's to say, and the guest was told."""
    ended = host.run("file", count=60000, outputs=["/out"], max_output=MiB)
    assert ended == "the guest's agent sent output number 0 without end"


def test_output_file_by_drops(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then is not enough to be waited for."""
    real = Machine._on_started

    def started(vm: Machine) -> None:
        vm.config.boot_timeout = 2  # now that it has booted
        real(vm)

    monkeypatch.setattr(Machine, "_on_started", started)
    ended = host.run("drip", outputs=["/out"])
    assert ended == "the guest did not send its outputs within 2 s"
