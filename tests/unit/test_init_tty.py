"""A terminal for the program: the TTY record, RESIZE, and what the end of STDIN is there."""

from __future__ import annotations

import signal
import struct

import pytest

from .init_guest import (
    ARG,
    CONFIG,
    EXIT,
    HELLO,
    HOLD,
    KILL,
    RESIZE,
    STARTED,
    STDIN,
    STDIN_PIPE,
    STDOUT,
    TTY,
    USER,
    Connection,
    Guest,
    Run,
    frame,
    record,
)  # fmt: skip

SIZE = struct.pack("<HH", 30, 100)


@pytest.fixture(params=["run", "session"])
def begin(request: pytest.FixtureRequest, guest):
    """Runs a script on a terminal, as the machine's program and as a session's."""

    def start(script: str, records: bytes = b"") -> Connection:
        words = b"".join(record(ARG, a) for a in ("/bin/sh", "-c", script))
        config = frame(CONFIG, words + record(TTY, SIZE) + record(STDIN_PIPE, 1) + records)
        g: Guest = guest()
        if request.param == "run":
            g.send(config)
            return g
        g.send(frame(CONFIG, record(HOLD, 1)))
        g.until(STARTED)
        s = g.connect(1024)
        s.send(config)
        return s

    return start


def shown(c: Connection, text: bytes) -> None:
    """Reads until the terminal has shown it."""
    while text not in c.run.stdout:
        c.until(STDOUT)


def test_a_terminal(begin) -> None:
    c = begin("tty; stty size; echo err >&2; ps -o tty= -p $$; echo x > /dev/tty; exit 3")
    r: Run = c.end()
    assert r.stdout == b"/dev/pts/0\r\n30 100\r\nerr\r\npts/0\r\nx\r\n"
    assert r.stderr == b""
    assert r.exit["code"] == 3


def test_its_owner(begin) -> None:
    r = begin("stat -c '%u %g %a' $(tty); echo x > $(tty)", record(USER, "alice")).end()
    assert r.stdout == b"1000 5 620\r\nx\r\n"


def test_lines_and_keys(begin) -> None:
    wait = "while :; do sleep 0.05; done"
    c = begin(f"read line; echo \"<$line>\"; trap 'echo int; exit 4' INT; echo up; {wait}")
    c.until(STARTED)
    c.send(frame(STDIN, b"hellp\x7fo\r"))
    shown(c, b"<hello>\r\nup\r\n")
    c.send(frame(STDIN, b"\x03"))
    r = c.end()
    assert r.stdout == b"hellp\b \bo\r\n<hello>\r\nup\r\n^Cint\r\n"
    assert r.exit["code"] == 4


@pytest.mark.parametrize("data", [b"", b"line\n", b"begun", b"line\nbegun"])
def test_the_end_of_stdin_is_a_key(begin, data: bytes) -> None:
    c = begin("stty -echo; echo up; cat; echo over")
    shown(c, b"up\r\n")
    c.send((frame(STDIN, data) if data else b"") + frame(STDIN))
    r = c.end()
    assert r.stdout == b"up\r\n" + data.replace(b"\n", b"\r\n") + b"over\r\n"


def test_resize(begin) -> None:
    c = begin("trap 'stty size; exit 0' WINCH; echo up; while :; do sleep 0.05; done")
    shown(c, b"up\r\n")
    c.send(frame(RESIZE, struct.pack("<HH", 50, 132)))
    assert c.end().stdout == b"up\r\n50 132\r\n"


def test_raw_bytes(begin) -> None:
    data = bytes(range(256))
    c = begin("stty raw -echo; echo up; head -c 256 | od -An -v -tu1 -w1 | tr -d ' \\n'")
    shown(c, b"up\n")
    c.send(frame(STDIN, data))
    assert c.end().stdout == b"up\n" + "".join(map(str, data)).encode()


def test_much(begin) -> None:
    c = begin("stty -opost; seq 100000")
    assert c.end().stdout == b"".join(b"%d\n" % n for n in range(1, 100_001))


def test_kill(begin) -> None:
    c = begin("echo up; sleep 1000")
    shown(c, b"up\r\n")
    c.send(frame(KILL, struct.pack("<I", signal.SIGKILL)))
    assert c.end().exit["code"] == 137


def test_what_stays_on_a_terminal(begin) -> None:
    """A program that ends does not wait for others who have its terminal open."""
    c = begin("trap '' HUP; setsid sleep 1000 & echo last")
    r = c.end()
    assert r.stdout == b"last\r\n"
    assert r.exit["code"] == 0


@pytest.mark.parametrize("payload", [b"", bytes(3), bytes(5)])
def test_wrong_resize(begin, payload: bytes) -> None:
    c = begin("echo up; sleep 1000")
    shown(c, b"up\r\n")
    c.send(frame(RESIZE, payload))
    c.end()
    assert EXIT not in [k for k, _, _ in c.run.frames]


def test_resize_without_a_terminal(guest) -> None:
    g = guest()
    g.send(frame(CONFIG, record(ARG, "sleep") + record(ARG, "1000")))
    g.until(STARTED)
    g.send(frame(RESIZE, SIZE))
    assert [k for k, _, _ in g.finish().frames] == [HELLO, STARTED]
