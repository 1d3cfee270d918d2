"""Programs in a guest that runs: Machine.exec and its like, pyvmm exec, and a run's terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import random
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fcntl import ioctl

import pytest
from harness import IMAGES, RUN_LIMIT, Host, command

import pyvmm
from pyvmm.agent.program import ExecResult

# Its shell would say what became of each sleep.
TRAPPING = (
    "exec 2>/dev/null; trap 'echo trapped; exit 8' TERM; echo up; while :; do sleep 0.1; done"
)
DATA = random.Random(7).randbytes(1_000_000)  # some STDIN windows


def machine(*words: str, image: str = "shell", **options: object) -> pyvmm.Machine:
    given = list(words) or None
    return pyvmm.Machine(IMAGES / image, given, kernel="minimal", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def held() -> Iterator[pyvmm.Machine]:
    """A machine that runs no program of its own, as user 1000 with MY_VAR=test_value in /app."""
    with machine(image="numbers", hold=True, env={"OTHER": "value"}, memory="256M") as made:
        yield made


def said(result: ExecResult) -> tuple[int, bytes, bytes]:
    return result.exit_code, result.stdout, result.stderr


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def no_more_sleep(machine: pyvmm.Machine) -> None:
    """Nobody sleeps in it, soon: who was killed is told before all are gone that were with him."""
    deadline = time.monotonic() + RUN_LIMIT
    while sleepers(machine) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sleepers(machine) == 0


def sleepers(machine: pyvmm.Machine) -> int:
    return int(machine.exec(["sh", "-c", "ps -o comm | grep -c '^sleep'"]).stdout)


def test_code_output_and_usage(held: pyvmm.Machine) -> None:
    result = held.exec(["sh", "-c", "printf 'a\\0b'; printf err >&2; exit 7"])
    assert said(result) == (7, b"a\0b", b"err")
    assert (result.signal, result.timed_out, result.truncated, result.failure) == (0, False, [], "")
    assert result.usage.peak_rss > 0
    assert result.seconds > 0


def test_nothing_is_left_behind(held: pyvmm.Machine) -> None:
    held.exec(["true"])
    before, threads = descriptors(), threading.active_count()
    for _ in range(3):
        held.exec(["cat"], input=b"x")
    with held.popen(["cat"]) as process:
        process.write(b"y")
    assert descriptors() == before
    assert threading.active_count() == threads


def test_inherited_and_overridden(held: pyvmm.Machine) -> None:
    script = "id -u; id -g; pwd; echo $MY_VAR $OTHER $NEW"
    assert held.exec(["sh", "-c", script]).stdout == b"1000\n1000\n/app\ntest_value value\n"
    result = held.exec(
        ["sh", "-c", script],
        env={"NEW": "new", "OTHER": "changed"}, user="root", workdir="/made/for/it",
    )  # fmt: skip
    assert said(result) == (0, b"0\n0\n/made/for/it\ntest_value changed new\n", b"")


def test_programs_that_do_not_start(held: pyvmm.Machine) -> None:
    results = [held.exec(["none"]), held.exec(["/etc/data"]), held.exec(["true"], user="nobody")]
    assert [(r.exit_code, r.failure) for r in results] == [
        (127, 'exec: "none": executable file not found in $PATH'),
        (126, 'exec: "/etc/data": permission denied'),
        (125, "unable to find user nobody: no matching entries in passwd file"),
    ]


def test_standard_input(held: pyvmm.Machine) -> None:
    assert held.exec(["readlink", "/proc/self/fd/0"]).stdout == b"/dev/null\n"
    assert held.exec(["wc", "-c"], input=b"").stdout == b"0\n"
    assert held.exec(["cat"], input=DATA).stdout == DATA
    assert said(held.exec(["true"], input=DATA)) == (0, b"", b"")  # nobody reads it


def test_time_out(held: pyvmm.Machine) -> None:
    result = held.exec(["sh", "-c", "echo before; sleep 3600"], timeout=10)
    assert (result.timed_out, result.signal, *said(result)) == (True, 0, 124, b"before\n", b"")
    no_more_sleep(held)


def test_signals(held: pyvmm.Machine) -> None:
    result = held.exec(["sh", "-c", "kill -SEGV $$"])
    assert (result.exit_code, result.signal) == (139, 11)
    with held.popen(["sh", "-c", TRAPPING.replace("TERM", "USR1")]) as process:
        parts = iter(process)
        assert next(parts) == ("stdout", b"up\n")
        process.kill(signal.SIGUSR1)
        assert list(parts) == [("stdout", b"trapped\n")]
        assert process.wait().exit_code == 8


def test_talking(held: pyvmm.Machine) -> None:
    script = "while read line; do echo got $line; echo $line >&2; done; exit 5"
    with held.popen(["sh", "-c", script]) as process:
        parts = iter(process)
        for word in (b"one", b"two"):
            process.write(word + b"\n")
            assert sorted([next(parts), next(parts)]) == [
                ("stderr", word + b"\n"), ("stdout", b"got " + word + b"\n"),
            ]  # fmt: skip
        with pytest.raises(TimeoutError, match=r"^the program has not ended within 0\.1 s$"):
            process.wait(0.1)
        process.close_stdin()
        assert said(process.wait()) == (5, b"", b"")
        with pytest.raises(BrokenPipeError, match=r"^the program has ended$"):
            process.write(b"more")


def test_one_thread_writes_and_one_reads(held: pyvmm.Machine) -> None:
    with held.popen(["cat"]) as process:

        def write() -> None:
            process.write(DATA)
            process.close_stdin()

        writer = threading.Thread(target=write)
        writer.start()
        assert b"".join(data for _, data in process) == DATA
        writer.join()
        assert process.wait().exit_code == 0


def test_closing_kills_the_program(held: pyvmm.Machine) -> None:
    process = held.popen(["sh", "-c", "echo up; sleep 3600"])
    assert next(iter(process)) == ("stdout", b"up\n")
    process.close()
    process.close()
    with pytest.raises(pyvmm.GuestError, match=r"^the process was closed$"):
        process.wait()
    no_more_sleep(held)


def test_terminal(held: pyvmm.Machine) -> None:
    result = held.exec(["sh", "-c", "tty; stty size; echo err >&2"], tty=(33, 111))
    assert result.exit_code == 0
    assert re.fullmatch(rb"/dev/pts/\d+\r\n33 111\r\nerr\r\n", result.stdout)
    assert result.stderr == b""
    script = "trap 'stty size; exit' WINCH; stty size; while :; do sleep 0.1; done"
    with held.popen(["sh", "-c", script], tty=True) as process:
        parts = iter(process)
        shown = b""
        while not shown.endswith(b"\n"):  # a terminal gives a line in pieces, if it likes
            shown += next(parts)[1]
        assert shown == b"24 80\r\n"
        process.resize(50, 132)
        assert b"".join(data for _, data in parts) == b"50 132\r\n"
    with held.popen(["cat"], tty=True) as process:
        process.write(b"\x03")  # ^C
        assert process.wait().exit_code == 130


def test_many_at_once(held: pyvmm.Machine) -> None:
    def one(number: int) -> ExecResult:
        return held.exec(["sh", "-c", "cat; exit $0", str(number)], input=b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, range(8)))
    assert list(map(said, results)) == [(n, b"%d" % n, b"") for n in range(8)]


def test_with_await(held: pyvmm.Machine) -> None:
    async def talk() -> list[tuple[str, bytes]]:
        async with await held.popen_async(
            ["sh", "-c", "read l; echo $l; read l; exit 4"]
        ) as process:
            await process.write(b"line\n")
            parts = aiter(process)
            found = [await anext(parts)]
            await process.close_stdin()
            assert (await process.wait()).exit_code == 4
            return found

    async def main() -> None:
        echo, large, late, talked = await asyncio.gather(
            held.exec_async(["sh", "-c", "echo out; echo err >&2; exit 3"]),
            held.exec_async(["cat"], input=DATA),
            held.exec_async(["sleep", "3600"], timeout=2),
            talk(),
        )
        assert said(echo) == (3, b"out\n", b"err\n")
        assert said(large) == (0, DATA, b"")
        assert (late.exit_code, late.timed_out) == (124, True)
        assert talked == [("stdout", b"line\n")]
        task = asyncio.ensure_future(held.exec_async(["sleep", "3600"]))
        while await asyncio.to_thread(sleepers, held) != 1:
            await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    no_more_sleep(held)
    before = descriptors()
    asyncio.run(main())
    assert descriptors() == before


def test_beside_the_program_and_after_it() -> None:
    script = "echo up; read line; until [ -e /go ]; do sleep 0.1; done; echo $line; exit 9"
    with machine("sh", "-c", script, stdin=b"given\n") as vm:
        assert vm.exec(["true"]).exit_code == 0
        with suppress(pyvmm.GuestError):  # it ends with the program, perhaps before it has said so
            vm.exec(["touch", "/go"])
        result = vm.wait()
        assert (result.exit_code, result.stdout) == (9, b"up\ngiven\n")
        with pytest.raises(pyvmm.GuestError, match=r"^the machine's program has ended, and all"):
            vm.exec(["true"])


@pytest.mark.usefixtures("held")  # with which the server has come
def test_leaving_while_programs_run() -> None:
    """A held machine's end is no failure, and whoever waits for a program in it is told, in any
    thread; nothing is left."""
    before, threads = descriptors(), threading.active_count()
    errors: list[str] = []

    def attempt(vm: pyvmm.Machine) -> None:
        try:
            vm.exec(["sleep", "3600"])
        except pyvmm.GuestError as e:
            errors.append(str(e))

    with machine(hold=True) as vm:
        process = vm.popen(["sh", "-c", "echo up; sleep 3600"])
        assert next(iter(process)) == ("stdout", b"up\n")
        waiting = threading.Thread(target=attempt, args=(vm,))
        waiting.start()
        while sleepers(vm) != 2:
            time.sleep(0.1)
        vm.stop()
        result = vm.wait()
        assert (result.exit_code, result.stdout) == (0, b"")
    waiting.join()
    with pytest.raises(pyvmm.GuestError, match=r"^the machine ended$"):
        process.wait()
    process.close()
    assert errors == ["the machine ended"]
    assert descriptors() == before
    assert threading.active_count() == threads


def test_run_with_our_stdin(host: Host) -> None:
    (host.place / "data").write_bytes(DATA)
    line = [command(), "run", "-i", "--kernel", "minimal", "--image", IMAGES / "shell", "cat"]
    with open(host.place / "data", "rb") as given:
        done = subprocess.run(line, stdin=given, capture_output=True, timeout=RUN_LIMIT)
    assert (done.returncode, done.stdout == DATA, done.stderr) == (0, True, b"")


class Terminal:
    """A terminal of 20 rows and 90 columns, and a pyvmm that was started from it."""

    def __init__(self, *words: str) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(20, 90)
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        self.shown = b""
        self.process = subprocess.Popen(
            [command(), *words], stdin=theirs, stdout=theirs, stderr=theirs,
            preexec_fn=self._control, start_new_session=True,
        )  # fmt: skip

    def _control(self) -> None:
        ioctl(0, termios.TIOCSCTTY, 0)

    def resize(self, rows: int, columns: int) -> None:
        ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("<HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def until(self, mark: bytes) -> None:
        """Read up to the mark."""
        while mark not in self.shown:
            ready, _, _ = select.select([self.ours], [], [], RUN_LIMIT)
            assert ready, self.shown
            self.shown += os.read(self.ours, 4096)
        self.shown = self.shown.partition(mark)[2]

    def finish(self) -> int:
        """The exit code; the terminal is as it was."""
        code = self.process.wait(RUN_LIMIT)
        assert termios.tcgetattr(self.theirs) == self.before
        os.close(self.ours)
        os.close(self.theirs)
        return code


SHELL = "PS1='$ ' exec sh"


def test_run_in_a_terminal(host: Host) -> None:
    where = ["--kernel", "minimal", "--image", str(IMAGES / "shell")]
    terminal = Terminal("run", "-it", *where, "sh", "-c", SHELL)
    terminal.until(b"$ ")
    terminal.type(b"stty size\n")
    terminal.until(b"\r\n20 90\r\n$ ")
    terminal.resize(40, 100)
    terminal.type(b"until stty size | grep '40 100'; do sleep 0.1; done; cat\n")
    terminal.until(b"\r\n40 100\r\n")
    terminal.type(b"here\n")
    terminal.until(b"here\r\nhere\r\n")  # ours, and cat's: it has the terminal now
    terminal.type(b"\x03")  # ends cat, not us
    terminal.until(b"^C\r\n$ ")
    terminal.type(b"exit 5\n")
    assert terminal.finish() == 5


def test_exec_by_name(host: Host) -> None:
    """Other processes, while the program runs; then it ends, and what they run with it."""
    running = host.pyvmm(
        "run", "--name", "box", "--hold", "--kernel", "minimal", "--image", IMAGES / "numbers"
    )
    while host.pyvmm("ps", "--quiet").finish().out != b"box\n":
        assert running.process.poll() is None, running.text()
    host.pyvmm("exec", "box", "sh", "-c", "id -u; echo err >&2; exit 6").finish().check(
        6, b"1000\n", b"err\n"
    )
    words = ["--env", "A=b", "--user", "0", "--workdir", "/tmp", "box", "--", "sh", "-c"]
    host.pyvmm("exec", *words, "id -u; pwd; echo $A").finish().check(0, b"0\n/tmp\nb\n")
    host.pyvmm("exec", "--timeout", "1", "box", "sleep", "9").finish().check(
        124, b"", b"pyvmm: timed out after 1 s\n"
    )
    missing = b'pyvmm: exec: "none": executable file not found in $PATH\n'
    host.pyvmm("exec", "box", "none").finish().check(127, b"", missing)
    given = subprocess.run(
        [command(), "exec", "-i", "box", "cat"], input=DATA, capture_output=True, timeout=RUN_LIMIT
    )
    assert (given.returncode, given.stdout == DATA, given.stderr) == (0, True, b"")

    trapped = host.pyvmm("exec", "box", "sh", "-c", TRAPPING)
    trapped.until(b"up\n")
    trapped.process.terminate()
    trapped.finish().check(8, b"up\ntrapped\n")

    terminal = Terminal("exec", "-it", "box", "sh", "-c", SHELL)
    terminal.until(b"$ ")
    terminal.type(b"stty size; exit 3\n")
    terminal.until(b"\r\n20 90\r\n")
    assert terminal.finish() == 3

    lasting = host.pyvmm("exec", "box", "sh", "-c", "echo up; sleep 3600")
    lasting.until(b"up\n")
    running.process.terminate()
    assert running.finish().code == 143
    lasting.finish().check(125, b"up\n", b"pyvmm: the machine ended\n")
    host.pyvmm("exec", "box", "true").finish().check(
        125, b"", b"pyvmm: no machine 'box' runs here: see pyvmm ps\n"
    )
