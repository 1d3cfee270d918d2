"""The Python API: run() and Machine."""

from __future__ import annotations

import os
import random
import threading
import time

import pytest
from harness import EVENT_LIMIT, IMAGES, Host, gone, parent, workers

import pyvmm

IMAGE = IMAGES / "shell"


@pytest.fixture(autouse=True)
def temporary(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(host.temporary))


def run(*words: str, **options: object) -> pyvmm.Result:
    return pyvmm.run(IMAGE, list(words), kernel="minimal", **options)  # type: ignore[arg-type]


def test_result() -> None:
    result = run(
        "sh", "-c", "echo out; echo err >&2; echo file >/f; exit 7", outputs=["/f", "/none"]
    )
    assert (result.exit_code, result.signal) == (7, 0)
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
    assert result.files == {"/f": b"file\n"}
    assert result.missing == {"/none": "No such file or directory"}
    assert (result.timed_out, result.out_of_memory, result.failure) == (False, False, "")
    assert result.cpus == 1
    assert result.usage.peak_rss > 0
    assert set(result.marks) == {"init", "program", "ended"}
    assert 0 < result.timings["program"] < result.timings["total"]
    assert result.exits["kvm"] >= sum(v for k, v in result.exits.items() if k != "kvm") > 0


def test_the_guest_knows_the_time() -> None:
    before = time.time()
    clock = int(run("date", "+%s").stdout)
    assert before - 2 < clock < time.time() + 1


def test_library_runs_have_one_server() -> None:
    """And they follow the caller, whose CPUs may have changed since the server was made."""
    with machine("sleep", "3600") as first, machine("sleep", "3600") as second:
        assert first.pid is not None
        assert second.pid is not None
        assert first.pid != second.pid
        assert parent(first.pid) == parent(second.pid)
        assert parent(parent(first.pid)) == os.getpid()


def test_killed_by_a_signal() -> None:
    result = run("sh", "-c", "kill -SEGV $$")
    assert (result.exit_code, result.signal) == (139, 11)


def test_timeout_keeps_what_came_before() -> None:
    result = run("sh", "-c", "echo before; echo part >/f; sleep 3600", timeout=10, outputs=["/f"])
    assert (result.exit_code, result.timed_out, result.stdout) == (124, True, b"before\n")
    assert result.files == {"/f": b"part\n"}


def test_out_of_memory() -> None:
    result = run("probe", "eat", memory="128M")
    assert (result.exit_code, result.signal, result.out_of_memory) == (137, 9, True)
    assert result.usage.oom_kills == 1
    assert result.usage.peak_rss > 32 << 20


def test_stdin_of_a_mebibyte() -> None:
    data = random.Random(7).randbytes(1 << 20)
    result = run("cat", stdin=data)
    assert (result.exit_code, result.stdout == data) == (0, True)


def test_stdin_empty_and_none() -> None:
    script = "cat; readlink /proc/self/fd/0 | cut -c1-5"
    assert run("sh", "-c", script, stdin=b"").stdout == b"pipe:\n"
    assert run("sh", "-c", script).stdout == b"/dev/\n"


def test_stdin_that_nobody_reads() -> None:
    result = run("sh", "-c", "echo done", stdin=bytes(1 << 20))
    assert (result.exit_code, result.stdout) == (0, b"done\n")
    result = run("sleep", "3600", stdin=bytes(1 << 20), timeout=2)
    assert (result.exit_code, result.timed_out) == (124, True)


def test_large_environment() -> None:
    values = {f"VAR_{i}": chr(65 + i) * 20_000 for i in range(6)}
    result = run("sh", "-c", "for i in 0 1 2 3 4 5; do eval echo \\$VAR_$i; done", env=values)
    assert result.stdout == "".join(f"{v}\n" for v in values.values()).encode()


def test_sinks_get_the_bytes_as_they_come() -> None:
    seen: list[bytes] = []
    result = run("sh", "-c", "echo one; echo two", on_stdout=seen.append)
    assert (b"".join(seen), result.stdout) == (b"one\ntwo\n", b"")

    def stop(data: bytes) -> None:
        seen.append(data)
        vm.stop()

    seen.clear()
    vm = machine("sh", "-c", "echo one; sleep 3600", on_stdout=stop)
    with vm, pytest.raises(pyvmm.GuestError, match="stopped"):
        vm.wait()
    assert b"".join(seen) == b"one\n"


def test_exception_leaves_nothing() -> None:
    vm = machine("sleep", "3600")
    pids = []

    def body() -> None:
        with vm:
            pids.append(vm.pid)
            assert workers() >= set(pids)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        body()
    assert gone(pids[0])
    assert vm.pid is None


def machine(*words: str, **options: object) -> pyvmm.Machine:
    return pyvmm.Machine(IMAGE, list(words), kernel="minimal", **options)  # type: ignore[arg-type]


def test_stop_from_another_thread() -> None:
    with machine("sleep", "3600") as vm:
        timer = threading.Timer(4, vm.stop)
        timer.start()
        began = time.monotonic()
        with pytest.raises(pyvmm.GuestError) as caught:
            vm.wait()
        assert time.monotonic() - began < 4 + EVENT_LIMIT
        timer.join()
    assert "stopped" in str(caught.value)


def test_kill_ends_it_and_may_be_called_again() -> None:
    vm = machine("sleep", "3600", cmdline_extra="loglevel=7")
    vm.start()
    pid = vm.pid
    assert pid is not None
    deadline = time.monotonic() + 60
    while "Linux version" not in vm.console and time.monotonic() < deadline:
        time.sleep(0.05)
    vm.kill()
    vm.kill()
    assert pid not in workers()
    assert "Linux version" in vm.console


def test_in_a_thread_and_two_at_once() -> None:
    results: dict[str, bytes] = {}

    def go(name: str) -> None:
        results[name] = run("echo", name).stdout

    threads = [threading.Thread(target=go, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"a": b"a\n", "b": b"b\n"}


def test_boot_timeout_says_so() -> None:
    began = time.monotonic()
    with pytest.raises(pyvmm.GuestError, match=r"did not start the program within 0\.001 s"):
        run("true", boot_timeout=0.001)  # which no machine is fast enough for
    assert time.monotonic() - began < EVENT_LIMIT
