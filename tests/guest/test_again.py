"""Several runs of the program in one VM: Machine(repeat=True), wait() and again()."""

from __future__ import annotations

import os
import signal
import time

import pytest
from harness import IMAGES, Host, gone

import pyvmm

NUMBERED = "n=$(cat /n 2>/dev/null); n=$((n + 1)); echo $n >/n; "
"""a script's beginning: $n is the run's number"""


@pytest.fixture(autouse=True)
def temporary(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(host.temporary))


def machine(*words: str, kernel: str = "minimal", **options: object) -> pyvmm.Machine:
    return pyvmm.Machine(
        IMAGES / "shell", list(words), repeat=True, kernel=kernel, **options  # type: ignore[arg-type]
    )  # fmt: skip


def test_five_runs(kernel: str) -> None:
    """Each as in a VM of its own: output, input, files, code; no process of the one before."""
    script = (
        NUMBERED
        + """
        read line; echo $n $line; echo err $n >&2
        ps -o comm | grep -c '^sleep'
        case $n in
        1) echo one >/a; setsid sleep 3600 & (trap '' TERM HUP; sleep 3600) & exit 0;;
        2) echo two >/b; echo both >/a; exit 7;;
        3) kill -SEGV $$;;
        4) echo four >/b; sleep 3600;;
        esac
    """
    )
    paths = ["/a", "/b"]
    none = "No such file or directory"
    options = {"outputs": paths, "stdin": b"given\n", "timeout": 20, "vcpus": 2}
    with machine("sh", "-c", script, kernel=kernel, **options) as vm:
        results, took = [vm.wait()], []
        for _ in range(4):
            began = time.monotonic()
            results.append(vm.again())
            took.append(time.monotonic() - began)
        pid = vm.pid
    assert pid is not None
    assert gone(pid)
    assert [r.stdout for r in results] == [b"%d given\n0\n" % n for n in range(1, 6)]
    assert [r.stderr for r in results] == [b"err %d\n" % n for n in range(1, 6)]
    ends = [(r.exit_code, r.signal, r.timed_out) for r in results]
    assert ends == [(0, 0, False), (7, 0, False), (139, 11, False), (124, 0, True), (0, 0, False)]
    assert [r.files for r in results] == [
        {"/a": b"one\n"}, {"/a": b"both\n", "/b": b"two\n"}, {}, {"/b": b"four\n"}, {},
    ]  # fmt: skip
    assert [r.missing for r in results] == [
        {"/b": none}, {}, {"/a": none, "/b": none}, {"/a": none}, {"/a": none, "/b": none},
    ]  # fmt: skip
    for result in results:
        assert (result.cpus, result.truncated, result.failure) == (2, [], "")
        assert result.timings.keys() == {"program", "total"}
        assert 0 < result.timings["program"] < result.timings["total"]
        empty = result.exits, result.marks, result.timeline, result.walls
        assert empty == ({}, {}, [], {})
    assert results[3].timings["program"] > 19  # by the guest's clock, which runs as it likes
    assert all(r.timings["total"] <= t for r, t in zip(results[1:], took, strict=True))


def test_usage_is_of_one_run(kernel: str) -> None:
    """The first run eats all memory and is killed for it; nothing of that is the second's."""
    script = NUMBERED + "[ $n = 2 ] || exec probe eat"
    with machine("sh", "-c", script, kernel=kernel, memory="128M") as vm:
        first, second = vm.wait(), vm.again()
    assert (first.exit_code, first.out_of_memory, first.usage.oom_kills) == (137, True, 1)
    assert (second.exit_code, second.out_of_memory, second.usage.oom_kills) == (0, False, 0)
    assert first.usage.peak_rss > 32 << 20
    assert second.usage.peak_rss < 8 << 20
    assert first.usage.minor_faults > 8192
    assert second.usage.minor_faults < 2048


def test_stdin_that_nobody_reads_is_not_the_next_runs() -> None:
    """More than the window and the pipe take: some of it is on its way when the run ends."""
    script = NUMBERED + "[ $n -lt 3 ] || wc -c"
    data = bytes(2 << 20)
    with machine("sh", "-c", script, stdin=data) as vm:
        results = [vm.wait(), vm.again(), vm.again()]
    assert [r.stdout for r in results] == [b"", b"", b"2097152\n"]


def test_sinks_get_every_runs_output() -> None:
    seen: list[bytes] = []
    with machine("sh", "-c", NUMBERED + "echo $n", on_stdout=seen.append) as vm:
        vm.wait()
        vm.again()
    assert b"".join(seen) == b"1\n2\n"


def test_program_that_can_no_longer_start() -> None:
    with machine("sh", "-c", "rm /bin/sh") as vm:
        assert vm.wait().exit_code == 0
        result = vm.again()
        assert (result.exit_code, result.failure) == (
            127, 'exec: "sh": executable file not found in $PATH',
        )  # fmt: skip
        with pytest.raises(pyvmm.GuestError, match=r"^the program cannot run again: its VM has"):
            vm.again()


def test_vm_that_is_not_to_repeat() -> None:
    with pyvmm.Machine(IMAGES / "shell", ["true"], kernel="minimal") as vm:
        assert vm.wait().exit_code == 0
        with pytest.raises(pyvmm.GuestError, match=r"or is not to repeat$"):
            vm.again()


def test_worker_killed_between_runs() -> None:
    with machine("true") as vm:
        vm.wait()
        assert vm.pid is not None
        os.kill(vm.pid, signal.SIGKILL)
        with pytest.raises(pyvmm.GuestError, match=r"^worker killed by signal 9 \(Killed\)$"):
            vm.again()


def test_stopped_between_runs() -> None:
    with machine("sh", "-c", NUMBERED + "[ $n = 1 ] || sleep 3600") as vm:
        vm.wait()
        vm.stop()
        with pytest.raises(pyvmm.GuestError, match=r"^stopped before the program had ended$"):
            vm.again()
