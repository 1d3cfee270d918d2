"""SIGKILL while a host's settings are changed or put back: all comes back, byte for byte."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.tune.recover import recover
from pyvmm.tune.session import apply, restore, tuned

from .host_tree import HostTree

CALLS = ("open", "write", "fsync", "rename", "unlink", "mkdir", "rmdir", "close")
STEPS = 4000  # more than any of these makes
AT_RANDOM = 50


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostTree]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:  # as /run, where fsync is nothing
        made = HostTree(Path(place), monkeypatch)
        made.remove("dev/cpu_dma_latency")  # a file would not forget what was written
        del made.original["dev/cpu_dma_latency"]
        yield made
        monkeypatch.undo()  # its rmdir


def for_a_time(host: HostTree) -> None:
    with tuned(host.path):
        pass


def for_good(host: HostTree) -> None:
    apply(host.path)


def back(host: HostTree) -> None:
    restore(host.path)


def after_a_kill(host: HostTree) -> None:
    recover(host.path)


def killed_at(step: int, function: Callable[[], None]) -> bool:
    """Run it in a child that is killed before its system call number ``step``, of those in CALLS;
    of a write half is done. False if it ended before."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _count(step)
            function()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def _count(step: int) -> None:
    left = step

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal left
            if left == 0:
                if real is write:
                    write(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return real(*args, **more)

        return call

    write = os.write
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def whole(host: HostTree) -> None:
    assert recover(host.path) in (
        [],
        *[
            [f"put back what a killed pyvmm had changed on this host: {n} setting{'s' * (n > 1)}"]
            for n in range(1, 21)
        ],
    )
    if "tune.applied" in host.ours():
        assert restore(host.path)[1] == []
    assert host.changes() == {}
    assert set(host.ours()) <= {"tune.lock", "tune.applied.part"}
    assert not os.path.exists(f"{host.path}/sys/fs/cgroup/pyvmm-partition")


@pytest.mark.parametrize("function", [for_a_time, for_good])
def test_killed_at_every_call(host: HostTree, function: Callable[[HostTree], None]) -> None:
    chance = random.Random(6)
    for step in range(STEPS):
        if not killed_at(step, lambda: function(host)):
            break
        if step % 3 == 0:  # and again, meanwhile
            killed_at(chance.randrange(60), lambda: after_a_kill(host))
        whole(host)
    assert 100 < step < STEPS - 1
    whole(host)


def test_killed_at_every_call_of_restore(host: HostTree) -> None:
    for step in range(STEPS):
        apply(host.path)
        if not killed_at(step, lambda: back(host)):
            break
        whole(host)
    assert 40 < step < STEPS - 1
    whole(host)


def test_killed_at_any_time(host: HostTree) -> None:
    """From outside: between two instructions, not two calls."""
    chance = random.Random(7)

    def for_ever() -> None:
        while True:
            for_a_time(host)
            for_good(host)
            back(host)

    for _ in range(AT_RANDOM):
        pid = os.fork()
        if pid == 0:
            try:
                for_ever()
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        if os.path.exists(f"{host.path}/run/pyvmm/tune.lock"):
            whole(host)
