"""The live console: a pipe between a worker that may be hostile and whatever the caller has."""

from __future__ import annotations

import os

from pyvmm.console import PIPE, Live


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


def test_one_call_passes_on_no_more_than_the_pipe_holds(tmp_path) -> None:
    """A writer that goes on for ever holds nobody up."""
    with (tmp_path / "console").open("w+b") as file:
        live = Live(file.fileno())
        while True:
            try:
                os.write(live.theirs, b"x" * 4096)
            except BlockingIOError:
                break
        live.copy()
        os.write(live.theirs, b"x")
        size = (tmp_path / "console").stat().st_size
        assert 0 < size <= PIPE
        live.copy()
        assert (tmp_path / "console").stat().st_size == size + 1
        live.close()
        os.close(live.theirs)


def test_a_reader_that_is_slow_is_not_gone() -> None:
    ours, theirs = os.pipe2(os.O_NONBLOCK)
    live = Live(theirs)
    for _ in range(100):
        os.write(live.theirs, b"x" * 4096)
        live.copy()
    assert live.fd >= 0
    os.close(ours)
    os.write(live.theirs, b"x")
    live.copy()
    assert live.fd == -1
    os.close(theirs)
    os.close(live.theirs)
