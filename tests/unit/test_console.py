"""The live console: a pipe between a worker that may be hostile and whatever the caller has."""

from __future__ import annotations

import os
import select
import time
from fcntl import fcntl

import pytest

from pyvmm.console import PATIENCE, PIPE, Live

F_GETPIPE_SZ = 1032


def test_what_comes_is_passed_on(tmp_path) -> None:
    with (tmp_path / "console").open("w+b") as file:
        live = Live(file.fileno())
        os.write(live.theirs, b"one ")
        live.copy()
        os.write(live.theirs, b"two")
        os.close(live.theirs)
        live.copy()
        assert (tmp_path / "console").read_bytes() == b"one two"
        assert live.fd >= 0
        live.copy()  # the end of file
        assert live.fd == -1
        live.copy()


def fill(live: Live) -> int:
    total = 0
    while True:
        try:
            total += os.write(live.theirs, b"x" * 4096)
        except BlockingIOError:
            return total


def test_one_call_passes_on_no_more_than_the_pipe_holds(tmp_path) -> None:
    """A writer that goes on for ever holds nobody up."""
    with (tmp_path / "console").open("w+b") as file:
        live = Live(file.fileno())
        total = fill(live)
        live.copy()
        os.write(live.theirs, b"x")
        assert (tmp_path / "console").stat().st_size == total <= PIPE
        live.finish()
        assert (tmp_path / "console").stat().st_size == total + 1
        live.close()
        os.close(live.theirs)


@pytest.mark.parametrize("flags", [0, os.O_NONBLOCK])
def test_nobody_waits_for_one_who_does_not_read(
    flags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = os.pipe2(flags)
    room = fcntl(theirs, F_GETPIPE_SZ)
    live = Live(theirs)
    total = fill(live)
    assert total > room
    waits: list[float] = []

    class Poll:
        def __init__(self) -> None:
            self.register, self._real = (real := poll()).register, real

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            waits.append(timeout)
            return self._real.poll(timeout)

    poll = select.poll
    with monkeypatch.context() as patch:
        patch.setattr(select, "poll", Poll)
        for _ in range(3):
            live.copy()
    assert set(waits) == {0}
    begin = time.monotonic()
    live.finish()
    assert PATIENCE <= time.monotonic() - begin < 60
    assert (len(os.read(ours, 1 << 20)), live.fd >= 0) == (room, True)
    live.finish()  # it reads again
    assert len(os.read(ours, 1 << 20)) == min(total - room, room)
    os.close(ours)
    live.copy()
    assert live.fd == -1
    for fd in theirs, live.theirs:
        os.close(fd)
