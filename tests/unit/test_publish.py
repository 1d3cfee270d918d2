"""Published ports: as they are written, bound, probed for and served."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from pyvmm.errors import HostError, UsageError
from pyvmm.probe import Probe
from pyvmm.publish import FORM, Port, Published, parse
from pyvmm.vsock import CONNECT, QUIET

from .switch_worker import LIMIT, switch

HELLO = struct.pack("<IHHIIQQ", 24, 1, 0, 2, 1, 3, 4)
END = struct.pack("<IHH", 0, 10, 0)
FAILED = struct.pack("<IHHI", 4, 9, 0, 125)


def asks(port: int) -> bytes:
    return struct.pack("<IHHH", 2, 8, 0, port)


@pytest.mark.parametrize(
    ("word", "published"),
    [
        ("8080:80", ("127.0.0.1", 8080, 80)),
        ("0:80", ("127.0.0.1", 0, 80)),
        (":80", ("127.0.0.1", 0, 80)),
        ("127.0.0.2:8080:80", ("127.0.0.2", 8080, 80)),
        ("0.0.0.0::65535", ("0.0.0.0", 0, 65535)),
        ("[::1]:65535:1", ("::1", 65535, 1)),
        ("[::]::1", ("::", 0, 1)),
    ],
)
def test_parse(word, published):
    assert parse([word]) == [Published(*published)]


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("", FORM), ("80", FORM), (":", FORM), ("80:", FORM), ("::80", FORM), ("1:2:3:4", FORM),
        ("::1:80:80", FORM), ("[::1]80:80", FORM),
        ("65536:80", "ports are 0 to 65535"), ("80:65536", "ports are 1 to 65535"),
        ("80:0", "ports are 1 to 65535"), ("99999999:1", "ports are 0 to 65535"),
        ("-1:80", FORM), ("x:80", FORM), ("²:80", FORM), ("80:80/tcp", FORM),
        ("localhost:80:80", "'localhost' is not an IP address"),
        ("[127.0.0.1]:80:80", "'[127.0.0.1]' is not an IP address"),
        ("[::g]:80:80", "'::g' is not an IP address"),
        ("1.2.3.400:80:80", "'1.2.3.400' is not an IP address"),
    ],
)  # fmt: skip
def test_wrong(word, why):
    with pytest.raises(UsageError) as caught:
        parse([word])
    assert str(caught.value) == f"publish {word!r}: {why}"


def test_too_many():
    assert len(parse(["0:1"] * 32)) == 32
    with pytest.raises(UsageError, match="33 published ports: at most 32"):
        parse(["0:1"] * 33)


def test_taken_before_it_listens():
    first = Port(Published("127.0.0.1", 0, 80))
    assert first.published.chosen
    again = first.published
    with pytest.raises(HostError) as caught:
        Port(again)
    why = "the port is in use, choose another (0: any that is free)"
    assert str(caught.value) == f"cannot publish 127.0.0.1:{again.host_port}: {why}"
    first.close()
    second = Port(again)
    assert not second.published.chosen
    second.close()


def test_a_port_that_was_just_in_use():
    """Connections that the host's side closed first are in TIME_WAIT: no reason to refuse."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()
            assert client.recv(1) == b""
    Port(Published("127.0.0.1", port, 80)).close()


def test_an_address_of_another_host():
    with pytest.raises(HostError) as caught:
        Port(Published("192.0.2.1", 8080, 80))
    why = "192.0.2.1 is no address of this host's"
    assert str(caught.value) == f"cannot publish 192.0.2.1:8080: {why}"


def test_as_text():
    assert str(Published("::1", 80, 8080)) == "[::1]:80"
    assert str(Published("127.0.0.1", 80, 8080)) == "127.0.0.1:80"


def answer(agent: socket.socket, port: int, end: bytes = END) -> None:
    """Play the guest's agent, which finds that the port accepts."""
    with agent:
        agent.sendall(HELLO)
        assert agent.recv(100) == asks(port)
        agent.sendall(end)


def refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_serving(ip):
    with switch() as (vsock, worker):
        published = vsock.publish(ip, 0, 80)
        address = ip, published.host_port
        assert refused(address)
        vsock.started()
        agent = worker.takes_socket(CONNECT, 1024, 0, QUIET)
        assert refused(address)
        answer(agent, 80)
        clients = []
        for number in range(100):
            clients.append(dial(address))
            with worker.takes_socket(CONNECT, 65536 + 80, 0, QUIET) as guest:
                assert guest.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
                clients[-1].sendall(b"from %d" % number)
                assert guest.recv(100) == b"from %d" % number
                guest.sendall(b"to %d" % number)
        for number, client in enumerate(clients):
            with client:
                assert client.recv(100) == b"to %d" % number
                assert client.recv(1) == b""
        vsock.close()
        assert refused(address)


def dial(address: tuple[str, int]) -> socket.socket:
    """Connect, as soon as somebody listens."""
    for _ in range(int(LIMIT / 0.01)):
        try:
            return socket.create_connection(address, LIMIT)
        except ConnectionRefusedError:
            threading.Event().wait(0.01)
    raise TimeoutError


def test_the_worker_ends():
    with switch() as (vsock, worker):
        address = "127.0.0.1", vsock.publish("127.0.0.1", 0, 80).host_port
        vsock.started()
        answer(worker.takes_socket(CONNECT, 1024, 0, QUIET), 80)
        dial(address).close()
        worker.channel.close()
        for _ in range(int(LIMIT / 0.01)):
            if refused(address):
                break
            threading.Event().wait(0.01)
        else:
            raise AssertionError("it still listens")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        HELLO[:-1],
        HELLO,
        END,
        HELLO + HELLO + FAILED,
        HELLO + FAILED + END,
        b"\xff" * 1000,
        HELLO.replace(b"\2", b"\3", 1),
        struct.pack("<IHHI", 4, 1, 0, 2),
    ],
)
def test_an_agent_that_does_not_answer_is_asked_again(said):
    """Also one that a guest has in its hands, and that says END of a question it was not asked."""
    with switch() as (vsock, worker):
        met = threading.Event()
        probe = Probe(vsock, 99, met.set)
        vsock.loop().call(probe.begin)
        with worker.takes_socket(CONNECT, 1024, 0, QUIET) as agent:
            agent.sendall(said)
            if said.endswith(END):  # which is looked at, if it is, before the connection's end
                agent.recv(1)
        if said == END:
            assert met.wait(LIMIT)
            return
        answer(worker.takes_socket(CONNECT, 1024, 0, QUIET), 99)
        assert met.wait(LIMIT)


def test_nobody_asks_any_more():
    with switch() as (vsock, worker):
        probe = Probe(vsock, 99, lambda: None)
        vsock.loop().call(probe.begin)
        with worker.takes_socket(CONNECT, 1024, 0, QUIET) as agent:
            agent.sendall(HELLO)
            assert agent.recv(100) == asks(99)
            probe.give_up()
            assert agent.recv(1) == b""
