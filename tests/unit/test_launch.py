"""Workers and the server that forks them. The workers here wait for a specification for ever."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm import launch
from pyvmm.errors import HostError
from pyvmm.launch import Server, WorkerProcess

CANARY = "canary-6f1d0c-of-the-environment"
FORKING = """
import os, sys
from pyvmm import launch
launch.open_kvm = lambda: os.open(os.devnull, os.O_RDWR)
launch.server.fork()
worker = launch.WorkerProcess()
print(worker.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    fresh = Server()
    monkeypatch.setattr(launch, "server", fresh)
    monkeypatch.setattr(launch, "open_kvm", lambda: os.open(os.devnull, os.O_RDWR))
    yield fresh
    fresh.close()


def pid_of(worker: WorkerProcess) -> int:
    assert worker.pid
    return worker.pid


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def gone(pid: int) -> bool:
    """Whether the process ends (a zombie has) within a minute."""
    for _ in range(6000):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def in_memory(pid: int, text: str) -> bool:
    """Whether the text is anywhere in the process's memory."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if "r" in line.split()[1] and "[v" not in line:
                memory.seek(start)
                if text.encode() in memory.read(end - start):
                    return True
    return False


def test_a_worker_has_nothing_of_ours() -> None:
    os.environ["PYVMM_TEST"] = CANARY
    try:
        worker = WorkerProcess()
        pid = pid_of(worker)
        assert name(pid) == "pyvmm-worker"
        wait_for_fds(pid)
        for each in (pid, parent(pid)):
            assert Path(f"/proc/{each}/environ").read_bytes() == b""
            assert not in_memory(each, CANARY)
        assert parent(parent(pid)) == os.getpid()
        worker.close()
    finally:
        del os.environ["PYVMM_TEST"]


EXPECTED = {
    "0": "/dev/null", "1": "/memfd:pyvmm-worker-log (deleted)",
    "2": "/memfd:pyvmm-worker-log (deleted)", "3": "socket", "4": "/dev/null",
    "6": "statm", "7": "fd",
}  # fmt: skip


def fds_of(pid: int) -> dict[str, str]:
    """What each descriptor is; of sockets and /proc's only the kind."""
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            what = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:  # closed meanwhile
            continue
        found[fd] = {"socket": "socket", "statm": "statm", "fd": "fd"}.get(
            what.partition(":")[0].rpartition("/")[2], what
        )
    return found


def wait_for_fds(pid: int) -> None:
    """Its own are /dev/null, its log twice, the control socket, what is /dev/kvm elsewhere, and its
    size and threads until the guest starts (jail.py).
    """
    deadline = time.monotonic() + 60
    while fds_of(pid) != EXPECTED and time.monotonic() < deadline:
        time.sleep(0.01)
    assert fds_of(pid) == EXPECTED


def test_a_forked_servers_memory_is_wiped() -> None:
    """The command line's: it holds no secret of a CI job's environment."""
    environment = os.environ | {
        "PYVMM_TEST": CANARY, CANARY: "1", "PYTHONPATH": ":".join(p for p in sys.path if p),
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", FORKING], env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as caller:  # fmt: skip
        assert caller.stdout
        pid = int(caller.stdout.readline())
        server = parent(pid)
        assert (parent(server), name(pid)) == (caller.pid, "pyvmm-worker")
        assert in_memory(caller.pid, CANARY)
        wait_for_fds(pid)
        assert not in_memory(pid, CANARY)
        assert not in_memory(server, CANARY)
        assert os.readlink(f"/proc/{server}/fd/1").startswith("/memfd:pyvmm-server-log")
        caller.communicate()
    assert gone(pid)
    assert gone(server)


def test_all_end_with_a_killed_caller() -> None:
    environment = os.environ | {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    with subprocess.Popen(
        [sys.executable, "-c", FORKING.replace("launch.server.fork()", "")], env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as caller:  # fmt: skip
        assert caller.stdout
        pid = int(caller.stdout.readline())
        server = parent(pid)
        caller.kill()
    assert gone(pid)
    assert gone(server)


def test_one_server_makes_all_workers() -> None:
    workers: list[WorkerProcess] = []
    threads = [threading.Thread(target=lambda: workers.append(WorkerProcess())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pids = {pid_of(worker) for worker in workers}
    assert len(pids) == 8
    assert len({parent(pid) for pid in pids}) == 1
    for worker in workers:
        worker.close()
        assert worker.pid is None
    assert all(gone(pid) for pid in pids)


def test_a_killed_worker() -> None:
    worker = WorkerProcess(jail=False)  # as PID 1 of a namespace it would not hear of it
    os.kill(pid_of(worker), signal.SIGSEGV)
    assert worker.report() == {}
    assert worker.died() == "worker killed by signal 11 (Segmentation fault)"
    worker.close()


def test_a_worker_that_fails() -> None:
    worker = WorkerProcess()
    worker.control.send(b"nonsense")
    assert worker.report() == {}
    assert worker.died() == "worker failed: ValueError: bad marshal data (unknown type code)"
    worker.close()


def test_kill_waits_until_it_is_gone() -> None:
    worker = WorkerProcess()
    pid = pid_of(worker)
    worker.close()
    assert not Path(f"/proc/{pid}").exists()
    worker.close()


def test_a_server_that_is_killed_at_once_takes_its_workers() -> None:
    """At any moment of a worker's way into its jail."""
    for delay in range(40):
        worker = WorkerProcess()
        pid = pid_of(worker)
        server = parent(pid)
        time.sleep(delay / 4000)
        os.kill(server, signal.SIGKILL)
        assert gone(pid)
        worker.close()


def test_a_killed_server_takes_its_workers_and_is_replaced() -> None:
    first = WorkerProcess()
    pid = pid_of(first)
    server = parent(pid)
    os.kill(server, signal.SIGKILL)
    assert gone(pid)
    assert first.report() == {}
    assert first.died() == "pyvmm-server was killed, and the worker with it"
    second = WorkerProcess()
    assert parent(pid_of(second)) != server
    assert not Path(f"/proc/{server}").exists()  # reaped
    first.close()
    second.close()


def test_a_forked_child_uses_the_same_server() -> None:
    """multiprocessing's fork: both may start workers."""
    ours = WorkerProcess()
    server = parent(pid_of(ours))
    if not (child := os.fork()):
        theirs = WorkerProcess()
        os._exit(theirs.pid is not None and parent(theirs.pid) == server)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert ours.pid is not None
    ours.close()


def test_the_next_waits_for_one_that_is_leaving() -> None:
    leaving = WorkerProcess()
    pid = pid_of(leaving)
    os.kill(pid, signal.SIGSTOP)
    leaving._over = True  # as if it had reported
    leaving.close()
    following = WorkerProcess()
    assert following.pid
    assert not Path(f"/proc/{pid}").exists()
    following.close()


TAKEN_OVER = """
import os, sys
from _socket import socket
from pyvmm import launch, worker
from pyvmm.errors import GuestError
launch.open_kvm = lambda: os.open(os.devnull, os.O_RDWR)
def main(control, kvm, vm, server, jailed, events):
    control = socket(fileno=control)
    control.send({said!r})
    while True:
        pass
worker.main = main
launch.server.fork()
first = launch.WorkerProcess()
try:
    print(first.report())
except GuestError as e:
    print(e)
print(first._pid, flush=True)
first.close(wait=True)
print(launch.WorkerProcess().pid, flush=True)
sys.stdin.read()
"""
REPORT = (
    b'{"end": "stopped", "kvm_exit": 0, "errno": 0, "detail": [], "times": {"ready": 1, "made": 1,'
    b' "loaded": 1, "start": 1}, "exits": {"serial": 0, "pio": 0, "mmio": 0, "signal": 0,'
    b' "other": 0}, "kvm_exits": 0, "marks": {}, "counters": []}'
)


@pytest.mark.parametrize("said", [REPORT, b"nonsense"])
def test_a_worker_that_says_it_ends_and_does_not(said: bytes) -> None:
    """It is ended, the next run is served, and nothing outlives the caller."""
    with subprocess.Popen(
        [sys.executable, "-c", TAKEN_OVER.replace("{said!r}", repr(said))],
        env=os.environ | {"PYTHONPATH": ":".join(p for p in sys.path if p)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as caller:  # fmt: skip
        assert caller.stdout
        what = caller.stdout.readline()
        first, second = (int(caller.stdout.readline()) for _ in range(2))
        assert gone(first)
        server = parent(second)
        assert name(second) == "pyvmm-worker"
        caller.kill()
    assert what == (
        b"the VM's process sent a report that is none: it may have been taken over\n"
        if said == b"nonsense" else repr(json.loads(said)).encode() + b"\n"
    )  # fmt: skip
    assert gone(second)
    assert gone(server)


def test_a_caller_short_of_descriptors(server: Server) -> None:
    first = WorkerProcess()
    assert first.pid
    second = WorkerProcess()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limit[1]))
    try:
        text = r"^cannot watch the VM's process: Too many open files \(ulimit -n\)$"
        with pytest.raises(HostError, match=text):
            second._meet()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    second.close()
    assert first.pid
    first.close()


def test_errors_leave_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise HostError("no /dev/kvm")

    WorkerProcess().close()
    gc.collect()  # what other tests have left to it may have descriptors
    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(launch, "open_kvm", refuse)
    for _ in range(3):
        with pytest.raises(HostError, match=r"^no /dev/kvm$"):
            WorkerProcess()
    with pytest.raises(HostError, match=r"^cgroup /no/such: "):
        WorkerProcess(cgroup="/no/such")
    assert sorted(os.listdir("/proc/self/fd")) == before
