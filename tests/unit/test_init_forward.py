"""Published ports: connections of the host's to TCP servers in the guest (init/forward.c)."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import struct

import pytest

from .init_guest import (
    ARG,
    CONFIG,
    HOLD,
    PORT,
    STARTED,
    STDIN_PIPE,
    STDOUT,
    Connection,
    Guest,
    frame,
    record,
)  # fmt: skip

# Serves what its argument says, on every address given; prints "up" when it does.
SERVER = """
import os, selectors, socket, sys

def echo(s):
    while data := s.recv(65536):
        s.sendall(data)
    s.shutdown(socket.SHUT_WR)

def count(s):
    total = 0
    while data := s.recv(65536):
        total += len(data)
    s.sendall(b"%d" % total)
    s.close()

def refuse(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
    s.close()

def first(s):  # ends its side, then reads on
    s.sendall(b"first")
    s.shutdown(socket.SHUT_WR)
    while s.recv(65536):
        pass
    print("read all", flush=True)

serve = {"echo": echo, "count": count, "refuse": refuse, "first": first}[sys.argv[1]]
address, port = sys.argv[2], int(sys.argv[3])
listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((address, port))
listener.listen(4096)
print("up", flush=True)
while True:
    s, _ = listener.accept()
    if not os.fork():
        serve(s)
        os._exit(0)
    s.close()
"""


def port_records(*ports: int) -> bytes:
    return b"".join(record(PORT, struct.pack("<H", p)) for p in ports)


@pytest.fixture
def held(guest):
    def start(*ports: int) -> Guest:
        g = guest()
        g.send(frame(CONFIG, record(HOLD, 1) + port_records(*ports)))
        g.until(STARTED)
        return g

    return start


def serve(g: Guest, how: str, port: int, address: str = "127.0.0.1") -> Connection:
    s = g.session("/usr/bin/python3", "-c", SERVER, how, address, str(port))
    assert s.until(STDOUT) == b"up\n"
    return s


def connect(g: Guest, port: int) -> socket.socket:
    return g.connect(65536 + port).sock


def whole(s: socket.socket) -> bytes:
    data = b""
    while got := s.recv(65536):
        data += got
    return data


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_both_directions_and_half_close(held, address: str) -> None:
    if ":" in address and not socket.has_ipv6:
        pytest.skip("needs IPv6")
    g = held(80, 8000)
    serve(g, "echo", 8000, address)
    data = os.urandom(3_000_000)
    s = connect(g, 8000)
    selector = selectors.DefaultSelector()
    selector.register(s, selectors.EVENT_READ | selectors.EVENT_WRITE)
    s.setblocking(False)
    sent, got = 0, b""
    while len(got) < len(data):
        for _, events in selector.select(60):
            if events & selectors.EVENT_WRITE and sent < len(data):
                sent += s.send(data[sent : sent + 262144])
                if sent == len(data):
                    s.shutdown(socket.SHUT_WR)
                    selector.modify(s, selectors.EVENT_READ)
            if events & selectors.EVENT_READ:
                got += s.recv(262144)
    assert got == data
    s.settimeout(60)
    assert s.recv(1) == b""
    g.close()


def test_refused(held) -> None:
    """Closed at once, and served as soon as there is a server."""
    g = held(8000)
    for _ in range(3):
        assert connect(g, 8000).recv(1) == b""
    serve(g, "echo", 8000)
    s = connect(g, 8000)
    s.sendall(b"hello")
    assert s.recv(5) == b"hello"
    g.close()


def test_a_port_that_is_not_published(held) -> None:
    g = held(8000)
    assert not (g.ports / str(65536 + 8001)).exists()
    g.close()


def test_the_server_ends_its_side_first(held) -> None:
    g = held(8000)
    server = serve(g, "first", 8000)
    s = connect(g, 8000)
    assert whole(s) == b"first"
    s.sendall(bytes(300_000))
    s.shutdown(socket.SHUT_WR)
    assert server.until(STDOUT) == b"read all\n"
    g.close()


def test_a_server_that_resets(held) -> None:
    g = held(8000)
    serve(g, "refuse", 8000)
    assert whole(connect(g, 8000)) == b""
    g.close()


def test_one_that_does_not_read_stops_nobody(held) -> None:
    g = held(8000)
    serve(g, "echo", 8000)
    stuck = connect(g, 8000)
    stuck.setblocking(False)
    sent = 0
    idle = 0
    while idle < 5:
        try:
            sent += stuck.send(bytes(65536))
            idle = 0
        except BlockingIOError:
            idle += 1
            signal.sigtimedwait([], 0.1)
    for _ in range(20):
        s = connect(g, 8000)
        s.sendall(b"hello")
        s.shutdown(socket.SHUT_WR)
        assert whole(s) == b"hello"
    stuck.settimeout(60)
    stuck.shutdown(socket.SHUT_WR)
    assert len(whole(stuck)) == sent
    g.close()


def test_many(held) -> None:
    g = held(8000)
    serve(g, "count", 8000)
    all_of_them = [connect(g, 8000) for _ in range(400)]
    for number, s in enumerate(all_of_them):
        s.sendall(bytes(number))
    for number, s in enumerate(all_of_them):
        s.shutdown(socket.SHUT_WR)
        assert whole(s) == b"%d" % number
        s.close()
    g.close()


def test_a_forwarder_that_is_killed_is_made_again(held) -> None:
    """By root in the guest, which ends the sessions with it."""
    ports = (8000, 8001, 8002)  # a server that is killed may have its port for a while
    g = held(*ports)
    for port in ports:
        server = serve(g, "echo", port)
        s = connect(g, port)
        s.sendall(b"hello")
        assert s.recv(5) == b"hello"
        killer = g.session("/bin/sh", "-c", "kill -9 -1")
        assert whole(s) == b""
        server.end()
        killer.end()
    g.close()


def test_again(guest) -> None:
    g = guest()
    words = b"".join(record(ARG, a) for a in ("/usr/bin/python3", "-c", SERVER + "\n", "echo"))
    words += record(ARG, "127.0.0.1") + record(ARG, "8000") + record(STDIN_PIPE, 1)
    g.send(frame(CONFIG, words + port_records(8000)))
    for _ in range(3):
        assert g.until(STDOUT) == b"up\n"
        s = connect(g, 8000)
        s.sendall(b"hello")
        assert s.recv(5) == b"hello"
        g.send(frame(3, struct.pack("<I", signal.SIGKILL)))
        assert g.end().exit["code"] == 137
        assert whole(s) == b""
        g.again()
    g.until(STDOUT)
    g.close()
