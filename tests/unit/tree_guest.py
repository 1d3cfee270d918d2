"""init's part for files, run natively at the other end of a socket pair."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm.agent.connection import Connection
from pyvmm.agent.files import Files

HERE = Path(__file__).resolve().parent  # sys.path may lead here by "../unit"


def refused(act: Callable[..., object], *words: object) -> OSError:
    """What it raises."""
    try:
        act(*words)
    except OSError as error:
        return error
    pytest.fail("it was done")


@pytest.fixture
def removed(tmp_path: Path) -> Iterator[None]:
    """All that a test makes goes with it, however it ends: pytest could not remove a deep tree."""
    yield
    subprocess.run(["rm", "-rf", tmp_path], check=True)


def build(out: Path) -> Path:
    """The harness, made in ``out``."""
    make = ["make", "-s", "-C", str(HERE.parent.parent / "init"), f"BUILD={out}"]
    harness = out / "tree_harness"
    subprocess.run([*make, f"TREE_HARNESS={HERE / 'tree_harness.c'}", str(harness)], check=True)
    return harness


class TreeGuest:
    """A guest whose root is this machine's: each session is a process."""

    def __init__(self, harness: Path) -> None:
        self._harness = harness
        self.files = Files(self.connect)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with self.session() as sock:
            yield Connection(sock)

    @contextmanager
    def session(self) -> Iterator[socket.socket]:
        ours, theirs = socket.socketpair()
        high = fcntl.fcntl(theirs, fcntl.F_DUPFD, 20)
        theirs.close()
        process = subprocess.Popen(
            [self._harness], preexec_fn=lambda: os.dup2(high, 3) and None, pass_fds=(3,)
        )
        os.close(high)
        with ours:
            yield ours
        assert process.wait(60) == 0
