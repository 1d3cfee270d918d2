"""How a run can end before its time, each reported as what it is: items 15 and 16, and signals."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from harness import EVENT_LIMIT, UNTIL_GO, Done, Host, Running, gone

CONSOLE = b"--- the guest's console ends with:\n"
VERBOSE = "loglevel=7"


def test_15_rapid_exit(host: Host, kernel: str) -> None:
    for number in range(30):
        host.run("echo", str(number), kernel=kernel).check(0, b"%d\n" % number)


def ended_by(running: Running, mark: bytes) -> Done:
    """Wait for the mark on the console, and from then not longer than allowed."""
    seen = running.until(mark, "err")
    done = running.finish()
    assert time.monotonic() - seen < EVENT_LIMIT
    return done


def test_16_panic_at_boot(host: Host, kernel: str) -> None:
    running = host.start(
        "true", kernel=kernel, console="", cmdline_extra="rdinit=/nonexistent root=/dev/none"
    )
    done = ended_by(running, b"Kernel panic - not syncing: ")
    assert (done.code, done.out) == (125, b"")
    assert re.search(
        rb"^pyvmm: guest kernel panic: VFS: Unable to mount root fs on ", done.err, re.MULTILINE
    )
    assert CONSOLE in done.err
    assert b"Kernel panic - not syncing: " in done.err.partition(CONSOLE)[2]


def test_16_panic_without_a_console_driver(host: Host, kernel: str) -> None:
    """As everybody runs it, who does not ask for --console."""
    done = host.run("true", kernel=kernel, cmdline_extra="rdinit=/nonexistent root=/dev/none")
    assert (done.code, done.out) == (125, b"")
    line, _, console = done.err.partition(b"\n")
    assert line.startswith(b"pyvmm: guest kernel panic: VFS: Unable to mount root fs on ")
    assert console.startswith(CONSOLE)
    assert b"Kernel panic - not syncing: " in console


def test_16_panic_while_the_program_runs(host: Host, kernel: str) -> None:
    running = host.start(
        "sh", "-c", f"echo before; {UNTIL_GO} probe eat", kernel=kernel, memory="192M", console="",
        cmdline_extra="sysctl.vm.panic_on_oom=1", name="eats",
    )  # fmt: skip
    running.until(b"before\n")  # what is still in the guest's queues is lost with it
    host.let_go("eats")
    done = ended_by(running, b"Kernel panic - not syncing: ")
    assert (done.code, done.out) == (125, b"before\n")
    message = (
        b"pyvmm: guest out of memory: Out of memory: system-wide panic_on_oom is enabled "
        b"(give it more with --memory)\n"
    )
    assert message + CONSOLE in done.err
    assert b"Kernel panic - not syncing: " in done.err.partition(CONSOLE)[2]


def test_16_out_of_memory(host: Host, kernel: str) -> None:
    running = host.start(
        "probe", "eat", kernel=kernel, memory="192M", console="", cmdline_extra=VERBOSE
    )
    done = ended_by(running, b"Out of memory: Killed process")
    assert (done.code, done.out) == (137, b"")
    message = b"pyvmm: the guest ran out of memory and killed a process (--memory 192M)\n"
    assert done.err.endswith(message)
    assert b"(probe)" in done.err


def test_16_worker_killed(host: Host, kernel: str) -> None:
    running = host.start(
        "sh", "-c", "echo before; sleep 3600", kernel=kernel, cmdline_extra=VERBOSE
    )
    running.until(b"before\n")
    os.kill(running.worker(), signal.SIGKILL)
    killed = time.monotonic()
    done = running.finish()
    assert time.monotonic() - killed < EVENT_LIMIT
    assert (done.code, done.out) == (125, b"before\n")
    assert done.err.startswith(b"pyvmm: worker killed by signal 9 (Killed)\n" + CONSOLE)
    assert len(done.err.partition(CONSOLE)[2].splitlines()) >= 5


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_signals_leave_nothing(host: Host, number: int, code: int) -> None:
    running = host.start("sh", "-c", "echo before; sleep 3600", kernel="minimal")
    running.until(b"before\n")
    worker = running.worker()
    running.process.send_signal(number)
    done = running.finish(EVENT_LIMIT)
    assert gone(worker)
    done.check(code, b"before\n")


def test_interrupted_while_booting(host: Host) -> None:
    running = host.start(
        "echo", "never", kernel="minimal", console="",
        cmdline_extra=f"{VERBOSE} rdinit=/nonexistent root=/dev/none rootwait",
    )  # fmt: skip
    running.until(b"Waiting for root device", "err")  # which never comes
    worker = running.worker()
    running.process.send_signal(signal.SIGINT)
    done = running.finish(EVENT_LIMIT)
    assert gone(worker)
    assert (done.code, done.out) == (130, b"")
    assert b"Traceback" not in done.err


def test_descendants_that_hold_the_outputs_do_not_hold_up_the_end(host: Host) -> None:
    script = "(trap '' HUP TERM; sleep 3600) & echo started; exit 3"
    host.run("sh", "-c", script, kernel="minimal").check(3, b"started\n")
