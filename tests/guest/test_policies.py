"""The seccomp policies are minimal: the tests before these (conftest.py runs these last) have used
every line, or it says why it is rare."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from harness import UNTIL_GO, Host, Running
from policy_calls import Calls, lines

from pyvmm import seccomp

SUITE = 100  # workers: with fewer it was not the whole suite that ran

ENDED = b"pyvmm: guest ended early: pyvmm-init: host connection: "
CLOSED = b"pyvmm: the guest did not send its outputs: it closed its connection\n"

every_kind = pytest.mark.parametrize("kind", seccomp.KINDS)


@pytest.fixture
def calls(counted_calls: Calls) -> Calls:
    workers = counted_calls.threads("main")
    if workers < SUITE:
        unused = [
            f"{kind}: {line.rule}"
            for kind in seccomp.KINDS
            for line in lines(kind)
            if not line.rare and not counted_calls.by(line)
        ]
        pytest.skip(f"the suite has not run before: {workers} workers; unused: {unused}")
    return counted_calls


def test_worker_that_is_stopped_goes_on(host: Host) -> None:
    """As by a debugger: the calls that are restarted."""
    script = f"echo begins; {UNTIL_GO} echo ends"
    running = host.start("sh", "-c", script, kernel="minimal", name="stopped")
    running.until(b"begins\n")
    worker = running.worker()
    os.kill(worker, signal.SIGSTOP)
    while Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)  # or SIGCONT takes it back
    os.kill(worker, signal.SIGCONT)
    host.let_go("stopped")
    running.finish().check(0, b"begins\nends\n")


def test_disk_is_trimmed(host: Host) -> None:
    host.run("busybox", "fstrim", "/", kernel="minimal", privileged="").check(0, b"")


def stand_still(running: Running, seconds: float) -> None:
    """Have the caller read nothing: then the worker holds what the guest says."""
    running.until(b"begins\n")
    running.process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    running.process.send_signal(signal.SIGCONT)


def test_caller_that_stands_still(host: Host) -> None:
    script = "echo begins; sleep 1; head -c 4194304 /dev/zero"
    running = host.start("sh", "-c", script, kernel="minimal")
    stand_still(running, 3)
    running.finish().check(0, b"begins\n" + bytes(4 << 20))


def test_driver_is_gone_with_what_is_held(host: Host) -> None:
    script = """
        echo begins; sleep 1; cat /dev/zero & sleep 1
        cd /sys/bus/virtio/drivers/vmw_vsock_virtio_transport
        for device in virtio*; do echo $device >unbind; done
        sleep 3600
    """
    running = host.start("sh", "-c", script, kernel="minimal", privileged="")
    stand_still(running, 4)
    done = running.finish()
    assert (done.code, done.out) == (125, b"begins\n" + bytes(len(done.out) - 7))
    assert done.err.startswith(ENDED)


def test_connection_is_gone_after_something_was_held(host: Host) -> None:
    script = f"echo begins; sleep 1; head -c 4194304 /dev/zero; {UNTIL_GO} hostile hang-up"
    running = host.start(
        "sh", "-c", script, image="hostile", kernel="minimal", privileged="", name="held"
    )
    stand_still(running, 3)
    out = b"begins\n" + bytes(4 << 20)
    running.until(out)
    host.let_go("held")
    done = running.finish()
    assert (done.code, done.out) == (125, out)
    assert done.err.startswith((ENDED, CLOSED))


@every_kind
def test_every_line_is_used_or_rare(calls: Calls, kind: str) -> None:
    assert [line.rule for line in lines(kind) if not line.rare and not calls.by(line)] == []


@every_kind
def test_no_rare_line_is_one_that_every_worker_uses(
    calls: Calls, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rare = {line.rule: calls.by(line) for line in lines(kind) if line.rare}
    with capsys.disabled():
        print({rule: count for rule, count in rare.items() if count}, end=" ")
    threads = calls.threads(kind)
    assert [rule for rule, count in rare.items() if count >= threads] == []


@every_kind
def test_every_call_is_by_one_line(calls: Calls, kind: str) -> None:
    """So the lines are read here as the kernel does, and none allows what another does."""
    assert calls.all(kind) == sum(calls.by(line) for line in lines(kind))
