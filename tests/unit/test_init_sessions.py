"""Sessions: what else the host asks of a guest whose program runs (init/session.c)."""

from __future__ import annotations

import pytest

from .init_guest import (
    ARG,
    CONFIG,
    END,
    EXIT,
    HELLO,
    STARTED,
    STDERR,
    STDIN,
    STDIN_PIPE,
    STDOUT,
    Guest,
    frame,
    record,
)  # fmt: skip


@pytest.fixture
def busy(guest):
    """A guest whose program waits for a line, "go", to end with 7."""

    def start(records: bytes = b"", script: str = "read line; exit 7") -> Guest:
        g = guest()
        words = b"".join(record(ARG, a) for a in ("/bin/sh", "-c", script))
        g.send(frame(CONFIG, words + record(STDIN_PIPE, 1) + records))
        g.until(STARTED)
        return g

    return start


def let_go(g: Guest) -> None:
    g.send(frame(STDIN, b"go\n"))
    assert g.finish().exit["code"] == 7


def test_a_program(busy) -> None:
    g = busy()
    s = g.session("sh", "-c", "echo out; echo err >&2; exit 3")
    r = s.end()
    kinds = [k for k, _, _ in r.frames]
    assert kinds[:2] == [HELLO, STARTED]
    assert sorted(kinds[2:4]) == [STDOUT, STDERR]
    assert kinds[4:] == [EXIT, END]
    assert (r.stdout, r.stderr) == (b"out\n", b"err\n")
    assert (r.exit["code"], r.exit["signal"]) == (3, 0)
    s.sock.close()
    let_go(g)
    assert g.run.console == ""
    assert g.run.marks == b"\x01\x02\x03"
