"""vsock's switch channel: connections that the caller makes, listens for, and drops."""

from __future__ import annotations

import os
import resource
import socket
import struct

import pytest
from pyvmm._core import lib

from pyvmm import passing

from .virtq import EVENT_IDX, VERSION_1, Machine, check
from .vsock_guest import (
    BUF_ALLOC,
    GUEST,
    GUEST_PORT,
    MAX_PACKET,
    RCV,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SEND,
    SHUTDOWN,
    Guest,
    Packet,
    at_end,
    drain,
    ops,
)

CONNECT, LISTEN, UNLISTEN, ACCEPT, REFUSE, RESET = range(1, 7)
ASKED = 1
QUIET, SEQPACKET = 1, 2
EVERY = 0xFFFFFFFF
FIRST = 1 << 30
SMALL = 64 << 10
F_SEQPACKET = 2


class Caller:
    """A guest and the caller's end of the channel."""

    def __init__(self, machine: Machine, features: int) -> None:
        self.guest = Guest(machine, features)
        self.machine = machine
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.setblocking(False)
        check(lib.vm_set_switch(machine.core, self.guest.device.slot, theirs.detach()))
        self.sockets: list[socket.socket] = []

    def close(self) -> None:
        self.guest.close()
        for each in [self.channel, *self.sockets]:
            each.close()

    def say(self, op: int, a: int = 0, flags: int = 0, fd: int | None = None) -> None:
        passing.send(self.channel, struct.pack("<4I", op, a, 0, flags), [] if fd is None else [fd])
        self.machine.run()

    def hand_in(self, op: int, a: int, flags: int = 0) -> socket.socket:
        """Say it with one end of a socket pair; returns the other."""
        kind = socket.SOCK_SEQPACKET if flags & SEQPACKET else socket.SOCK_STREAM
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        ours.setblocking(False)
        self.sockets.append(ours)
        with theirs:
            self.say(op, a, flags, theirs.fileno())
        return ours

    def asked(self) -> list[tuple[int, ...]]:
        """What the device asks: ``(op, id, port, flags)``."""
        heard = []
        try:
            while True:
                heard.append(struct.unpack("<4I", self.channel.recv(64)))
        except BlockingIOError:
            return heard

    def connect(self, port: int = GUEST_PORT, flags: int = 0) -> tuple[socket.socket, int]:
        """A connection that the guest has let in, and its host port."""
        ours = self.hand_in(CONNECT, port, flags)
        (request,) = self.guest.received()
        answer = {"type": request.type, "src_port": port, "dst_port": request.src_port}
        self.guest.send(op=RESPONSE, **answer)
        return ours, request.src_port


@pytest.fixture(params=[VERSION_1, VERSION_1 | EVENT_IDX], ids=["plain", "event_idx"])
def caller(request: pytest.FixtureRequest):
    with Machine(64 << 20) as machine:
        caller = Caller(machine, request.param | F_SEQPACKET)
        caller.guest.post()
        yield caller
        caller.close()


@pytest.fixture
def guest(caller: Caller) -> Guest:
    return caller.guest


class TestConnect:
    def test_request_then_ok_then_data(self, caller, guest):
        ours = caller.hand_in(CONNECT, 7)
        (request,) = guest.received()
        assert request == Packet(
            src_cid=2, dst_cid=GUEST, src_port=FIRST, dst_port=7, len=0, op=REQUEST,
            buf_alloc=BUF_ALLOC,
        )  # fmt: skip
        assert drain(ours) == b""
        guest.send(op=RESPONSE, src_port=7, dst_port=FIRST)
        assert drain(ours) == b"OK %d\n" % FIRST
        guest.send(src_port=7, dst_port=FIRST, data=b"up")
        assert drain(ours) == b"up"
        ours.send(b"down")
        caller.machine.run()
        assert [p.data for p in guest.received()] == [b"down"]
        assert guest.idle()

    def test_quiet(self, caller, guest):
        ours, port = caller.connect(7, QUIET)
        guest.send(src_port=7, dst_port=port, data=b"only this")
        assert drain(ours) == b"only this"

    def test_what_is_written_before_the_answer_waits_for_it(self, caller, guest):
        ours = caller.hand_in(CONNECT, 7, QUIET)
        ours.send(b"early")
        assert guest.idle()
        assert ops(guest.received()) == [REQUEST]
        (packet,) = guest.ask(op=RESPONSE, src_port=7, dst_port=FIRST)
        assert packet.data == b"early"

    def test_refused(self, caller, guest):
        ours = caller.hand_in(CONNECT, 7)
        guest.received()
        assert guest.ask(op=RST, src_port=7, dst_port=FIRST) == []
        assert at_end(ours)

    def test_each_has_a_port_of_its_own(self, caller, guest):
        made = [caller.connect(7) for _ in range(5)]
        assert [port for _, port in made] == [FIRST + n for n in range(5)]
        for ours, port in made:
            drain(ours)
            guest.send(src_port=7, dst_port=port, data=b"%d" % port)
        assert [drain(ours) for ours, _ in made] == [b"%d" % port for _, port in made]

    def test_caller_gives_up_before_the_answer(self, caller, guest):
        ours = caller.hand_in(CONNECT, 7)
        assert ops(guest.received()) == [REQUEST]
        before = guest.open_fds()
        ours.close()
        assert guest.idle()
        assert ops(guest.received()) == [RST]
        assert guest.open_fds() == before - 2
        assert ops(guest.ask(op=RESPONSE, src_port=7, dst_port=FIRST)) == [RST]

    def test_before_there_is_a_driver(self):
        with Machine(64 << 20) as machine:
            caller = Caller(machine, VERSION_1)
            guest = caller.guest
            guest.device.write(0x70, 0)
            waits = caller.hand_in(CONNECT, 7)
            gives_up = caller.hand_in(CONNECT, 8)
            gives_up.close()
            caller.machine.run()
            guest.rx, guest.tx, guest.event = guest.device.start()
            guest.post()
            (request,) = guest.received()
            assert (request.op, request.dst_port) == (REQUEST, 7)
            guest.send(op=RESPONSE, src_port=7, dst_port=request.src_port)
            assert drain(waits) == b"OK %d\n" % request.src_port
            caller.close()

    def test_response_that_nobody_asked_for(self, caller, guest):
        assert ops(guest.ask(op=RESPONSE, src_port=7, dst_port=FIRST)) == [RST]
        ours, port = caller.connect(7)
        assert ops(guest.ask(op=RESPONSE, src_port=7, dst_port=port)) == [RST]
        assert drain(ours) == b"OK %d\n" % port
        assert at_end(ours)

    def test_data_before_the_response(self, caller, guest):
        ours = caller.hand_in(CONNECT, 7)
        guest.received()
        assert ops(guest.ask(src_port=7, dst_port=FIRST, data=b"x")) == [RST]
        assert at_end(ours)


class TestListen:
    def test_asked_and_let_in(self, caller, guest):
        caller.say(LISTEN, 9)
        assert guest.ask(op=REQUEST, dst_port=9) == []
        ((op, number, port, flags),) = caller.asked()
        assert (op, port, flags) == (ASKED, 9, 0)
        ours = caller.hand_in(ACCEPT, number)
        assert ops(guest.received()) == [RESPONSE]
        guest.send(dst_port=9, data=b"hello")
        assert drain(ours) == b"hello"

    def test_refused(self, caller, guest):
        caller.say(LISTEN, 9)
        guest.send(op=REQUEST, dst_port=9)
        ((_, number, _, _),) = caller.asked()
        caller.say(REFUSE, number)
        assert ops(guest.received()) == [RST]
        assert at_end(caller.hand_in(ACCEPT, number))  # too late

    def test_nobody_listens(self, caller, guest):
        caller.say(LISTEN, 9)
        caller.say(LISTEN, 9)
        assert ops(guest.ask(op=REQUEST, dst_port=10)) == [RST]
        caller.say(UNLISTEN, 9)
        caller.say(UNLISTEN, 9)
        assert ops(guest.ask(op=REQUEST, dst_port=9)) == [RST]
        assert caller.asked() == []

    def test_every_port(self, caller, guest):
        caller.say(LISTEN, EVERY)
        for port in (0, 9, 1 << 31):
            guest.send(op=REQUEST, dst_port=port)
        assert [port for _, _, port, _ in caller.asked()] == [0, 9, 1 << 31]
        caller.say(UNLISTEN, EVERY)
        assert ops(guest.ask(op=REQUEST, dst_port=9, src_port=1)) == [RST]

    def test_guest_has_gone_away(self, caller, guest):
        caller.say(LISTEN, 9)
        guest.send(op=REQUEST, dst_port=9)
        assert guest.ask(op=RST, dst_port=9) == []
        ((_, late, _, _),) = caller.asked()
        guest.send(op=REQUEST, dst_port=9)
        ((_, number, _, _),) = caller.asked()
        assert number != late
        assert at_end(caller.hand_in(ACCEPT, late))
        assert guest.received() == []
        caller.hand_in(ACCEPT, number)
        assert ops(guest.received()) == [RESPONSE]

    @pytest.mark.parametrize("number", [0, 5, 0xFFFFFFFF])
    def test_nobody_asked(self, caller, guest, number):
        assert at_end(caller.hand_in(ACCEPT, number))
        caller.say(REFUSE, number)
        assert guest.idle()
        assert guest.received() == []

    def test_accept_without_a_descriptor_refuses(self, caller, guest):
        caller.say(LISTEN, 9)
        guest.send(op=REQUEST, dst_port=9)
        ((_, number, _, _),) = caller.asked()
        caller.say(ACCEPT, number)
        assert ops(guest.received()) == [RST]

    def test_request_twice(self, caller, guest):
        caller.say(LISTEN, 9)
        guest.send(op=REQUEST, dst_port=9)
        assert ops(guest.ask(op=REQUEST, dst_port=9)) == [RST]
        ((_, number, _, _),) = caller.asked()
        assert at_end(caller.hand_in(ACCEPT, number))

    def test_full_channel_resets_the_guest(self, caller, guest):
        guest.post(192)
        caller.say(LISTEN, 9)
        resets = 0
        for port in range(4000):
            resets += len(guest.ask(op=REQUEST, dst_port=9, src_port=port))
        asked = caller.asked()
        assert resets == 4000 - len(asked)
        assert 0 < resets < 4000
        assert guest.idle()

    def test_flood_of_more_than_there_are_slots(self, caller, guest):
        guest.post(192)
        caller.say(LISTEN, 9)
        resets = asked = 0
        for port in range(5000):
            resets += len(guest.ask(op=REQUEST, dst_port=9, src_port=port))
            if port % 64 == 0:
                asked += len(caller.asked())
        asked += len(caller.asked())
        assert (asked, resets) == (lib.VM_VSOCK_CONNS, 5000 - lib.VM_VSOCK_CONNS)


class TestChannel:
    @pytest.mark.parametrize("message", [b"", b"short", bytes(17)])
    def test_strange_messages(self, caller, guest, message):
        with socket.socket() as given:
            passing.send(caller.channel, message or b"x", [given.fileno()])
            before = guest.open_fds()
            assert guest.idle()
            assert guest.open_fds() == before

    def test_unknown_op_and_descriptors_that_nobody_wants(self, caller, guest):
        for op in (0, LISTEN, UNLISTEN, 7, 99):
            assert at_end(caller.hand_in(op, 1))
        assert guest.idle()

    def test_caller_is_gone(self, caller, guest):
        ours, port = caller.connect(7, QUIET)
        caller.say(LISTEN, 9)
        caller.channel.close()
        assert guest.idle()
        assert ops(guest.ask(op=REQUEST, dst_port=9)) == [RST]
        guest.send(src_port=7, dst_port=port, data=b"alive")
        assert drain(ours) == b"alive"

    def test_connect_without_a_descriptor(self, caller, guest):
        caller.say(CONNECT, 7)
        assert guest.received() == []

    def test_other_devices_have_none(self, caller):
        caller.machine.rng()
        assert lib.vm_set_switch(caller.machine.core, 1, 0) < 0


class TestReset:
    def test_drops_all_and_tells(self, caller, guest):
        ours, port = caller.connect(7, QUIET)
        room = caller.machine.room(8)
        guest.event.add(into=[room])
        caller.say(RESET)
        assert at_end(ours)
        assert guest.event.take_all() == [(0, 4)]
        assert caller.machine.read(*room) == bytes(4) + b"\xee" * 4
        assert ops(guest.ask(src_port=7, dst_port=port, data=b"x")) == [RST]

    def test_waits_for_a_buffer(self, caller, guest):
        caller.say(RESET)
        guest.event.add(into=[caller.machine.room(4)])
        guest.event.kick_and_run()
        assert guest.event.take_all() == [(0, 4)]
        guest.event.add(into=[caller.machine.room(4)])
        guest.event.kick_and_run()
        assert guest.event.take_all() == []

    def test_keeps_who_listens_and_what_was_not_said_yet(self, caller, guest):
        caller.say(LISTEN, 9)
        caller.say(RESET)
        guest.send(op=REQUEST, dst_port=9)
        assert len(caller.asked()) == 1

    @pytest.mark.parametrize("strange", ["readable", "small"])
    def test_strange_buffer_breaks_the_device(self, caller, guest, strange):
        if strange == "readable":
            guest.event.add(out=[caller.machine.put(b"x")])
        else:
            guest.event.add(into=[caller.machine.room(3)])
        caller.say(RESET)
        assert guest.device.status & 64
        assert guest.idle()


class TestMany:
    def test_four_thousand_at_once(self, caller, guest):
        """All slots: data both ways on each, then half of them again."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit[1], 20000), limit[1]))
        guest.post(192)
        made = [caller.connect(7, QUIET) for _ in range(lib.VM_VSOCK_CONNS)]
        assert at_end(caller.hand_in(CONNECT, 7))  # one too many
        for turn in range(2):
            for ours, port in made:
                guest.send(src_port=7, dst_port=port, data=b"%d %d" % (turn, port))
                ours.send(b"%d" % port)
            caller.machine.run()
            heard = {}
            while packets := guest.received():
                heard |= {p.src_port: p.data for p in packets if p.op == RW}
            assert heard == {port: b"%d" % port for _, port in made}
            assert all(drain(ours) == b"%d %d" % (turn, port) for ours, port in made)
            for ours, port in made[::2]:
                guest.send(op=RST, src_port=7, dst_port=port)
                assert at_end(ours)
                ours.close()
            made = made[1::2] + [caller.connect(7, QUIET) for _ in made[::2]]
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)

    def test_late_ones_have_small_buffers(self, caller, guest):
        for _ in range(lib.VM_VSOCK_LARGE):
            caller.connect(7)
        ours = caller.hand_in(CONNECT, 7)
        (request,) = guest.received()
        assert request.buf_alloc == SMALL
        guest.send(op=RESPONSE, src_port=7, dst_port=request.src_port)
        drain(ours)
        sent = 0
        answers: list[Packet] = []
        while RST not in ops(answers):  # nobody reads: it ends with the credit
            answers = guest.ask(src_port=7, dst_port=request.src_port, data=bytes(8192))
            sent += 8192
        assert sent > SMALL

    def test_slow_reader_costs_the_others_nothing(self, caller, guest):
        slow, slow_port = caller.connect(7, QUIET)
        fast, fast_port = caller.connect(8, QUIET)
        for _ in range(BUF_ALLOC // MAX_PACKET):
            guest.send(src_port=7, dst_port=slow_port, data=bytes(MAX_PACKET))
        got = 0
        for _ in range(64):
            guest.send(src_port=8, dst_port=fast_port, data=bytes(MAX_PACKET))
            got += len(drain(fast))
            guest.received()
        assert got == 64 * MAX_PACKET
        got = 0
        while data := drain(slow):
            got += len(data)
            assert guest.idle()
        assert got == BUF_ALLOC


class TestSeqpacket:
    TYPE = 2
    WINDOW = BUF_ALLOC // 5 & -4096

    def connect(self, caller: Caller) -> tuple[socket.socket, dict[str, int]]:
        ours, port = caller.connect(7, QUIET | SEQPACKET)
        return ours, {"type": self.TYPE, "src_port": 7, "dst_port": port}

    def messages(self, sock: socket.socket) -> list[bytes]:
        got = []
        try:
            while message := sock.recv(1 << 20):
                got.append(message)
        except BlockingIOError:
            pass
        return got

    def test_request(self, caller, guest):
        caller.hand_in(CONNECT, 7, SEQPACKET)
        (request,) = guest.received()
        assert (request.type, request.op, request.buf_alloc) == (self.TYPE, REQUEST, self.WINDOW)

    def test_ok_is_a_message(self, caller):
        ours, port = caller.connect(7, SEQPACKET)
        assert self.messages(ours) == [b"OK %d\n" % port]

    def test_asked(self, caller, guest):
        caller.say(LISTEN, 9)
        guest.send(op=REQUEST, dst_port=9, type=self.TYPE)
        ((_, number, port, flags),) = caller.asked()
        assert (port, flags) == (9, SEQPACKET)
        caller.hand_in(ACCEPT, number, SEQPACKET)
        (response,) = guest.received()
        assert (response.type, response.op) == (self.TYPE, RESPONSE)

    def test_offers_are_streams(self, caller, guest):
        guest.offer()
        (answer,) = guest.ask(op=REQUEST, type=self.TYPE)
        assert (answer.type, answer.op) == (self.TYPE, RST)

    def test_not_negotiated(self):
        with Machine(64 << 20) as machine:
            caller = Caller(machine, VERSION_1)
            caller.guest.post()
            caller.say(LISTEN, 9)
            assert ops(caller.guest.ask(op=REQUEST, dst_port=9, type=self.TYPE)) == [RST]
            assert caller.asked() == []
            caller.close()

    def test_packets_of_the_other_type(self, caller, guest):
        ours, ports = self.connect(caller)
        assert ops(guest.ask(**ports | {"type": 1}, data=b"x", flags=1)) == [RST]
        assert at_end(ours)

    def test_messages_to_the_host(self, caller, guest):
        ours, ports = self.connect(caller)
        guest.send(**ports, data=b"whole", flags=1)
        guest.send(**ports, data=b"in ")
        guest.send(**ports, data=b"three ")
        assert self.messages(ours) == [b"whole"]
        guest.send(**ports, data=b"parts", flags=3)
        assert self.messages(ours) == [b"in three parts"]
        assert guest.idle()

    def test_the_longest(self, caller, guest):
        ours, ports = self.connect(caller)
        data = os.urandom(self.WINDOW)
        parts = [data[at : at + MAX_PACKET] for at in range(0, len(data), MAX_PACKET)]
        for part in parts[:-1]:
            guest.send(**ports, data=part)
        guest.send(**ports, data=parts[-1], flags=1)
        assert self.messages(ours) == [data]
        assert ops(guest.received()) == [6]

    def test_credit_for_the_rest_of_a_message(self, caller, guest):
        """Less than half of it has come back when it begins, and it needs more than the rest."""
        ours, ports = self.connect(caller)
        assert guest.ask(**ports, data=bytes(60_000), flags=1) == []
        assert self.messages(ours) == [bytes(60_000)]
        (update,) = guest.ask(**ports, data=bytes(50_000))
        assert (update.op, update.fwd_cnt) == (6, 60_000)
        assert guest.ask(**ports, data=bytes(50_000)) == []

    def test_longer_than_the_credit(self, caller, guest):
        ours, ports = self.connect(caller)
        for _ in range(3):
            guest.send(**ports, data=bytes(MAX_PACKET))
        assert ops(guest.ask(**ports, data=bytes(self.WINDOW - 3 * MAX_PACKET + 1))) == [RST]
        assert at_end(ours)

    def test_slow_reader_gets_each_message(self, caller, guest):
        ours, ports = self.connect(caller)
        sent = [b"%05d" % n * (n % 50 + 1) for n in range(1200)]
        assert sum(map(len, sent)) < self.WINDOW
        for message in sent:
            guest.send(**ports, data=message, flags=1)
        got: list[bytes] = []
        while more := self.messages(ours):
            got += more
            assert guest.idle()
        assert got == sent

    def test_credit_of_single_bytes_has_room(self, caller, guest):
        ours, ports = self.connect(caller)
        for _ in range(4 * self.WINDOW // MAX_PACKET):
            guest.send(**ports, data=bytes(MAX_PACKET // 4), flags=1)  # the socket is full
        while not ops(guest.ask(**ports, data=b"x", flags=1)):
            if self.messages(ours):
                break
        assert not at_end(ours)

    def test_empty_messages_are_not_passed_on(self, caller, guest):
        ours, ports = self.connect(caller)
        for _ in range(300):
            guest.send(**ports, flags=1)
        guest.send(**ports, data=b"real", flags=1)
        assert self.messages(ours) == [b"real"]

    @pytest.mark.parametrize("op", [RST, SHUTDOWN])
    def test_end_with_a_message_that_is_not_whole(self, caller, guest, op):
        ours, ports = self.connect(caller)
        guest.send(**ports, data=b"whole", flags=1)
        guest.send(**ports, data=b"half")
        guest.send(**ports, op=op, flags=RCV | SEND)
        assert self.messages(ours) == [b"whole"]
        assert at_end(ours)

    def test_messages_to_the_guest(self, caller, guest):
        ours, _ = self.connect(caller)
        sent = [b"short", os.urandom(50_000), b"x"]
        for message in sent:
            ours.send(message)
        caller.machine.run()
        got = b""
        messages = []
        for packet in guest.received():
            assert (packet.type, packet.op) == (self.TYPE, RW)
            got += packet.data
            if packet.flags & 1:
                messages.append(got)
                got = b""
        assert messages == sent
        assert guest.idle()

    def test_message_waits_for_credit_for_all_of_it(self, caller, guest):
        ours, port = caller.connect(7, QUIET | SEQPACKET)
        ports = {"type": self.TYPE, "src_port": 7, "dst_port": port}
        guest.send(op=6, **ports, buf_alloc=100)
        ours.send(bytes(60))
        ours.send(bytes(60))
        caller.machine.run()
        first, asks = guest.received()
        assert (first.len, first.flags, asks.op) == (60, 1, 7)
        assert guest.idle()
        assert [p.len for p in guest.ask(op=6, **ports, buf_alloc=100, fwd_cnt=60)] == [60]

    def test_message_that_the_guest_has_never_room_for(self, caller, guest):
        ours, port = caller.connect(7, QUIET | SEQPACKET)
        guest.send(op=6, type=self.TYPE, src_port=7, dst_port=port, buf_alloc=100)
        ours.send(bytes(101))
        caller.machine.run()
        assert ops(guest.received()) == [RST]
        assert at_end(ours)

    def test_message_waits_for_buffers_and_comes_first(self, caller, guest):
        ours, _ = self.connect(caller)
        other, _ = caller.connect(8, QUIET)
        guest.received()
        ours.send(bytes(100_000))  # 25 buffers
        caller.machine.run()
        packets = guest.received(repost=False)
        assert sum(p.len or 0 for p in packets) == 100_000
        ours.send(bytes(160_000))  # 40, and 39 are left
        other.send(b"behind it")
        caller.machine.run()
        assert guest.received(repost=False) == []
        assert guest.idle()
        guest.post(10)
        packets = guest.received(repost=False)
        assert [p.len for p in packets][-1] == len(b"behind it")
        assert sum(p.len or 0 for p in packets[:-1]) == 160_000

    def test_host_closes(self, caller, guest):
        ours, _ = self.connect(caller)
        ours.send(b"last")
        ours.close()
        caller.machine.run()
        assert ops(guest.received()) == [RW, SHUTDOWN]
        assert guest.idle()
