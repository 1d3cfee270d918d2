"""Programs in a running guest, from the host's side: what is sent, and hostile agents."""

from __future__ import annotations

import asyncio
import gc
import os
import pty
import signal
import socket
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

import pytest

import pyvmm
from pyvmm.agent import terminal
from pyvmm.agent.aio import AsyncProcess, exec_async
from pyvmm.agent.connection import Connection
from pyvmm.agent.process import Process, exec_
from pyvmm.agent.program import Command, ExecResult
from pyvmm.agent.sources import Mailbox, Piped, Signals
from pyvmm.errors import GuestError, UsageError
from pyvmm.exchange import CONFIG, KILL, RESIZE, STDIN, STDIN_WINDOW, Exchange, Input, frame
from pyvmm.results import (
    END,
    EXIT,
    FAILED,
    FILE_BEGIN,
    HELLO,
    STARTED,
    STDERR,
    STDIN_TAKEN,
    STDOUT,
    VERSION,
    Session,
    Usage,
)

from .recorded import EXCHANGES, GUEST, HOST

GREETING = frame(HELLO, struct.pack("<IIQQ", VERSION, 1, 11, 500 << 20))
BEGUN = frame(STARTED, struct.pack("<Q", 1_000_000_000))
COUNTS = tuple(range(1, 11))


def over(code: int = 0, number: int = 0) -> bytes:
    end = struct.pack("<II12Q", code, number, 3_500_000_000, *COUNTS, 0)
    return frame(EXIT, end) + frame(END)


def taken(size: int) -> bytes:
    return frame(STDIN_TAKEN, struct.pack("<I", size))


class Agent(threading.Thread):
    """A session's other end: says bytes, waits for frames by their type; closes at the end."""

    def __init__(self, sock: socket.socket, *steps: int | bytes) -> None:
        super().__init__(daemon=True)
        self.sock, self.steps = sock, steps
        self.heard: list[tuple[int, bytes]] = []
        self.start()

    def run(self) -> None:
        with self.sock, self.sock.makefile("rb") as stream:
            for step in self.steps:
                if isinstance(step, bytes):
                    self.sock.sendall(step)
                    continue
                kind = None
                while kind != step:
                    length, kind, _ = struct.unpack("<IHH", stream.read(8))
                    self.heard.append((kind, stream.read(length)))


Start = Callable[..., tuple[socket.socket, Agent]]


@pytest.fixture
def start() -> Iterator[Start]:
    agents: list[Agent] = []

    def begin(*steps: int | bytes) -> tuple[socket.socket, Agent]:
        ours, theirs = socket.socketpair()
        agents.append(Agent(theirs, *steps))
        return ours, agents[-1]

    gc.disable()  # what other tests have left to it may have descriptors
    before = set(os.listdir("/proc/self/fd"))
    try:
        yield begin
        for agent in agents:
            agent.join(60)
            assert not agent.is_alive()
        assert set(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def records(payload: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(payload):
        key, zero, size = struct.unpack_from("<HHI", payload, at)
        assert zero == 0
        found.append((key, payload[at + 8 : at + 8 + size]))
        at += 8 + size
    return found


class TestCommand:
    def test_what_is_not_said_is_not_sent(self):
        raw = Command(["prog", "ä"]).frame()
        assert struct.unpack_from("<IHH", raw) == (len(raw) - 8, CONFIG, 0)
        assert records(raw[8:]) == [(1, b"prog"), (1, "ä".encode()), (7, b"\0")]

    def test_all(self):
        command = Command(["p"], {"A": "b=c"}, "u:g", "/w", (50, 132), True)
        assert records(command.frame()[8:]) == [
            (1, b"p"), (2, b"A=b=c"), (3, b"/w"), (4, b"u:g"), (7, b"\1"),
            (11, struct.pack("<HH", 50, 132)),
        ]  # fmt: skip
        assert records(Command(["p"], tty=True).frame()[8:])[-1] == (11, struct.pack("<HH", 24, 80))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"argv": "ls -l"}, "exec: give the program and its arguments as a list"),
            ({"argv": []}, "exec: give the program and its arguments as a list"),
            (
                {"argv": ["p" * (16 << 20)]},
                "exec: arguments and environment of 16777233 bytes: at most 16777216",
            ),
            (
                {"argv": ["p"], "env": {"a=b": "c"}},
                "environment variable 'a=b': not a usable name or value",
            ),
            (
                {"argv": ["p"], "workdir": "here"},
                "workdir 'here': must be an absolute path in the guest",
            ),
        ],
    )
    def test_what_cannot_be_meant(self, options, message):
        with pytest.raises(UsageError) as caught:
            Command(**options)
        assert str(caught.value) == message


class TestExec:
    def test_to_the_end(self, start: Start) -> None:
        sock, agent = start(
            GREETING, CONFIG, BEGUN, frame(STDOUT, b"out"), frame(STDERR, b"err"),
            STDIN, taken(2), over(3),
        )  # fmt: skip
        command = Command(["p"], stdin=True)
        result = exec_(sock, command, sources=[Input(b"in")], limit=100)
        agent.join()
        assert result == ExecResult(3, b"out", b"err", usage=Usage(*COUNTS, 0), seconds=2.5)
        assert agent.heard == [(CONFIG, command.frame()[8:]), (STDIN, b"in")]

    def test_more_than_is_kept(self, start: Start) -> None:
        sock, _ = start(GREETING, BEGUN, frame(STDOUT, b"12345"), frame(STDERR, b"1234"), over())
        result = exec_(sock, Command(["p"]), limit=4)
        assert (result.stdout, result.stderr, result.truncated) == (b"1234", b"1234", ["stdout"])

    def test_that_cannot_be_started(self, start: Start) -> None:
        sock, _ = start(GREETING, frame(FAILED, struct.pack("<I", 127) + b"no p"), frame(END))
        assert exec_(sock, Command(["p"]), limit=9) == ExecResult(127, failure="no p")

    def test_killed_when_it_is_late(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pyvmm.agent.process.KILL_GRACE", 60.0)
        sock, agent = start(GREETING, BEGUN, frame(STDOUT, b"a"), CONFIG, KILL, over(137, 9))
        result = exec_(sock, Command(["p"]), limit=9, timeout=0.1)
        agent.join()
        assert (result.exit_code, result.signal, result.timed_out) == (124, 0, True)
        assert result.stdout == b"a"
        assert agent.heard[1:] == [(KILL, struct.pack("<I", 9))]

    @pytest.mark.parametrize(
        ("said", "message"),
        [
            (b"", "the guest's agent takes no more sessions, or the machine ended"),
            (GREETING[:-1], "the guest's agent takes no more sessions, or the machine ended"),
            (GREETING, "the machine ended"),
            (GREETING + BEGUN + over()[:-1], "the machine ended"),
            (BEGUN, "the guest's agent began with frame type 2, not HELLO"),
            (
                frame(HELLO, struct.pack("<IIQQ", 7, 1, 1, 1)),
                "the guest's agent speaks protocol 7, not 2",
            ),
            (frame(HELLO, b""), "the guest's agent sent a short frame of type 1"),
            (struct.pack("<IHH", 65537, 3, 0), "the guest's agent sent a frame of 65537 bytes"),
            (GREETING + frame(77), "the guest's agent sent an unknown frame type 77"),
            (GREETING + BEGUN + BEGUN, "the guest's agent sent frame type 2 twice"),
            (GREETING + over()[:-8] + BEGUN, "the guest's agent sent frame type 2 after EXIT"),
            (
                GREETING + frame(FILE_BEGIN, bytes(16)),
                "the guest's agent sent output number 0: not asked for",
            ),
            (GREETING + frame(FAILED, bytes(4)), "the guest's agent sent failure code 0"),
        ],
    )
    def test_agents_that_are_not_ours(self, start: Start, said: bytes, message: str) -> None:
        for run in (run_blocking, run_async, run_process):
            sock, _ = start(CONFIG, said)
            with pytest.raises(GuestError) as caught:
                run(sock)
            assert str(caught.value) == message


def run_blocking(sock: socket.socket) -> ExecResult:
    return exec_(sock, Command(["p"]), limit=9)


def run_async(sock: socket.socket) -> ExecResult:
    return asyncio.run(exec_async(sock, Command(["p"]), input=None, limit=9))


def run_process(sock: socket.socket) -> ExecResult:
    with Process(sock, Command(["p"]), limit=9) as process:
        return process.wait()


class TestProcess:
    def test_talk(self, start: Start) -> None:
        sock, agent = start(
            GREETING, CONFIG, BEGUN, frame(STDOUT, b"1"), STDIN, frame(STDERR, b"2"), RESIZE, KILL,
            frame(STDOUT, b"rest"), frame(STDERR, b"r"), frame(STDOUT, b"!"), over(143, 15),
        )  # fmt: skip
        with Process(sock, Command(["p"], tty=True, stdin=True), limit=100) as process:
            parts = iter(process)
            assert next(parts) == ("stdout", b"1")
            process.write(b"in")
            assert next(parts) == ("stderr", b"2")
            process.close_stdin()
            process.resize(1, 2)
            process.kill(signal.SIGTERM)
            result = process.wait()
        agent.join()
        assert (result.exit_code, result.signal) == (143, 15)
        assert (result.stdout, result.stderr) == (b"rest!", b"r")
        assert agent.heard[1:] == [
            (STDIN, b"in"), (STDIN, b""), (RESIZE, struct.pack("<HH", 1, 2)),
            (KILL, struct.pack("<I", 15)),
        ]  # fmt: skip

    def test_writing_waits_for_the_window(self, start: Start) -> None:
        sock, agent = start(GREETING, BEGUN, *[STDIN] * 4, taken(65536), STDIN, STDIN, over())
        data = bytes(range(256)) * ((STDIN_WINDOW + 65536) // 256)
        with Process(sock, Command(["p"], stdin=True), limit=9) as process:
            process.write(data)
            assert process._room() == 0
            process.close_stdin()
            process.wait()
        agent.join()
        assert [len(payload) for _, payload in agent.heard[1:]] == [65536] * 5 + [0]
        assert b"".join(payload for _, payload in agent.heard[1:]) == data

    def test_what_nobody_reads_is_bounded(self, start: Start) -> None:
        flood = frame(STDOUT, b"12345") * 3 + frame(STDERR, b"67") + frame(STDOUT, b"8")
        sock, _ = start(GREETING, BEGUN, flood, over())
        with Process(sock, Command(["p"]), limit=9) as process:
            result = process.wait()
        assert (result.stdout, result.stderr) == (b"123451234", b"67")
        assert result.truncated == ["stdout"]

    def test_ended_while_others_wait(self, start: Start) -> None:
        """A thread writes without a window, one reads; the machine goes."""
        sock, _ = start(GREETING, BEGUN, STDIN)
        errors: list[str] = []
        with Process(sock, Command(["p"], stdin=True), limit=9) as process:

            def attempt(action: Callable[[], object]) -> None:
                try:
                    action()
                except GuestError as e:
                    errors.append(str(e))

            actions = (lambda: process.write(bytes(1 << 20)), lambda: list(process), process.wait)
            threads = [threading.Thread(target=attempt, args=(action,)) for action in actions]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        assert errors == ["the machine ended"] * 3

    def test_closed_by_another_thread(self, start: Start) -> None:
        sock, _ = start(GREETING, BEGUN, frame(STDOUT, b"up"), CONFIG, STDIN)
        process = Process(sock, Command(["p"], stdin=True), limit=9)
        parts = iter(process)
        assert next(parts) == ("stdout", b"up")
        closer = threading.Timer(0.2, lambda: (process.close_stdin(), process.close()))
        closer.start()
        with pytest.raises(GuestError, match=r"^the process was closed$|^the machine ended$"):
            next(parts)
        closer.join()

    @pytest.mark.parametrize("number", [0, 65, -1])
    def test_what_is_no_signal(self, start: Start, number: int) -> None:
        sock, _ = start(GREETING, BEGUN, CONFIG, over())
        with Process(sock, Command(["p"]), limit=9) as process:
            with pytest.raises(ValueError, match=rf"^signal {number}: must be 1 to 64$"):
                process.kill(number)
            assert process.wait().exit_code == 0

    def test_what_is_no_size(self) -> None:
        with pytest.raises(UsageError, match=r"^tty 0 x 70000: rows and columns must be 1 to 6"):
            Command(["p"], tty=True).resize(0, 70000)

    def test_resize_without_a_terminal(self, start: Start) -> None:
        sock, _ = start(GREETING, BEGUN, CONFIG, over())
        with Process(sock, Command(["p"]), limit=9) as process:
            with pytest.raises(UsageError, match=r"^the program has no terminal$"):
                process.resize(1, 2)
            assert process.wait().exit_code == 0


class TestAsync:
    def test_to_the_end(self, start: Start) -> None:
        sock, agent = start(
            GREETING, CONFIG, BEGUN, frame(STDOUT, b"out"), STDIN, STDIN, taken(2), over(3)
        )
        command = Command(["p"], stdin=True)
        result = asyncio.run(exec_async(sock, command, input=b"in", limit=100))
        agent.join()
        assert result == ExecResult(3, b"out", usage=Usage(*COUNTS, 0), seconds=2.5)
        assert agent.heard == [(CONFIG, command.frame()[8:]), (STDIN, b"in"), (STDIN, b"")]

    def test_killed_when_it_is_late(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pyvmm.agent.aio.KILL_GRACE", 60.0)
        sock, agent = start(GREETING, BEGUN, frame(STDOUT, b"a"), CONFIG, KILL, over(137, 9))
        result = asyncio.run(exec_async(sock, Command(["p"]), input=None, limit=9, timeout=0.1))
        agent.join()
        assert (result.exit_code, result.timed_out, result.stdout) == (124, True, b"a")
        assert agent.heard[1:] == [(KILL, struct.pack("<I", 9))]

    def test_talk(self, start: Start) -> None:
        sock, agent = start(
            GREETING, CONFIG, BEGUN, frame(STDOUT, b"1"), STDIN, frame(STDERR, b"2"), RESIZE,
            frame(STDOUT, b"rest"), over(),
        )  # fmt: skip

        async def talk() -> tuple[list[tuple[str, bytes]], bytes]:
            command = Command(["p"], tty=True, stdin=True)
            async with await AsyncProcess.start(sock, command, limit=9) as process:
                parts = aiter(process)
                found = [await anext(parts)]
                await process.write(b"in")
                found.append(await anext(parts))
                await process.resize(1, 2)
                return found, (await process.wait()).stdout

        found, rest = asyncio.run(talk())
        agent.join()
        assert (found, rest) == ([("stdout", b"1"), ("stderr", b"2")], b"rest")
        assert agent.heard[1:] == [(STDIN, b"in"), (RESIZE, struct.pack("<HH", 1, 2))]


class TestConnection:
    def test_frames(self, start: Start) -> None:
        sock, agent = start(GREETING + frame(5, b"x", 3), 7, frame(6), frame(END))
        with Connection(sock) as connection:
            frames = connection.frames()
            assert next(frames) == (5, 3, b"x")
            connection.send(7, b"payload")
            assert list(frames) == [(6, 0, b"")]
        agent.join()
        assert agent.heard == [(7, b"payload")]

    def test_failure(self, start: Start) -> None:
        sock, _ = start(GREETING + frame(FAILED, struct.pack("<I", 125) + b"why \xff"))
        with Connection(sock) as connection:
            frames = connection.frames()
            with pytest.raises(GuestError, match=r"^why \ufffd$"):
                next(frames)

    def test_no_greeting(self, start: Start) -> None:
        sock, _ = start(frame(END))
        with pytest.raises(GuestError, match=r"^the guest's agent began with frame type 10"):
            Connection(sock)


class TestSources:
    def test_piped_within_the_window(self):
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        piped = Piped(reader)
        assert piped.frames(0) == b""
        assert piped.fd == reader
        assert os.write(writer, bytes(100)) == 100
        piped.ready = True
        assert piped.frames(0) == frame(STDIN, bytes(100))
        assert piped.frames(0) == b""  # not known to be readable
        sent = 100
        while piped.fd >= 0:
            os.write(writer, bytes(4096))
            piped.ready = True
            sent += len(piped.frames(0)) - 8
        assert sent == STDIN_WINDOW
        assert piped.frames(10) == b""
        assert piped.fd == reader
        os.close(writer)
        piped.ready = True
        while piped.frames(sent) != frame(STDIN):
            piped.ready = True
        assert piped.fd == -1
        os.close(reader)

    def test_piped_from_what_is_no_descriptor(self):
        piped = Piped(9999)
        piped.frames(0)
        piped.ready = True
        assert piped.frames(0) == frame(STDIN)
        assert piped.fd == -1

    def test_mailbox(self):
        box = Mailbox()
        box.put(b"a")
        box.put(b"b")
        assert bool(box)
        assert (box.frames(0), box.frames(0), bool(box)) == (b"ab", b"", False)
        box.close()

    def test_signals(self):
        before = signal.getsignal(signal.SIGTERM)
        with Signals([signal.SIGTERM], lambda: (3, 4)) as told:
            assert told.frames(0) == b""
            for number in (signal.SIGTERM, signal.SIGWINCH):
                signal.raise_signal(number)
            told.ready = True
            kill = frame(KILL, struct.pack("<I", 15))
            assert told.frames(0) == kill + frame(RESIZE, struct.pack("<HH", 3, 4))
        assert signal.getsignal(signal.SIGTERM) == before


class Recorded(threading.Thread):
    """A session's other end, that of a recording: hears exactly what its host said, or closes."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        super().__init__(daemon=True)
        self.sock, self.turns = sock, EXCHANGES[name]
        self.heard = b""
        self.start()

    @property
    def host(self) -> bytes:
        return b"".join(data for who, data in self.turns if who == HOST)

    def run(self) -> None:
        with self.sock:
            for who, data in self.turns:
                if who == GUEST:
                    self.sock.sendall(data)
                    continue
                until = len(self.heard) + len(data)
                while len(self.heard) < until:
                    self.heard += self.sock.recv(until - len(self.heard))
                if not self.host.startswith(self.heard):
                    return


class TestRecorded:
    """What a host says in a real session, and what becomes of what a guest says (recorded.py)."""

    @staticmethod
    def start(name: str, *argv: str, **how: object) -> tuple[Process, Recorded]:
        ours, theirs = socket.socketpair()
        agent = Recorded(theirs, name)
        return Process(ours, Command(argv, stdin=True, **how), limit=999), agent  # type: ignore[arg-type]

    def test_session(self):
        script = 'read line; echo "$line $A"; exec sleep 1000'
        process, agent = self.start("session", "sh", "-c", script)
        with process:
            process.write(b"line\n")
            assert next(iter(process)) == ("stdout", b"line 1\n")
            process.kill(signal.SIGTERM)
            result = process.wait()
        agent.join(60)
        assert agent.heard == agent.host
        assert (result.exit_code, result.signal, result.stdout) == (143, 15, b"")

    def test_terminal(self):
        script = (
            'trap "stty size; exit 0" WINCH; stty -echo; stty size; read line; '
            "while :; do sleep 1; done"
        )
        process, agent = self.start("terminal", "sh", "-c", script, tty=True)
        with process:
            parts = iter(process)
            assert next(parts) == ("stdout", b"24 80\r\n")
            process.write(b"line\r")
            process.resize(50, 132)
            assert list(parts) == [("stdout", b"50 132\r\n")]
            assert process.wait().exit_code == 0
        agent.join(60)
        assert agent.heard == agent.host

    @pytest.mark.parametrize(
        ("name", "code", "failure"),
        [
            ("failure", 127, 'exec: "nothing-here": executable file not found in $PATH'),
            ("session that fails", 126, 'exec: "/etc/passwd": permission denied'),
        ],
    )
    def test_failures(self, name, code, failure):
        session = Session([], 0)
        session.feed(b"".join(data for who, data in EXCHANGES[name] if who == GUEST))
        assert session.end
        assert (session.result.exit_code, session.result.failure) == (code, failure)

    def test_main(self):
        session = Session(["/none"], 99)
        session.feed(b"".join(data for who, data in EXCHANGES["main"] if who == GUEST))
        result = session.finish()
        assert session.end
        assert (result.exit_code, result.stdout, result.stderr) == (3, b"line 1\n", b"err\n")
        assert result.missing == {"/none": "No such file or directory"}
        assert session.stdin_taken == 5


def test_terminal_is_restored_whatever_happens() -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)

    def lend() -> None:
        with terminal.raw(theirs):
            local = termios.tcgetattr(theirs)[3]
            assert local & (termios.ECHO | termios.ICANON | termios.ISIG) == 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lend()
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_keys_need_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", {0: False}.__getitem__)
    with pytest.raises(UsageError, match=r"^stdin is no terminal: leave out --tty \(-t\)$"):
        terminal.size(keys=True)
    monkeypatch.setattr(os, "isatty", {0: True}.__getitem__)
    assert terminal.size(keys=True) == terminal.size()


class TestMachine:
    """One that does not run."""

    @pytest.mark.parametrize(
        "act",
        [
            lambda m: m.exec(["true"]),
            lambda m: asyncio.run(m.exec_async(["true"])),
            lambda m: m.popen(["true"]),
            lambda m: m.files.read("/x"),
            lambda m: m.vsock,
            lambda m: m.wait_for("port=1"),
            lambda m: m.wait(),
        ],
    )
    def test_not_started(self, act: Callable[[pyvmm.Machine], object]) -> None:
        with pytest.raises(UsageError) as caught:
            act(pyvmm.Machine("none"))
        assert str(caught.value) == (
            "the machine has not been started: start() it, or use it in a with block"
        )

    def test_over(self) -> None:
        machine = pyvmm.Machine("none")
        machine._channel, theirs = socket.socketpair()
        theirs.close()
        machine.kill()
        with pytest.raises(ConnectionResetError, match="the machine has ended"):
            _ = machine.vsock

    def test_waited_for(self) -> None:
        machine = pyvmm.Machine("none")
        machine._waited = True
        with pytest.raises(GuestError, match=r"^the machine has ended: wait\(\) for it once"):
            machine.wait()

    @pytest.mark.parametrize("late", [False, True])
    def test_sessions_end_with_the_program(self, late: bool) -> None:
        """Also those that came too late for the agent, and would wait for ever."""
        machine = pyvmm.Machine("none")
        run = machine._exchanging = cast(Exchange, SimpleNamespace(on_end=[], over=late))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(b"what has come")
            machine._keep(ours)
            if not late:
                (tell,) = run.on_end
                tell()
            assert ours.recv(100) == b"what has come"
            assert ours.recv(100) == b""
