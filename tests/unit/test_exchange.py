"""The host's half of the agent protocol: its frames, how far ahead it sends input, several runs."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from threading import Thread

import pytest

from pyvmm import results
from pyvmm.config import Config
from pyvmm.errors import GuestError
from pyvmm.exchange import (
    AGAIN,
    CONFIG,
    KILL,
    STDIN,
    STDIN_WINDOW,
    Exchange,
    Input,
    config_frame,
    frame,
)
from pyvmm.plan import Program
from pyvmm.results import END, EXIT, FILE_BEGIN, FILE_DATA, FILE_END, HELLO, STARTED, STDOUT


class TestInput:
    def test_small_input_and_its_end(self):
        given = Input(b"abc")
        assert given.frames(0) == frame(STDIN, b"abc") + frame(STDIN)
        assert given.frames(3) == b""

    def test_no_input_is_just_an_end(self):
        given = Input(b"")
        assert given.frames(0) == frame(STDIN)
        assert given.frames(0) == b""

    @staticmethod
    def payload(frames: bytes) -> tuple[bytes, bool]:
        """The data in STDIN frames, and whether their end is among them."""
        data, end = b"", False
        while frames:
            length, kind, index = struct.unpack_from("<IHH", frames)
            assert (kind, index) == (STDIN, 0)
            assert length <= 65536
            assert not end
            end = length == 0
            data += frames[8 : 8 + length]
            frames = frames[8 + length :]
        return data, end

    def test_never_more_than_the_window_ahead(self):
        rng = random.Random(3)
        whole = rng.randbytes(1_000_000)
        given, sent, taken, ended = Input(whole), b"", 0, False
        while not ended:
            data, ended = self.payload(given.frames(taken))
            sent += data
            assert len(sent) - taken <= STDIN_WINDOW
            assert sent == whole or len(sent) - taken == STDIN_WINDOW
            taken = min(len(sent), taken + rng.randint(0, 100_000))
        assert sent == whole

    def test_guest_that_claims_more_than_was_sent(self):
        given = Input(bytes(300_000))
        assert len(self.payload(given.frames(2**64))[0]) == 300_000


def test_config_frame():
    raw = config_frame(
        ["prog", "ä"], ["K=V"], workdir="/w", user="", hostname="h", outputs=["/o"], stdin=True,
        privileged=False, clock_ns=5, limit=6,
    )  # fmt: skip
    length, kind, index = struct.unpack_from("<IHH", raw)
    assert (length, kind, index) == (len(raw) - 8, CONFIG, 0)
    records, at = [], 8
    while at < len(raw):
        key, zero, size = struct.unpack_from("<HHI", raw, at)
        assert zero == 0
        records.append((key, raw[at + 8 : at + 8 + size]))
        at += 8 + size
    assert records == [
        (1, b"prog"), (1, "ä".encode()), (2, b"K=V"), (6, b"/o"), (3, b"/w"), (5, b"h"),
        (7, b"\1"), (8, b"\0"), (9, struct.pack("<Q", 5)), (10, struct.pack("<Q", 6)),
    ]  # fmt: skip


def test_config_frame_of_a_terminal_and_of_nothing():
    raw = config_frame([], [], tty=(24, 80), hold=True, ports=[80, 443])
    rest = b"".join(
        struct.pack("<HHI", key, 0, len(value)) + value
        for key, value in [
            (7, b"\0"), (11, struct.pack("<HH", 24, 80)), (12, b"\1"), (13, struct.pack("<H", 80)),
            (13, struct.pack("<H", 443)),
        ]
    )  # fmt: skip
    assert raw == struct.pack("<IHH", len(rest), CONFIG, 0) + rest


class Agent(Thread):
    """A guest's side: one script a run, of frames to wait for (their type) and bytes to say."""

    def __init__(self, connection: socket.socket, *runs: list[int | bytes]) -> None:
        super().__init__(daemon=True)
        self.connection = connection
        self.runs = runs
        self.heard: list[list[tuple[int, bytes]]] = []

    def run(self) -> None:
        stream = self.connection.makefile("rb")
        for run in self.runs:
            self.heard.append([])
            for step in run:
                if isinstance(step, bytes):
                    self.connection.sendall(step)
                    continue
                kind = None
                while kind != step:
                    length, kind, _ = struct.unpack("<IHH", stream.read(8))
                    self.heard[-1].append((kind, stream.read(length)))


def said(text: bytes, contents: bytes | None = None, start: int = 50, code: int = 0) -> bytes:
    """A run's frames after HELLO; start and end in ns."""
    file = b""
    if contents is not None:
        file = frame(FILE_BEGIN, struct.pack("<iIQ", 0, 0o100644, 0)) + frame(FILE_DATA, contents)
        file += frame(FILE_END, struct.pack("<i", 0))
    end = struct.pack("<II12Q", code, 0, start + 7, *[start] * 10, 0)
    return (
        frame(STARTED, struct.pack("<Q", start)) + frame(STDOUT, text) + frame(EXIT, end) + file
        + frame(END)
    )  # fmt: skip


GREETING = frame(HELLO, struct.pack("<IIQQ", 2, 2, 11, 500 << 20))


class TestAgain:
    @pytest.fixture
    def ends(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            yield ours, theirs

    @staticmethod
    def exchange(ours: socket.socket, **options: object) -> Exchange:
        config = Config("image", **options)  # type: ignore[arg-type]
        return Exchange(ours, config, Program(["p"], [], "", ""), None)

    def test_each_run_is_new(self, ends) -> None:
        ours, theirs = ends
        exchange = self.exchange(ours, outputs=["/f"], stdin=b"in")
        last = [STDIN, STDIN]  # its bytes, its end
        agent = Agent(
            theirs,
            [GREETING, CONFIG, *last, said(b"one", b"file", 100, 3)],
            [AGAIN, *last, said(b"two", None, 200)],
            [AGAIN, *last, said(b"three", b"new", 300)],
        )
        agent.start()
        found = []
        for number in range(3):
            assert exchange.again() if number else exchange.run()
            result = exchange.session.finish()
            found.append((result.exit_code, result.stdout, result.files, result.missing))
            start = 100 * (number + 1)
            assert (exchange.session.started_ns, exchange.session.ended_ns) == (start, start + 7)
            assert result.usage == results.Usage(*[start] * 10, 0)
            assert result.cpus == 2
        agent.join(60)
        missing = {"/f": "the run ended before it was sent"}
        assert found == [
            (3, b"one", {"/f": b"file"}, {}),
            (0, b"two", {}, missing),
            (0, b"three", {"/f": b"new"}, {}),
        ]
        sent = [(STDIN, b"in"), (STDIN, b"")]
        assert agent.heard[0][0][0] == CONFIG
        assert agent.heard[0][1:] == sent
        assert agent.heard[1:] == [[(AGAIN, b""), *sent]] * 2

    def test_after_a_time_out(self, ends, monkeypatch) -> None:
        monkeypatch.setattr("pyvmm.exchange.KILL_GRACE", 60.0)
        ours, theirs = ends
        exchange = self.exchange(ours, timeout=0.1)
        killed = frame(EXIT, struct.pack("<II12Q", 137, 9, 60, *[0] * 11)) + frame(END)
        agent = Agent(
            theirs,
            [GREETING, CONFIG, frame(STARTED, struct.pack("<Q", 50)), KILL, killed],
            [AGAIN, said(b"fine")],
        )
        agent.start()
        assert exchange.run()
        assert exchange.session.result.timed_out
        assert exchange.again()
        agent.join(60)
        result = exchange.session.finish()
        assert (result.timed_out, result.exit_code, result.stdout) == (False, 0, b"fine")
        assert agent.heard[0][1:] == [(KILL, struct.pack("<I", 9))]
        assert agent.heard[1] == [(AGAIN, b"")]

    def test_guest_that_is_gone(self, ends) -> None:
        ours, theirs = ends
        exchange = self.exchange(ours)
        theirs.sendall(GREETING + said(b"one"))
        assert exchange.run()
        theirs.close()
        assert not exchange.again()
        assert exchange.closed

    def test_guest_that_is_silent(self, ends) -> None:
        ours, theirs = ends
        exchange = self.exchange(ours, boot_timeout=0.1)
        theirs.sendall(GREETING + said(b"one"))
        assert exchange.run()
        assert not exchange.again()
        assert not exchange.closed

    def test_more_after_the_end(self, ends) -> None:
        ours, theirs = ends
        exchange = self.exchange(ours)
        theirs.sendall(GREETING + said(b"one") + frame(STARTED, bytes(8)))
        assert exchange.run()
        with pytest.raises(GuestError, match=r"^the guest's agent sent more after END$"):
            exchange.again()

    def test_hello_again(self, ends) -> None:
        ours, theirs = ends
        exchange = self.exchange(ours)
        theirs.sendall(GREETING + said(b"one"))
        assert exchange.run()
        theirs.sendall(GREETING)
        with pytest.raises(GuestError, match=r"^the guest's agent sent frame type 1 twice$"):
            exchange.again()
