"""The vsock device with Linux's driver: message sockets, ends, very many connections, its reset."""

from __future__ import annotations

import errno
import re
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from harness import IMAGES, RUN_LIMIT

import pyvmm

IMAGE = IMAGES / "vsock"
SIZES = (1, 4052, 4053, 65536, 150_000, 204 << 10)
MANY = 1200
LAST_WORDS = re.compile("pyvmm-init: host connection: (.*)\n")


@pytest.fixture(scope="module")
def held() -> Iterator[pyvmm.Machine]:
    with pyvmm.Machine(IMAGE, kernel="minimal", hold=True) as made:
        yield made


def guest(machine: pyvmm.Machine, *words: object) -> bytes:
    done = machine.exec(["vsock", *map(str, words)], timeout=RUN_LIMIT)
    assert (done.exit_code, done.stderr) == (0, b"")
    return done.stdout


class Served:
    """A port of the host's, and what one connection to it (``serve``) came to."""

    def __init__(
        self, machine: pyvmm.Machine, serve: Callable[[socket.socket], bytes], **kind: int
    ) -> None:
        self._listener = machine.vsock.listen(6000, **kind)
        self._listener.settimeout(RUN_LIMIT)
        self._serve = serve
        self.found = b""
        self._thread = Thread(target=self._run)

    def _run(self) -> None:
        with self._listener.accept()[0] as made:
            made.settimeout(RUN_LIMIT)
            self.found = self._serve(made)

    def __enter__(self) -> Served:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.join()
        self._listener.close()


def all_of(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def test_port_that_nobody_listens_on(held: pyvmm.Machine) -> None:
    assert guest(held, "dial", 9999) == b"ECONNRESET\n"


def test_guest_ends_its_half(held: pyvmm.Machine) -> None:
    def serve(made: socket.socket) -> bytes:
        heard = all_of(made)
        made.sendall(b"down")
        return heard

    with Served(held, serve) as served:
        assert guest(held, "up", 6000) == b"down|\n"
    assert served.found == b"up"


def test_host_ends_its_half(held: pyvmm.Machine) -> None:
    def serve(made: socket.socket) -> bytes:
        made.sendall(b"down")
        made.shutdown(socket.SHUT_WR)
        return all_of(made)

    with Served(held, serve) as served:
        assert guest(held, "down", 6000) == b"down|\n"
    assert served.found == b"after"


def test_messages_both_ways(held: pyvmm.Machine) -> None:
    def serve(made: socket.socket) -> bytes:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        heard = [made.recv(1 << 20) for _ in SIZES]
        for message in heard:
            made.sendall(message)
        made.recv(1)  # until it has them all
        return b" ".join(b"%d" % len(message) for message in heard)

    with Served(held, serve, kind=socket.SOCK_SEQPACKET) as served:
        said = guest(held, "messages", 6000, *SIZES)
    assert said == b"".join(b"%d same\n" % size for size in SIZES)
    assert served.found == b" ".join(b"%d" % size for size in SIZES)


def test_very_many_at_once(held: pyvmm.Machine) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * MANY)), hard))
    made: list[socket.socket] = []

    def serve() -> None:
        made.extend(listener.accept()[0] for _ in range(MANY))
        for each in made:
            each.settimeout(RUN_LIMIT)
            each.sendall(each.recv(4))

    with held.vsock.listen(6000) as listener:
        listener.settimeout(RUN_LIMIT)
        thread = Thread(target=serve)
        thread.start()
        assert guest(held, "many", 6000, MANY) == b"%d\n" % MANY
        thread.join()
    for each in made:
        each.close()


def test_reader_that_stands_still_costs_the_others_nothing(held: pyvmm.Machine) -> None:
    with held.vsock.listen(6001) as slow:
        slow.settimeout(RUN_LIMIT)
        with held.popen(["vsock", "fill", "6001"]) as filling, slow.accept()[0] as unread:
            assert next(iter(filling)) is not None  # "full"
            test_guest_ends_its_half(held)
            unread.settimeout(RUN_LIMIT)
            assert len(unread.recv(1)) == 1
            filling.kill()


def test_by_the_sockets_of_a_name(tmp_path: Path) -> None:
    """Firecracker's convention, and the smallest of buffers."""
    name = str(tmp_path / "lab")
    with (
        pyvmm.Machine(IMAGE, kernel="minimal", hold=True, name=name, vsock_buffer="64K") as machine,
        socket.create_server(f"{name}_6000", family=socket.AF_UNIX) as listener,
    ):
        listener.settimeout(RUN_LIMIT)
        with machine.popen(["vsock", "up", "6000"]) as process, listener.accept()[0] as made:
            made.settimeout(RUN_LIMIT)
            assert all_of(made) == b"up"
            made.sendall(bytes(300_000))
            made.shutdown(socket.SHUT_WR)
            assert process.wait().stdout == bytes(300_000) + b"|\n"
        assert guest(machine, "dial", 6001) == b"ECONNRESET\n"


def test_transport_reset(held: pyvmm.Machine) -> None:
    """Every connection is gone, the agent's too: the last of this machine's tests."""
    held.vsock.reset()
    deadline = time.monotonic() + RUN_LIMIT
    while not (last := LAST_WORDS.search(held.console)) and time.monotonic() < deadline:
        time.sleep(0.1)
    # ECONNRESET is for who sleeps in a call then; who calls later has ENOTCONN (Linux, af_vsock.c).
    assert last
    assert last[1] in (f"error {errno.ENOTCONN}", "connection reset by peer")
