"""What a machine is reached by: published ports, a name, its vsock; and when it is ready."""

from __future__ import annotations

import http.client
import random
import re
import signal
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import IMAGES, RUN_LIMIT, Host

import pyvmm

IMAGE = IMAGES / "shell"
WEB, ECHO, NONE = range(3)  # of the published ports
DATA = random.Random(7).randbytes(2_000_000)


@pytest.fixture(scope="module")
def held() -> Iterator[pyvmm.Machine]:
    """A machine without a program of its own and three published ports."""
    with pyvmm.Machine(IMAGE, kernel="minimal", hold=True, publish=["0:80", ":7", "0:9"]) as made:
        yield made


@pytest.fixture(scope="module")
def served(held: pyvmm.Machine) -> Iterator[pyvmm.Machine]:
    """The same, with a web server on port 80 and on port 7 one that says what it hears."""
    assert refused(held, WEB)
    assert refused(held, ECHO)
    web = ["httpd", "-f", "-p", "127.0.0.1:80", "-h", "/etc"]
    echo = ["nc", "-ll", "-p", "7", "-e", "cat"]
    with held.popen(web, stdin=False), held.popen(echo, stdin=False):
        held.wait_for(["port=80", "port=7"], timeout=RUN_LIMIT)
        for port in WEB, ECHO:
            dial(held, port).close()
        yield held


def refused(machine: pyvmm.Machine, which: int) -> bool:
    port = machine.published[which]
    try:
        socket.create_connection((port.host_ip, port.host_port)).close()
    except ConnectionRefusedError:
        return True
    return False


def dial(machine: pyvmm.Machine, which: int) -> socket.socket:
    """Connect to a published port, as soon as it accepts."""
    deadline = time.monotonic() + RUN_LIMIT
    port = machine.published[which]
    while True:
        try:
            return socket.create_connection((port.host_ip, port.host_port), RUN_LIMIT)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while part := sock.recv(1 << 20):
        data += part
    return data


def read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    return data


def test_published(held: pyvmm.Machine) -> None:
    assert [(p.host_ip, p.guest_port, p.chosen) for p in held.published] == [
        ("127.0.0.1", 80, True), ("127.0.0.1", 7, True), ("127.0.0.1", 9, True),
    ]  # fmt: skip
    assert len({p.host_port for p in held.published}) == 3


def test_http(served: pyvmm.Machine) -> None:
    port = served.published[WEB]
    web = http.client.HTTPConnection(port.host_ip, port.host_port, timeout=RUN_LIMIT)
    web.request("GET", "/data")
    answer = web.getresponse()
    assert (answer.status, answer.read()) == (200, b"not a program\n")


def test_nobody_listens(served: pyvmm.Machine) -> None:
    assert refused(served, NONE)


def test_both_ways_and_half_closed(served: pyvmm.Machine) -> None:
    def send(sock: socket.socket) -> None:
        sock.sendall(DATA)
        sock.shutdown(socket.SHUT_WR)

    with dial(served, ECHO) as sock, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send, sock)
        assert read_all(sock) == DATA
        sending.result()


def test_many_at_once(served: pyvmm.Machine) -> None:
    socks = []
    for number in range(20):
        socks.append(dial(served, ECHO))
        socks[-1].sendall(b"client %3d" % number)
        assert read(socks[-1], 10) == b"client %3d" % number
    for number, sock in enumerate(socks):
        sock.sendall(b"still %d" % number)
        sock.shutdown(socket.SHUT_WR)
    for number, sock in enumerate(socks):
        with sock:
            assert read_all(sock) == b"still %d" % number


def test_the_server_has_gone(served: pyvmm.Machine) -> None:
    """Last of those with a web server."""
    assert served.exec(["killall", "httpd"]).exit_code == 0
    with dial(served, WEB) as sock:
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:
            pass


def test_not_ready(held: pyvmm.Machine) -> None:
    with pytest.raises(pyvmm.GuestError) as caught:
        held.wait_for(["port=9", "log=never"], timeout=1)
    assert str(caught.value) == "not ready within 1 s: port=9, log=never"


def test_ready(held: pyvmm.Machine) -> None:
    held.wait_for("exec=test -d /etc", timeout=RUN_LIMIT)


def test_named(host: Host) -> None:
    """From ready to SIGTERM."""
    script = "echo up; echo READY >&2; exec sleep 3600"
    run = host.start("sh", "-c", script, kernel="minimal", wait_for="log=^REA.Y$", name="web")
    run.until(b" s\n", "err")
    assert re.fullmatch(rb"READY\npyvmm: ready after \d+\.\d\d s\n", run.err)
    path = Path("/run/pyvmm/web.sock")
    assert (path.parent.stat().st_mode, path.stat().st_mode) == (0o40700, 0o140600)
    listed = host.pyvmm("ps").finish().out.decode().splitlines()
    assert [line.split()[0] for line in listed] == ["NAME", "web"]
    assert listed[1].split()[1::2] == [str(run.process.pid), str(path)]
    taken = b"pyvmm: %s is a running machine's: take another name\n" % bytes(path)
    host.start("true", kernel="minimal", name="web").finish().check(125, b"", taken)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(RUN_LIMIT)
        sock.connect(str(path))
        sock.sendall(b"connect ")
        sock.sendall(b"1024\n")
        hello = b"OK 1073741824\n" + struct.pack("<IHHI", 24, 1, 0, 2)
        assert read(sock, len(hello)) == hello
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(RUN_LIMIT)
        sock.connect(str(path))
        sock.sendall(b"CONNECT 5\n")
        assert sock.recv(1) == b""
    run.process.send_signal(signal.SIGTERM)
    assert run.finish().code == 128 + signal.SIGTERM
    assert not path.exists()
    assert host.pyvmm("ps", "--quiet").finish().out == b""


def test_ends_before_it_is_ready(host: Host) -> None:
    run = host.start("sh", "-c", "exit 3", kernel="minimal", wait_for="port=9")
    why = b"pyvmm: the program ended before it was ready (port=9): with exit code 3\n"
    run.finish().check(125, b"", why)
