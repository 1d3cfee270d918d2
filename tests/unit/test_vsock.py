"""The caller's half of vsock, against a worker that the test plays, and against the real device."""

from __future__ import annotations

import errno
import os
import random
import socket
import threading

import pytest
from pyvmm._core import lib

from pyvmm import vsock as vsock_module
from pyvmm import vsock_server
from pyvmm.loop import Loop
from pyvmm.vsock import (
    ACCEPT,
    CONNECT,
    EVERY_PORT,
    LISTEN,
    MESSAGE,
    REFUSE,
    RESET,
    SEQPACKET,
    UNLISTEN,
    Vsock,
)

from . import virtq
from .switch_worker import LIMIT, meanwhile, switch
from .vsock_guest import GUEST_PORT, REQUEST, RESPONSE, RST, SHUTDOWN, Guest, ops

FIRST_PORT = 1 << 30  # of the host's ports that the device chooses


@pytest.fixture
def both():
    with switch() as made:
        yield made


def fill(vsock: Vsock) -> None:
    """Say more than the channel holds."""
    while True:
        vsock.send(RESET, timeout=0.01)


class TestConnect:
    def test_stream(self, both):
        vsock, worker = both
        with meanwhile(vsock.connect, 52) as future:
            guest = worker.takes_socket(CONNECT, 52, 0, 0)
            guest.sendall(b"OK 1073741824\nand the guest's first words")
            with guest, future.result(LIMIT) as sock:
                assert sock.gettimeout() is None
                assert sock.recv(100) == b"and the guest's first words"
                sock.sendall(b"to the guest")
                assert guest.recv(100) == b"to the guest"

    def test_an_answer_in_pieces(self, both):
        vsock, worker = both
        with meanwhile(vsock.connect, 52) as future:
            with worker.takes_socket(CONNECT, 52, 0, 0) as guest:
                for byte in b"OK 5\n":
                    guest.sendall(bytes([byte]))
            with future.result(LIMIT) as sock:
                assert sock.recv(1) == b""

    def test_messages(self, both):
        vsock, worker = both
        with meanwhile(vsock.connect, 52, kind=socket.SOCK_SEQPACKET) as future:
            guest = worker.takes_socket(CONNECT, 52, 0, SEQPACKET)
            guest.send(b"OK 1073741824\n")
            guest.send(b"one")
            guest.send(b"two")
            with guest, future.result(LIMIT) as sock:
                assert [sock.recv(100), sock.recv(100)] == [b"one", b"two"]

    def test_refused(self, both):
        vsock, worker = both
        with meanwhile(vsock.connect, 52) as future:
            worker.takes_socket(CONNECT, 52, 0, 0).close()
            with pytest.raises(ConnectionRefusedError) as caught:
                future.result(LIMIT)
        assert caught.value.errno == errno.ECONNREFUSED
        assert caught.value.strerror == "vsock port 52: nobody in the guest listens there"

    def test_a_worker_that_says_anything_but_ok(self, both):
        vsock, worker = both
        with meanwhile(vsock.connect, 52) as future:
            guest = worker.takes_socket(CONNECT, 52, 0, 0)
            guest.sendall(b"x" * 1000)
            with guest, pytest.raises(ConnectionRefusedError):
                future.result(LIMIT)

    def test_too_late(self, both):
        vsock, worker = both
        with pytest.raises(TimeoutError) as caught:
            vsock.connect(52, timeout=0.05)
        assert caught.value.strerror == "vsock port 52: no answer within 0.05 s"
        with worker.takes_socket(CONNECT, 52, 0, 0) as guest:
            assert guest.recv(1) == b""

    def test_a_worker_that_hears_nothing(self, both):
        vsock, _worker = both
        with pytest.raises(TimeoutError, match="the machine's worker does not answer"):
            fill(vsock)
        with pytest.raises(TimeoutError, match=r"port 52: no answer within 0\.01 s"):
            vsock.connect(52, timeout=0.01)

    @pytest.mark.parametrize("port", [-1, EVERY_PORT, 1 << 32])
    def test_no_port(self, both, port):
        vsock, _ = both
        with pytest.raises(ValueError, match="must be 0 to 4294967294"):
            vsock.connect(port)

    def test_no_kind(self, both):
        vsock, _ = both
        with pytest.raises(ValueError, match="kind 2: must be SOCK_STREAM or SOCK_SEQPACKET"):
            vsock.connect(9, kind=socket.SOCK_DGRAM)

    def test_the_machine_has_ended(self, both):
        vsock, worker = both
        worker.channel.close()
        with pytest.raises(ConnectionRefusedError):
            vsock.connect(52)
        vsock.close()
        with pytest.raises(ConnectionRefusedError):
            vsock.connect(52)
        with pytest.raises(ConnectionResetError, match="the machine has ended"):
            vsock.listen(52)

    def test_no_thread_for_it(self, both):
        vsock, worker = both
        before = threading.active_count()
        with meanwhile(vsock.connect, 52) as future:
            guest = worker.takes_socket(CONNECT, 52, 0, 0)
            guest.sendall(b"OK 5\n")
            future.result(LIMIT).close()
            guest.close()
        assert threading.active_count() == before

    def test_reset(self, both):
        vsock, worker = both
        vsock.reset()
        worker.takes(RESET, 0, 0, 0)


class TestListen:
    @pytest.mark.parametrize(
        ("kind", "flags"), [(socket.SOCK_STREAM, 0), (socket.SOCK_SEQPACKET, SEQPACKET)]
    )
    def test_accept(self, both, kind, flags):
        vsock, worker = both
        with vsock.listen(7, kind=kind) as listener:
            worker.takes(LISTEN, 7, 0, 0)
            worker.ask(99, 7, flags)
            with worker.takes_socket(ACCEPT, 99, 0, 0) as guest:
                sock, _ = listener.accept()
                with sock:
                    sock.send(b"hello")
                    assert guest.recv(100) == b"hello"
                    guest.send(b"host")
                    assert sock.recv(100) == b"host"

    def test_each_port_has_its_own(self, both):
        vsock, worker = both
        with vsock.listen(7) as seven, vsock.listen(8) as eight:
            worker.takes(LISTEN, 7, 0, 0)
            worker.takes(LISTEN, 8, 0, 0)
            for number, port, listener in ((1, 8, eight), (2, 7, seven)):
                worker.ask(number, port)
                with worker.takes_socket(ACCEPT, number, 0, 0) as guest:
                    sock, _ = listener.accept()
                    with sock:
                        guest.send(b"%d" % port)
                        assert sock.recv(100) == b"%d" % port

    def test_of_the_other_kind(self, both):
        vsock, worker = both
        with vsock.listen(7):
            worker.takes(LISTEN, 7, 0, 0)
            worker.ask(1, 7, SEQPACKET)
            worker.takes(REFUSE, 1, 0, 0)

    def test_taken(self, both):
        vsock, worker = both
        with vsock.listen(7), pytest.raises(OSError, match="vsock port 7: listened on already"):
            vsock.listen(7)
        worker.takes(LISTEN, 7, 0, 0)
        with vsock.listen(7):  # the first is closed
            worker.takes(LISTEN, 7, 0, 0)

    def test_no_more_than_the_device_has_room_for(self, both, monkeypatch):
        monkeypatch.setattr(vsock_module, "MAX_LISTENERS", 2)
        vsock, worker = both
        with vsock.listen(1) as first, vsock.listen(2):
            with pytest.raises(OSError, match="2 vsock ports are listened on: close one") as caught:
                vsock.listen(3)
            assert caught.value.errno == errno.EMFILE
            first.close()
            vsock.listen(3).close()
            for message in (LISTEN, 1), (LISTEN, 2), (UNLISTEN, 1), (LISTEN, 3):
                worker.takes(*message, 0, 0)

    @pytest.mark.parametrize("port", [-1, EVERY_PORT, 1 << 32])
    def test_no_port(self, both, port):
        vsock, _ = both
        with pytest.raises(ValueError, match="must be 0 to 4294967294"):
            vsock.listen(port)

    def test_closed_by_its_owner(self, both):
        vsock, worker = both
        vsock.listen(7).close()
        worker.takes(LISTEN, 7, 0, 0)
        worker.ask(1, 7)
        worker.takes(UNLISTEN, 7, 0, 0)
        worker.takes(REFUSE, 1, 0, 0)

    def test_backlog_full(self, both):
        vsock, worker = both
        with vsock.listen(7) as listener:
            listener.listen(1)
            worker.takes(LISTEN, 7, 0, 0)
            guests = []
            for number in range(2):  # Linux queues one more than it says
                worker.ask(number, 7)
                guests.append(worker.takes_socket(ACCEPT, number, 0, 0))
            worker.ask(2, 7)
            worker.takes(REFUSE, 2, 0, 0)
            listener.accept()[0].close()
            worker.ask(3, 7)
            guests.append(worker.takes_socket(ACCEPT, 3, 0, 0))
            for guest in guests:
                guest.close()

    def test_nobody_else_can_find_it(self, both):
        vsock, _ = both
        with vsock.listen(7) as listener:
            name = listener.getsockname()
            assert name.startswith("/proc/self/fd/")
            assert not os.path.exists(name)

    def test_a_long_temporary_directory(self, both, tmp_path, monkeypatch):
        long = tmp_path / ("x" * 200)
        long.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(long))
        vsock, worker = both
        with vsock.listen(7) as listener:
            worker.takes(LISTEN, 7, 0, 0)
            worker.ask(1, 7)
            worker.takes_socket(ACCEPT, 1, 0, 0).close()
            listener.accept()[0].close()
        assert os.listdir(long) == []

    def test_the_worker_ends(self, both):
        vsock, worker = both
        with vsock.listen(7) as listener:
            worker.channel.close()
            with pytest.raises(OSError) as caught:  # noqa: PT011
                listener.accept()
        assert caught.value.errno == errno.EINVAL

    def test_close_wakes_who_accepts(self, both):
        vsock, _ = both
        with vsock.listen(7) as listener, meanwhile(listener.accept) as future:
            vsock.close()
            with pytest.raises(OSError) as caught:  # noqa: PT011
                future.result(LIMIT)
        assert caught.value.errno == errno.EINVAL


class TestHostileWorker:
    def test_what_is_no_message(self, both):
        vsock, worker = both
        chance = random.Random(1)
        with vsock.listen(7) as listener, open(os.devnull) as null:
            worker.takes(LISTEN, 7, 0, 0)
            for size in (1, 15, 17, 1000):
                worker.channel.send(chance.randbytes(size)[: size - 1] + b"\0")
            for op in (0, 2, 3, 4, 5, 6, 7, 0xFFFFFFFF):
                worker.channel.send(MESSAGE.pack(op, 1, 7, 0))
            before = len(os.listdir("/proc/self/fd"))
            socket.send_fds(worker.channel, [MESSAGE.pack(9, 1, 1, 1)], [null.fileno()] * 50)
            worker.ask(5, 7, 0xFFFFFFFD)  # flags that mean nothing yet
            worker.takes_socket(ACCEPT, 5, 0, 0).close()
            worker.ask(6, 8)
            worker.takes(REFUSE, 6, 0, 0)  # by now the thread has closed its copy
            assert len(os.listdir("/proc/self/fd")) == before
            listener.accept()[0].close()

    def test_a_flood_of_questions(self, both):
        vsock, worker = both
        answers = []

        def hear() -> None:
            while len(answers) < 5000:
                answers.append(worker.take())

        with vsock.listen(7), meanwhile(hear) as future:
            for number in range(5000):
                worker.ask(number, number + 100)
            future.result(LIMIT)
        assert answers == [
            ((LISTEN, 7, 0, 0), None),
            *(((REFUSE, number, 0, 0), None) for number in range(4999)),
        ]


@pytest.fixture
def served(both, tmp_path):
    """``(vsock, worker, path)`` with the path served, the guest's agent there."""
    vsock, worker = both
    path = str(tmp_path / "v.sock")
    vsock.serve(path)
    worker.takes(LISTEN, EVERY_PORT, 0, 0)
    vsock.started()
    return vsock, worker, path


def client(path: str, *words: bytes) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(LIMIT)
    sock.connect(path)
    for word in words:
        sock.sendall(word)
    return sock


def is_closed(sock: socket.socket) -> bool:
    with sock:
        try:
            return sock.recv(1) == b""
        except ConnectionResetError:  # what it sent was not read
            return True


class TestServe:
    @pytest.mark.parametrize("line", [b"CONNECT 52\n", b"connect 52\n", b" Connect\t052 \r\n"])
    def test_connect(self, served, line):
        _, worker, path = served
        sock = client(path, line + b"first words")
        guest = worker.takes_socket(CONNECT, 52, 0, 0)
        with sock, guest:
            guest.sendall(b"OK 1073741824\n")
            assert guest.recv(100) == b"first words"
            assert sock.recv(100) == b"OK 1073741824\n"

    def test_a_slow_one_delays_nobody(self, served):
        _, worker, path = served
        with client(path, b"CONN") as slow, client(path) as silent:
            for port in range(20):
                with client(path, b"CONNECT %d\n" % port):
                    worker.takes_socket(CONNECT, port, 0, 0).close()
            for byte in b"ECT 4294967295":
                slow.sendall(bytes([byte]))
            slow.sendall(b"\nxyz")
            with worker.takes_socket(CONNECT, 4294967295, 0, 0) as guest:
                assert guest.recv(100) == b"xyz"
            silent.close()
            with client(path, b"CONNECT 1\n"):
                worker.takes_socket(CONNECT, 1, 0, 0).close()

    @pytest.mark.parametrize(
        "line",
        [
            b"\n", b"CONNECT\n", b"CONNECT \n", b"CONNECT x\n", b"CONNECT -1\n", b"CONNECT 1 2\n",
            b"CONNECT 4294967296\n", b"CONNECT 0x1\n", b"GET / HTTP/1.1\r\n", b"x" * 32, b"x" * 99,
            b"CONNECT " + b"0" * 24 + b"\n", b"CONNECT \xb2\n", b"\0\n",
        ],
    )  # fmt: skip
    def test_wrong_line(self, served, line):
        _, worker, path = served
        assert is_closed(client(path, line))
        with client(path, b"CONNECT 1\n"):
            worker.takes_socket(CONNECT, 1, 0, 0).close()

    def test_who_says_nothing_and_goes(self, served):
        _, worker, path = served
        client(path).close()
        client(path, b"CONNECT 1").close()
        with client(path, b"CONNECT 2\n"):
            worker.takes_socket(CONNECT, 2, 0, 0).close()

    def test_refused(self, served):
        _, worker, path = served
        sock = client(path, b"CONNECT 1\n")
        worker.takes_socket(CONNECT, 1, 0, 0).close()
        assert is_closed(sock)

    def test_thousands(self, served):
        _, worker, path = served
        for port in range(3000):
            with client(path, b"CONNECT %d\n" % port) as sock:
                with worker.takes_socket(CONNECT, port, 0, 0) as guest:
                    guest.sendall(b"OK 1\n")
                assert sock.recv(100) == b"OK 1\n"

    def test_too_many_that_say_nothing(self, served, monkeypatch):
        monkeypatch.setattr(vsock_server, "MAX_CLIENTS", 2)
        _, worker, path = served
        silent = [client(path), client(path)]
        with client(path, b"CONNECT 1\n"):
            worker.hears_nothing()
            silent.pop().close()
            worker.takes_socket(CONNECT, 1, 0, 0).close()
        silent.pop().close()

    def test_before_the_agent_is_there(self, both, tmp_path):
        vsock, worker = both
        path = str(tmp_path / "v.sock")
        vsock.serve(path)
        worker.takes(LISTEN, EVERY_PORT, 0, 0)
        with client(path, b"CONNECT 1\n"):
            worker.hears_nothing()
            vsock.started()
            worker.takes_socket(CONNECT, 1, 0, 0).close()

    def test_from_the_guest(self, served, tmp_path):
        vsock, worker, path = served
        worker.ask(1, 52)
        worker.takes(REFUSE, 1, 0, 0)
        with socket.socket(socket.AF_UNIX) as listener, vsock.listen(53) as ours:
            worker.takes(LISTEN, 53, 0, 0)
            listener.bind(f"{path}_52")
            worker.ask(2, 52)
            worker.takes(REFUSE, 2, 0, 0)
            listener.listen()
            worker.ask(3, 52)
            guest = worker.takes_socket(ACCEPT, 3, 0, 0)
            sock, _ = listener.accept()
            with guest, sock:
                guest.sendall(b"up")
                assert sock.recv(100) == b"up"
            worker.ask(4, 53)
            worker.takes_socket(ACCEPT, 4, 0, 0).close()
            ours.accept()[0].close()
            worker.ask(5, 52, SEQPACKET)
            worker.takes(REFUSE, 5, 0, 0)

    def test_a_closed_listener_leaves_its_port_to_the_path(self, served):
        vsock, worker, path = served
        vsock.listen(52).close()
        worker.takes(LISTEN, 52, 0, 0)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{path}_52")
            listener.listen()
            worker.ask(1, 52)
            worker.takes(UNLISTEN, 52, 0, 0)
            worker.takes_socket(ACCEPT, 1, 0, 0).close()

    def test_the_end(self, served):
        vsock, _, path = served
        waiting = client(path, b"CONN")
        vsock.close()
        assert is_closed(waiting)
        assert not os.path.exists(path)

    def test_the_worker_ends(self, served):
        _, worker, path = served
        waiting = client(path, b"CONN")
        worker.channel.close()
        assert is_closed(waiting)
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            client(path)


class Short:
    """A listening socket whose accept() fails at first, for want of descriptors."""

    def __init__(self, listener: socket.socket, error: int) -> None:
        self.listener, self.error, self.calls = listener, error, 0
        self.fileno, self.setblocking = listener.fileno, listener.setblocking
        self.close = listener.close

    def accept(self):
        self.calls += 1
        if self.calls == 1:
            raise OSError(self.error, os.strerror(self.error))
        return self.listener.accept()


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ECONNABORTED])
def test_accept_fails(error, tmp_path):
    loop = Loop("test")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        short = Short(listener, error)
        taken: list[socket.socket] = []
        come = threading.Event()

        def accept() -> None:
            for sock in loop.accept(short):  # type: ignore[arg-type]
                taken.append(sock)
                come.set()

        loop.call(lambda: loop.watch(short, accept))  # type: ignore[arg-type]
        with client(str(tmp_path / "s")):
            assert come.wait(LIMIT)
        loop.close()
        assert len(taken) == 1
        taken.pop().close()


class TestDevice:
    """With the C device, and a driver that the test plays."""

    @pytest.fixture
    def machine(self):
        with virtq.Machine(64 << 20) as machine:
            guest = Guest(machine)
            guest.post()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            lib_fd = theirs.detach()
            virtq.check(lib.vm_set_switch(machine.core, guest.device.slot, lib_fd))
            vsock = Vsock(ours)
            yield guest, vsock
            vsock.close()
            guest.close()

    def heard(self, guest) -> list:
        """What the device says to the guest, as soon as it says something."""
        while not (packets := guest.received()):
            guest.machine.run()
        return packets

    def test_to_the_guest(self, machine):
        guest, vsock = machine
        with meanwhile(vsock.connect, 99, timeout=LIMIT) as future:
            (request,) = self.heard(guest)
            assert (request.op, request.src_port, request.dst_port) == (REQUEST, FIRST_PORT, 99)
            guest.send(op=RESPONSE, src_port=99, dst_port=request.src_port)
            with future.result(LIMIT) as sock:
                guest.send(data=b"from the guest", src_port=99, dst_port=request.src_port)
                assert sock.recv(100) == b"from the guest"
                sock.sendall(b"from the host")
                (packet,) = self.heard(guest)
                assert packet.data == b"from the host"

    def test_refused(self, machine):
        guest, vsock = machine
        with meanwhile(vsock.connect, 99, timeout=LIMIT) as future:
            (request,) = self.heard(guest)
            guest.send(op=RST, src_port=99, dst_port=request.src_port)
            with pytest.raises(ConnectionRefusedError):
                future.result(LIMIT)

    def test_from_the_guest(self, machine):
        guest, vsock = machine
        with vsock.listen(7) as listener:
            listener.settimeout(LIMIT)
            guest.machine.run()
            guest.send(op=REQUEST, dst_port=7)
            assert ops(self.heard(guest)) == [RESPONSE]
            sock, _ = listener.accept()
            with sock:
                guest.send(data=b"hello", dst_port=7)
                assert sock.recv(100) == b"hello"
        assert ops(self.heard(guest)) == [SHUTDOWN]
        guest.send(op=REQUEST, dst_port=7, src_port=GUEST_PORT + 1)
        assert ops(self.heard(guest)) == [RST]

    def test_served(self, machine, tmp_path):
        guest, vsock = machine
        path = str(tmp_path / "v.sock")
        vsock.serve(path)
        vsock.started()
        with client(path, b"CONNECT 99\nand more") as sock:
            (request,) = self.heard(guest)
            guest.send(op=RESPONSE, src_port=99, dst_port=request.src_port)
            assert sock.recv(100) == b"OK %d\n" % request.src_port
            (packet,) = self.heard(guest)
            assert packet.data == b"and more"
