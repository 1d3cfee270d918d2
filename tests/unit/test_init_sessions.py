"""Sessions: what else the host asks of a guest whose program runs (init/session.c)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
from pathlib import Path

import pytest

from .init_guest import (
    AGAIN,
    ARG,
    BURN,
    CONFIG,
    END,
    ENV,
    EXIT,
    FAILED,
    HELLO,
    HOLD,
    HOSTNAME,
    KILL,
    OUTPUT,
    PORT,
    PROBE,
    STARTED,
    STDERR,
    STDIN,
    STDIN_PIPE,
    STDOUT,
    TAKEN,
    USER,
    WORKDIR,
    Connection,
    Guest,
    Run,
    frame,
    record,
)  # fmt: skip


def records_of(*args: str) -> bytes:
    return b"".join(record(ARG, a) for a in args)


@pytest.fixture
def busy(guest):
    """A guest whose program waits for a line, to end with 7."""

    def start(records: bytes = b"", script: str = "read line; exit 7") -> Guest:
        g = guest()
        config = records_of("/bin/sh", "-c", script) + record(STDIN_PIPE, 1) + records
        g.send(frame(CONFIG, config))
        g.until(STARTED)
        return g

    return start


@pytest.fixture
def held(guest):
    """A guest without a program."""

    def start(records: bytes = b"") -> Guest:
        g = guest()
        g.send(frame(CONFIG, record(HOLD, 1) + records))
        g.until(STARTED)
        return g

    return start


def let_go(g: Guest) -> Run:
    g.send(frame(STDIN, b"go\n"))
    r = g.finish()
    assert r.exit["code"] == 7
    assert r.console == ""
    return r


def shell(g: Guest, script: str, records: bytes = b"") -> Run:
    """A session from its beginning to its end."""
    s = g.session("/bin/sh", "-c", script, records=records)
    s.end()
    s.sock.close()
    return s.run


def alone(g: Guest) -> None:
    """Waits until nothing runs but init, and a session's process, shell and ps."""
    while shell(g, "ps -eo comm=; exit").stdout.split() != [b"harness", b"harness", b"sh", b"ps"]:
        time.sleep(0.05)


def kill(number: int) -> bytes:
    return frame(KILL, struct.pack("<I", number))


def gone(s: Connection) -> None:
    """The guest closes, and has not said END."""
    s.end()
    assert END not in [k for k, _, _ in s.run.frames]


# A program


def test_a_program(busy) -> None:
    g = busy()
    r = shell(g, "echo out; echo err >&2; exit 3")
    kinds = [k for k, _, _ in r.frames]
    assert kinds[:2] == [HELLO, STARTED]
    assert sorted(kinds[2:4]) == [STDOUT, STDERR]
    assert kinds[4:] == [EXIT, END]
    assert (r.stdout, r.stderr) == (b"out\n", b"err\n")
    assert (r.exit["code"], r.exit["signal"]) == (3, 0)
    let_go(g)
    assert g.run.marks == b"\x01\x02\x03"


def test_hello_is_the_machines(busy) -> None:
    g = busy()
    assert g.session().receive() == g.run.frames[0]
    let_go(g)


def test_what_is_inherited(busy) -> None:
    records = [
        record(ENV, "A=main"), record(ENV, "B=main"), record(WORKDIR, "/w"),
        record(USER, "alice"), record(HOSTNAME, "box"),
    ]  # fmt: skip
    g = busy(b"".join(records))
    script = "pwd; id -un; env | grep -E '^(A|B|C|HOME|HOSTNAME|TERM)=' | sort"
    mine = "HOME=/home/alice\nHOSTNAME=box\nTERM=xterm\n"
    assert shell(g, script).stdout.decode() == f"/w\nalice\nA=main\nB=main\n{mine}"
    own = record(ENV, "B=own") + record(ENV, "C=own") + record(WORKDIR, "/") + record(USER, "")
    theirs = "HOME=/root\nHOSTNAME=box\nTERM=xterm\n"
    assert shell(g, script, own).stdout.decode() == f"/\nroot\nA=main\nB=own\nC=own\n{theirs}"
    let_go(g)


def test_confined_as_the_program(busy) -> None:
    g = busy()
    r = shell(
        g,
        "grep -E '^(CapBnd|NoNewPrivs|Seccomp|SigBlk):' /proc/self/status; umask; ls /proc/self/fd",
    )
    assert r.stdout.split() == [
        b"SigBlk:", b"0" * 16, b"CapBnd:", b"0" * 16, b"NoNewPrivs:", b"1",
        b"Seccomp:", b"2", b"0022", b"0", b"1", b"2", b"3",
    ]  # fmt: skip
    let_go(g)


def test_stdin(busy) -> None:
    g = busy()
    s = g.session("cat", records=record(STDIN_PIPE, 1))
    s.until(STARTED)
    s.send(frame(STDIN, b"hello"))
    assert s.until(STDOUT) == b"hello"
    s.send(frame(STDIN, b" world") + frame(STDIN))
    r = s.end()
    assert r.stdout == b"hello world"
    assert sum(struct.unpack("<I", p)[0] for p in r.of(TAKEN)) == 11
    let_go(g)


def test_large_output_of_many_at_once(busy, root: Path) -> None:
    g = busy()
    data = os.urandom(1 << 20)
    (root / "data").write_bytes(data)
    sessions = [g.session("cat", "/data", "/data") for _ in range(8)]
    for s in sessions:
        assert s.end().stdout == data * 2
    let_go(g)


def test_usage_is_its_own(busy) -> None:
    g = busy()

    def used(r: Run) -> int:
        return r.exit["user_us"] + r.exit["system_us"]

    assert used(shell(g, BURN)) >= 1_000_000
    assert used(shell(g, "true")) < 1_000_000
    s = g.session("/bin/sh", "-c", f"{BURN}; sleep 1000 & {BURN}; echo burnt; wait")
    s.until(STDOUT)
    r = let_go(g)  # which kills that one
    assert used(r) < 1_000_000
    assert r.exit["peak_rss"] < 5_000_000


@pytest.mark.parametrize(
    ("args", "records", "failed"),
    [
        (("nothing-here",), b"", (127, 'exec: "nothing-here": executable file not found in $PATH')),
        (("/etc/passwd",), b"", (126, 'exec: "/etc/passwd": permission denied')),
        (("id",), record(WORKDIR, "relative"), (125, 'config: "relative" is not an absolute path')),
        (
            ("id",),
            record(USER, "nobody-here"),
            (125, "unable to find user nobody-here: no matching entries in passwd file"),
        ),
        (
            ("id",),
            record(OUTPUT, "/x"),
            (125, "config: a session has no outputs, ports or hold"),
        ),
        (("id",), record(99, ""), (125, "config: unknown key")),
    ],
)
def test_what_cannot_be(busy, args: tuple[str], records: bytes, failed: tuple[int, str]) -> None:
    """It fails alone, and nothing of it is on the console."""
    g = busy()
    s = g.session(*args, records=records)
    assert [k for k, _, _ in s.end().frames] == [HELLO, FAILED, END]
    assert s.run.failed == failed
    s.sock.close()
    let_go(g)


def test_no_command(busy) -> None:
    g = busy(record(ENV, "A=1"))
    s = g.connect(1024)
    s.send(frame(CONFIG, record(ENV, "B=2")))
    assert s.end().failed == (125, "no command specified")
    let_go(g)


@pytest.mark.parametrize(
    "data",
    [frame(AGAIN), frame(STDIN, b"x"), frame(99), struct.pack("<IHH", 65537, 99, 0), frame(PROBE)],
)
def test_wrong_opening_frame(busy, data: bytes) -> None:
    g = busy()
    s = g.connect(1024)
    s.send(data)
    gone(s)
    assert [k for k, _, _ in s.run.frames] == [HELLO]
    let_go(g)


@pytest.mark.parametrize("data", [frame(AGAIN), frame(CONFIG), frame(KILL), frame(5, bytes(4))])
def test_wrong_frame_while_running(busy, data: bytes) -> None:
    g = busy()
    s = g.session("sleep", "1000")
    s.until(STARTED)
    s.send(data)
    gone(s)
    let_go(g)


# Signals and ends


def test_kill_is_for_its_process_group(busy) -> None:
    g = busy()
    other = g.session("/bin/sh", "-c", "echo $$; sleep 1000")
    others = other.until(STDOUT)
    s = g.session(
        "/bin/sh", "-c",
        "trap 'echo term; exit 5' TERM; setsid sh -c 'echo $$; exec sleep 1000' & "
        "while :; do sleep 0.05; done",
    )  # fmt: skip
    own = s.until(STDOUT)
    s.send(kill(signal.SIGTERM))
    r = s.end()
    assert r.stdout == own + b"term\n"
    assert r.exit["code"] == 5
    s.sock.close()
    pids = b",".join((others + own).split()).decode()
    left = shell(g, f"ps -o stat= -o pid= -p {pids}").stdout.decode().split()
    assert left[1::2] == pids.split(",")
    assert "Z" not in "".join(left[::2])
    other.send(kill(signal.SIGKILL))
    assert other.end().exit["code"] == 137
    let_go(g)


def test_a_host_that_goes_away(busy) -> None:
    """It takes its program along, and nobody else."""
    g = busy()
    s = g.session("/bin/sh", "-c", "trap '' HUP TERM; echo up; sleep 1000 & wait")
    s.until(STDOUT)
    s.sock.close()
    while shell(g, "ps -eo comm= | grep -c '^sleep'").stdout != b"0\n":
        time.sleep(0.05)
    let_go(g)


def test_a_server_that_stays(busy, root: Path) -> None:
    """The session ends with its program; what that has started goes on, its output goes nowhere."""
    g = busy()
    (root / "spam").touch()
    spam = "while :; do echo spam; echo >> /spam; sleep 0.01; done"
    r = shell(g, f"(until [ -e /go ]; do sleep 0.01; done; {spam}) & echo $!; touch /go")
    pid = r.stdout.split()[0].decode()
    assert r.exit["code"] == 0
    before, deadline = (root / "spam").stat().st_size, time.monotonic() + 60
    while (root / "spam").stat().st_size < before + 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert shell(g, f"kill -0 {pid} && echo there").stdout == b"there\n"
    # Its parent is the session's process, which goes with it.
    parent = shell(g, f"ps -o ppid= -p {pid}").stdout.strip().decode()
    assert parent != "1"
    shell(g, f"kill {pid}")
    while shell(g, f"ps -o pid= -p {parent}").stdout:
        time.sleep(0.05)
    let_go(g)


def test_a_background_that_writes_without_end(busy) -> None:
    g = busy()
    r = shell(g, "(while :; do echo spam; done) & sleep 0.1; exit 9")
    assert r.exit["code"] == 9
    # Its end is where it was read to when the program was over: in the middle of a line, perhaps.
    assert r.stdout == (b"spam\n" * len(r.stdout))[: len(r.stdout)]
    let_go(g)


def test_all_that_was_written_is_sent(busy) -> None:
    g = busy()
    assert shell(g, "sleep 1000 & head -c 900000 /dev/zero").stdout == bytes(900_000)
    let_go(g)


def test_sessions_end_with_the_program(busy) -> None:
    g = busy()
    running = g.session("/bin/sh", "-c", "echo up; sleep 1000")
    running.until(STDOUT)
    waiting = g.session()
    waiting.until(HELLO)
    let_go(g)
    gone(running)
    gone(waiting)


def test_again(guest) -> None:
    g = guest()
    g.send(frame(CONFIG, records_of("/bin/sh", "-c", "read line; exit 7") + record(STDIN_PIPE, 1)))
    for _ in range(3):
        g.until(STARTED)
        left = g.session("sleep", "1000")
        left.until(STARTED)
        assert shell(g, "echo hi").stdout == b"hi\n"
        g.send(frame(STDIN, b"go\n"))
        assert g.end().exit["code"] == 7
        gone(left)
        g.again()
    g.until(STARTED)
    let_go(g)


def test_more_than_there_may_be(busy) -> None:
    """Those above the limit are closed; when one has ended there is room again."""
    g = busy()
    sessions = [g.session() for _ in range(256)]
    for s in sessions:
        s.until(HELLO)
    more = g.session()
    gone(more)
    assert more.run.frames == []
    sessions.pop().sock.close()
    while True:
        s = g.connect(1024)
        with contextlib.suppress(EOFError):
            s.until(HELLO)
            break
        time.sleep(0.05)
    s.send(frame(CONFIG, records_of("true")))
    assert s.end().exit["code"] == 0
    let_go(g)


# A machine that is held


def test_hold(held) -> None:
    g = held(record(ENV, "A=1"))
    assert [k for k, _, _ in g.run.frames] == [HELLO, STARTED]
    assert shell(g, "echo $A").stdout == b"1\n"
    alone(g)
    s = g.session("sleep", "1000")
    s.until(STARTED)
    g.close()
    gone(s)
    assert g.run.marks == b"\x01\x02"


def test_kill_in_a_held_machine(held) -> None:
    g = held()
    s = g.session("sleep", "1000")
    s.until(STARTED)
    g.send(kill(signal.SIGTERM))
    assert s.end().exit["signal"] == signal.SIGTERM
    assert shell(g, "echo still").stdout == b"still\n"
    g.close()


# Probes

SERVER = """
import socket, sys, time
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family)
s.bind((sys.argv[1], 8000))
print("bound", flush=True)
sys.stdin.readline()
s.listen()
time.sleep(1000)
"""


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0"])
def test_probe(held, address: str) -> None:
    if ":" in address and not socket.has_ipv6:
        pytest.skip("needs IPv6")
    g = held()
    server = g.session("/usr/bin/python3", "-c", SERVER, address, records=record(STDIN_PIPE, 1))
    assert server.until(STDOUT) == b"bound\n"
    probe = g.connect(1024)
    probe.send(frame(PROBE, struct.pack("<H", 8000)))
    assert probe.receive()[0] == HELLO
    probe.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        probe.receive()
    probe.sock.settimeout(60)
    server.send(frame(STDIN, b"listen\n"))
    assert probe.receive() == (END, 0, b"")
    probe.sock.close()
    g.close()


def test_a_probe_that_is_given_up(held) -> None:
    g = held()
    probe = g.connect(1024)
    probe.send(frame(PROBE, struct.pack("<H", 8000)))
    probe.until(HELLO)
    probe.sock.close()
    alone(g)
    g.close()


@pytest.mark.parametrize(
    "payload", [b"", b"\x01", b"\x01\x00\x00", b"\x00\x00"], ids=["0", "1", "3", "port 0"]
)
def test_wrong_probe(held, payload: bytes) -> None:
    g = held()
    probe = g.connect(1024)
    probe.send(frame(PROBE, payload))
    gone(probe)
    g.close()


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (record(HOLD, 2), "config: a flag is not 0 or 1"),
        (record(PORT, b"x"), "config: a port is not 2 bytes"),
        (record(PORT, b"\0\0"), "config: a port is 0"),
        (record(11, b"123"), "config: the terminal's size is not 4 bytes"),
    ],
)
def test_malformed_records(guest, payload: bytes, text: str) -> None:
    g = guest()
    g.send(frame(CONFIG, records_of("true") + payload))
    assert g.finish().failed == (125, text)
