"""virtio-vsock: connections, credit in both directions, shutdown, and hostile guests."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import socket
import struct

import pytest
from pyvmm._core import lib

from .virtq import EVENT_IDX, NEEDS_RESET, QUEUE_READY, QUEUE_SEL, STATUS, VERSION_1, Machine
from .vsock_guest import (
    BUF_ALLOC,
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    GUEST,
    GUEST_ALLOC,
    GUEST_PORT,
    HEADER,
    HOST,
    MAX_PACKET,
    PORT,
    RCV,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    RX_BUFFER,
    SEND,
    SHUTDOWN,
    Guest,
    Packet,
    at_end,
    drain,
    fill,
    ops,
)

TX_RESETS = 64  # resets that the device holds before it stops to serve TX


@pytest.fixture(params=[VERSION_1, VERSION_1 | EVENT_IDX], ids=["plain", "event_idx"])
def bare(request):
    """A guest without receive buffers."""
    with Machine(64 << 20) as machine:
        guest = Guest(machine, request.param)
        yield guest
        guest.close()


@pytest.fixture
def guest(bare):
    bare.post()
    return bare


@pytest.fixture
def connected(guest):
    """``(guest, host's socket)``, connected."""
    host = guest.offer()
    guest.connect()
    return guest, host


class TestConnect:
    def test_response(self, guest):
        guest.offer()
        assert guest.ask(op=REQUEST) == [
            Packet(
                src_cid=HOST, dst_cid=GUEST, src_port=PORT, dst_port=GUEST_PORT, len=0,
                op=RESPONSE, buf_alloc=BUF_ALLOC, fwd_cnt=0,
            )
        ]  # fmt: skip

    def test_unknown_port_is_reset(self, guest):
        guest.offer(PORT + 1)
        assert guest.ask(op=REQUEST) == [
            Packet(
                src_cid=HOST, dst_cid=GUEST, src_port=PORT, dst_port=GUEST_PORT, len=0,
                op=RST, buf_alloc=0, fwd_cnt=0,
            )
        ]  # fmt: skip

    def test_an_offer_is_taken_once(self, connected):
        guest, host = connected
        (answer,) = guest.ask(op=REQUEST, src_port=GUEST_PORT + 1)
        assert (answer.op, answer.dst_port) == (RST, GUEST_PORT + 1)
        guest.send(data=b"still here")
        assert drain(host) == b"still here"

    def test_no_offer_again_after_a_reset(self, connected):
        guest, _host = connected
        assert guest.ask(op=RST) == []
        assert ops(guest.ask(op=REQUEST)) == [RST]

    def test_repeated_request_resets_the_connection(self, connected):
        guest, host = connected
        assert ops(guest.ask(op=REQUEST)) == [RST]
        assert at_end(host)

    def test_several_ports(self, guest):
        hosts = [guest.offer(port) for port in range(16)]
        for port, host in enumerate(hosts):
            guest.connect(dst_port=port, src_port=500)
            guest.send(dst_port=port, src_port=500, data=b"to %d" % port)
            assert drain(host) == b"to %d" % port

    def test_offers_to_other_devices(self, guest):
        guest.machine.rng()
        for slot in (-1, 1, 2, 100):
            assert lib.vm_offer_port(guest.machine.core, slot, PORT, 0) < 0

    def test_config_is_the_guest_cid(self, guest):
        assert guest.device.config(0, 8) == struct.pack("<Q", GUEST)

    def test_data_that_waits_already_comes_after_the_response(self, guest):
        host = guest.offer()
        host.send(b"early")
        assert guest.idle()
        packets = guest.ask(op=REQUEST)
        assert ops(packets) == [RESPONSE, RW]
        assert packets[1].data == b"early"

    def test_host_gone_before_the_request(self, guest):
        guest.offer().close()
        packets = guest.ask(op=REQUEST)
        assert ops(packets) == [RESPONSE, SHUTDOWN]
        assert guest.idle()


class TestGuestToHost:
    def test_bytes(self, connected):
        guest, host = connected
        guest.send(data=b"hello")
        assert drain(host) == b"hello"
        assert guest.received() == []

    def test_header_and_data_split_bytewise(self, connected):
        guest, host = connected
        raw = Packet(data=b"in pieces").pack()
        head = guest.tx.add(out=[guest.machine.put(raw[i : i + 1]) for i in range(len(raw))])
        guest.tx.kick_and_run()
        assert guest.tx.take_all() == [(head, 0)]
        assert drain(host) == b"in pieces"

    def test_empty_packet(self, connected):
        guest, host = connected
        assert guest.ask(data=b"") == []
        assert drain(host) == b""

    def test_chain_longer_than_len(self, connected):
        guest, host = connected
        guest.send(data=b"yes, no", len=3)
        assert drain(host) == b"yes"

    def test_credit_request_is_answered(self, connected):
        guest, _host = connected
        guest.send(data=b"x" * 100)
        (update,) = guest.ask(op=CREDIT_REQUEST)
        assert (update.op, update.buf_alloc, update.fwd_cnt) == (CREDIT_UPDATE, BUF_ALLOC, 100)

    # Linux keeps no more on the way than its own buffer holds (tx_buf_size in
    # virtio_transport_common.c): credit must come back within that, or it waits for ever.
    @pytest.mark.parametrize("window", [256 << 10, BUF_ALLOC, 2 * BUF_ALLOC])
    def test_credit_update_after_each_half_of_the_smaller_buffer(self, guest, window):
        host = guest.offer()
        guest.connect(buf_alloc=window)
        seen = []
        for _ in range(32):
            seen += guest.ask(data=bytes(MAX_PACKET), buf_alloc=window)
            drain(host)
        half = min(window, BUF_ALLOC) // 2
        assert ops(seen) == [CREDIT_UPDATE] * (32 * MAX_PACKET // half)
        assert [p.fwd_cnt for p in seen] == [half * (n + 1) for n in range(len(seen))]

    def test_five_mib_with_a_slow_reader(self, connected):
        guest, host = connected
        rng = random.Random(1)
        data = rng.randbytes(5 << 20)
        got = bytearray()
        sent = forwarded = 0
        while len(got) < len(data):
            free = BUF_ALLOC - (sent - forwarded)
            size = min(free, rng.randint(1, MAX_PACKET), len(data) - sent)
            if size:
                guest.send(data=data[sent : sent + size])
                sent += size
            if not size or rng.random() < 0.3:
                with contextlib.suppress(BlockingIOError):
                    got += host.recv(rng.randint(1, 200_000))
                assert guest.idle()
            for packet in guest.received():
                assert packet.op == CREDIT_UPDATE
                assert packet.buf_alloc == BUF_ALLOC
                assert forwarded <= packet.fwd_cnt <= sent
                forwarded = packet.fwd_cnt
        assert got == data

    def test_reader_that_never_reads_bounds_the_guest(self, connected):
        guest, _host = connected
        for _ in range(BUF_ALLOC // MAX_PACKET):
            guest.send(data=bytes(MAX_PACKET))
        (update,) = guest.ask(op=CREDIT_REQUEST)
        more = update.fwd_cnt  # what the socket took is credit again: use it to the last byte
        assert 0 < more < BUF_ALLOC
        while more:
            size = min(more, MAX_PACKET)
            assert guest.ask(data=bytes(size)) == []
            more -= size
        assert guest.idle()
        assert ops(guest.ask(data=b"!")) == [RST]  # one byte too many
        assert guest.idle()

    def test_credit_comes_back_as_the_reader_reads(self, connected):
        guest, host = connected
        sent = b""
        for n in range(BUF_ALLOC // MAX_PACKET):
            data = bytes([n]) * MAX_PACKET
            guest.send(data=data)
            sent += data
        assert guest.received() == []
        got = b""
        while part := drain(host):
            got += part
            assert guest.idle()
        assert got == sent
        (update,) = guest.received()
        assert update.op == CREDIT_UPDATE
        assert BUF_ALLOC // 2 <= update.fwd_cnt <= BUF_ALLOC
        (update,) = guest.ask(op=CREDIT_REQUEST)
        assert update.fwd_cnt == BUF_ALLOC

    @pytest.mark.parametrize("buffer", [64 << 10, 68 << 10, 4 << 20, 64 << 20])
    def test_buffers_of_another_size(self, buffer):
        with Machine(64 << 20) as machine:
            guest = Guest(machine, buffer=buffer)
            guest.post()
            host = guest.offer()
            (response,) = guest.ask(op=REQUEST)
            assert response.buf_alloc == buffer
            for turn in range(1, 4):  # round the ring's end, too
                for at in range(0, buffer, MAX_PACKET):
                    guest.send(data=bytes([turn]) * min(MAX_PACKET, buffer - at))
                got = b""
                while part := drain(host):
                    got += part
                    assert guest.idle()
                assert got == bytes([turn]) * buffer
                while guest.received():
                    pass
                (update,) = guest.ask(op=CREDIT_REQUEST)
                assert update.fwd_cnt == turn * buffer
            guest.close()

    @pytest.mark.parametrize(
        "buffer", [0, 4096, (64 << 10) - 4096, (64 << 10) + 1, (64 << 20) + 4096, (1 << 32) - 4096]
    )
    def test_buffers_that_cannot_be(self, buffer):
        with Machine(64 << 20) as machine:
            assert lib.vm_add_vsock(machine.core, GUEST, buffer) == -errno.EINVAL

    def test_packet_of_impossible_length(self, connected):
        guest, host = connected
        assert ops(guest.ask(data=b"short", len=6)) == [RST]
        assert at_end(host)

    @pytest.mark.parametrize("length", [0xFFFFFFFF, 1 << 31, BUF_ALLOC + 1])
    def test_len_of_a_packet_longer_than_its_chain(self, connected, length):
        guest, host = connected
        assert ops(guest.ask(data=b"x", len=length)) == [RST]
        assert at_end(host)

    def test_more_than_the_credit_in_one_packet(self, connected):
        guest, host = connected
        room = guest.machine.alloc(BUF_ALLOC + 1)
        header = guest.machine.put(Packet(len=BUF_ALLOC + 1).pack())
        guest.tx.add(out=[header, (room, BUF_ALLOC + 1)])
        guest.tx.kick_and_run()
        assert ops(guest.received()) == [RST]
        assert drain(host) == b""

    def test_all_the_credit_in_one_packet(self, connected):
        guest, host = connected
        room = guest.machine.alloc(BUF_ALLOC)
        header = guest.machine.put(Packet(len=BUF_ALLOC).pack())
        guest.tx.add(out=[header, (room, BUF_ALLOC)])
        guest.tx.kick_and_run()
        assert RST not in ops(guest.received())
        total = 0
        while part := drain(host):
            total += len(part)
            assert guest.idle()
        assert total == BUF_ALLOC

    def test_reader_closed_is_reset(self, connected):
        guest, host = connected
        host.close()
        assert ops(guest.received()) in ([], [SHUTDOWN])
        assert guest.idle()
        guest.received()
        assert ops(guest.ask(data=b"for nobody")) == [RST]
        assert ops(guest.ask(data=b"more")) == [RST]  # and the connection is no more
        assert guest.idle()

    def test_reader_closed_with_data_held_is_reset(self, connected):
        guest, host = connected
        for _ in range(BUF_ALLOC // MAX_PACKET):
            guest.send(data=bytes(MAX_PACKET))
        host.close()
        assert guest.idle()
        assert RST in ops(guest.received())
        assert guest.idle()


class TestHostToGuest:
    def test_bytes(self, connected):
        guest, host = connected
        host.send(b"hello")
        guest.machine.run()
        assert guest.received() == [
            Packet(
                src_cid=HOST, dst_cid=GUEST, src_port=PORT, dst_port=GUEST_PORT, len=5, op=RW,
                buf_alloc=BUF_ALLOC, fwd_cnt=0, data=b"hello",
            )
        ]  # fmt: skip

    def test_packets_carry_credit(self, connected):
        guest, host = connected
        guest.send(data=b"x" * 1000)
        host.send(b"y")
        guest.machine.run()
        (packet,) = guest.received()
        assert packet.fwd_cnt == 1000

    def test_five_mib_within_credit(self, connected):
        guest, host = connected
        data = random.Random(2).randbytes(5 << 20)
        got = bytearray()
        told = 0
        sent = 0
        requests = 0
        while len(got) < len(data):
            with contextlib.suppress(BlockingIOError):
                sent += host.send(data[sent : sent + 100_000])
            assert guest.idle()
            for packet in guest.received():
                if packet.op == CREDIT_REQUEST:
                    requests += 1
                    continue
                assert packet.op == RW
                got += packet.data
                assert len(got) - told <= GUEST_ALLOC
            if len(got) - told == GUEST_ALLOC:
                told = len(got)
                guest.send(op=CREDIT_UPDATE, fwd_cnt=told)
        assert got == data
        assert requests == len(data) // GUEST_ALLOC

    def test_asks_for_credit_once_when_out_of_it_for_a_while(self, guest):
        host = guest.offer()
        guest.connect(buf_alloc=1000)
        host.send(bytes(5000))
        assert guest.idle()
        packets = guest.received()
        assert sum(len(p.data) for p in packets) == 1000
        assert ops(packets)[-1] == CREDIT_REQUEST
        assert ops(packets).count(CREDIT_REQUEST) == 1
        assert guest.idle()
        assert guest.received() == []

    def test_does_not_ask_a_guest_that_may_still_tell(self, guest):
        host = guest.offer()
        guest.connect(buf_alloc=1000)
        host.send(bytes(5000))
        assert lib.vm_poll(guest.machine.core, -1) == 1
        assert set(ops(guest.received(repost=False))) == {RW}

    def test_no_credit_stalls_then_resumes(self, guest):
        host = guest.offer()
        guest.connect(buf_alloc=0)
        host.send(b"patience")
        assert guest.idle()
        assert b"".join(p.data for p in guest.received()) == b""
        packets = guest.ask(op=CREDIT_UPDATE, buf_alloc=3)
        assert b"".join(p.data for p in packets) == b"pat"
        packets = guest.ask(op=CREDIT_UPDATE, buf_alloc=8)
        assert b"".join(p.data for p in packets) == b"ience"
        assert guest.idle()

    def test_guest_that_claims_more_than_was_sent_gets_nothing(self, connected):
        guest, host = connected
        guest.send(op=CREDIT_UPDATE, fwd_cnt=1)
        host.send(b"x")
        assert guest.idle()
        assert [p for p in guest.received() if p.op == RW] == []

    def test_buffer_split_over_descriptors(self, bare):
        machine = bare.machine
        pieces = [machine.room(n) for n in (1, 20, 23, 2, 3, 100)]
        bare.rx.add(into=pieces)
        bare.post(1)
        host = bare.offer()
        bare.send(op=REQUEST)
        host.send(b"split")
        machine.run()
        (first, length) = bare.rx.take()
        assert (first, length) == (0, HEADER.size)
        raw = b"".join(machine.read(*p) for p in pieces)
        assert Packet.unpack(raw[:length]).op == RESPONSE
        (packet,) = bare.received()
        assert packet.data == b"split"

    def test_buffers_for_one_byte_each(self, bare):
        bare.post(20, HEADER.size + 1)
        host = bare.offer()
        bare.send(op=REQUEST)
        host.send(b"drip")
        bare.machine.run()
        packets = bare.received()
        assert ops(packets) == [RESPONSE, RW, RW, RW, RW]
        assert [p.data for p in packets[1:]] == [b"d", b"r", b"i", b"p"]

    def test_packets_of_64_kib_at_most(self, bare):
        bare.post(4, 2 * MAX_PACKET)
        host = bare.offer()
        bare.send(op=REQUEST)
        fill(host, 3 * MAX_PACKET)
        assert bare.idle()
        assert max(len(p.data) for p in bare.received()) <= MAX_PACKET

    @pytest.mark.parametrize("size", [1, HEADER.size - 1, HEADER.size])
    def test_buffers_too_small_for_a_packet_break_the_device(self, bare, size):
        bare.post(1, size)
        bare.send(op=REQUEST)
        assert bare.device.status & NEEDS_RESET
        assert bare.rx.used_idx == 0

    def test_readable_receive_buffer_breaks_the_device(self, bare):
        bare.rx.add(out=[bare.machine.put(b"x")], into=[bare.machine.room(4096)])
        bare.rx.kick_and_run()
        bare.send(op=REQUEST)
        assert bare.device.status & NEEDS_RESET

    def test_connections_in_line_take_turns(self, bare):
        hosts = [bare.offer(port) for port in range(3)]
        bare.post(3)
        for port in range(3):
            bare.send(op=REQUEST, dst_port=port)
        assert ops(bare.received(repost=False)) == [RESPONSE] * 3
        for host in hosts:
            host.send(bytes(MAX_PACKET + 1))
        bare.machine.run()
        bare.post(60)
        turns = itertools.groupby(bare.received(repost=False), lambda p: p.src_port)
        sent = [(port, sum(len(p.data) for p in turn)) for port, turn in turns]
        assert sorted(sent[:3]) == [(0, MAX_PACKET), (1, MAX_PACKET), (2, MAX_PACKET)]
        assert sorted(sent[3:]) == [(0, 1), (1, 1), (2, 1)]


class TestShutdown:
    def test_host_half_close(self, connected):
        guest, host = connected
        host.send(b"last words")
        host.shutdown(socket.SHUT_WR)
        guest.machine.run()
        packets = guest.received()
        assert ops(packets) == [RW, SHUTDOWN]
        assert packets[1].flags == SEND
        assert guest.idle()
        guest.send(data=b"the other way")
        assert drain(host) == b"the other way"
        assert guest.idle()
        assert guest.received() == []

    def test_guest_will_send_no_more(self, connected):
        guest, host = connected
        guest.send(data=b"last words")
        assert guest.ask(op=SHUTDOWN, flags=SEND) == []
        assert host.recv(100) == b"last words"
        assert at_end(host)
        host.send(b"the other way")
        guest.machine.run()
        (packet,) = guest.received()
        assert packet.data == b"the other way"
        assert guest.idle()

    def test_sending_after_that_is_reset(self, connected):
        guest, _host = connected
        guest.send(op=SHUTDOWN, flags=SEND)
        assert ops(guest.ask(data=b"x")) == [RST]

    def test_guest_will_receive_no_more(self, connected):
        guest, host = connected
        assert guest.ask(op=SHUTDOWN, flags=RCV) == []
        with pytest.raises(BrokenPipeError):
            host.send(b"x")
        guest.send(data=b"the other way")
        assert host.recv(100) == b"the other way"
        assert guest.idle()
        assert guest.received() == []

    @pytest.mark.parametrize("steps", [[RCV | SEND], [RCV, SEND], [SEND, RCV]])
    def test_both_is_a_clean_disconnect_answered_by_reset(self, connected, steps):
        guest, host = connected
        guest.send(data=b"before")
        answers = [packet for flags in steps for packet in guest.ask(op=SHUTDOWN, flags=flags)]
        assert ops(answers) == [RST]
        assert host.recv(100) == b"before"
        assert at_end(host)
        assert guest.idle()
        assert guest.ask(op=RST) == []

    def test_no_flags_change_nothing(self, connected):
        guest, host = connected
        assert guest.ask(op=SHUTDOWN, flags=0) == []
        assert guest.ask(op=SHUTDOWN, flags=0xFFFFFFFC) == []
        guest.send(data=b"open")
        assert drain(host) == b"open"

    @pytest.mark.parametrize("flags", [SEND, RCV | SEND])
    def test_data_held_is_delivered_first(self, connected, flags):
        guest, host = connected
        sent = b""
        for n in range(BUF_ALLOC // MAX_PACKET):
            data = bytes([n]) * MAX_PACKET
            guest.send(data=data)
            sent += data
        answers = guest.ask(op=SHUTDOWN, flags=flags)
        assert RST not in ops(answers)
        got = b""
        while part := drain(host):
            got += part
            assert guest.idle()
            answers += guest.received()
        assert got == sent
        assert at_end(host)
        assert (RST in ops(answers)) == (flags == RCV | SEND)

    def test_reset_by_the_guest_delivers_what_is_held(self, connected):
        guest, host = connected
        sent = b""
        for n in range(BUF_ALLOC // MAX_PACKET):
            data = bytes([n]) * MAX_PACKET
            guest.send(data=data)
            sent += data
        assert guest.ask(op=RST) == []
        got = b""
        while part := drain(host):
            got += part
            assert guest.idle()
        assert got == sent
        assert at_end(host)
        assert guest.received() == []

    def test_reset_by_the_guest_then_the_reader_goes(self, connected):
        guest, host = connected
        for _ in range(BUF_ALLOC // MAX_PACKET):
            guest.send(data=bytes(MAX_PACKET))
        before = guest.open_fds()
        guest.send(op=RST)
        host.close()
        assert guest.idle()
        assert guest.open_fds() == before - 2
        assert guest.received() == []

    def test_host_closes_with_unread_data(self, connected):
        """The socket says ECONNRESET then: neither direction will go on."""
        guest, host = connected
        guest.send(data=b"unread")
        host.close()
        guest.machine.run()
        (packet,) = guest.received()
        assert (packet.op, packet.flags) == (SHUTDOWN, RCV | SEND)
        assert guest.idle()


class TestStrangePackets:
    @pytest.mark.parametrize("fields", [{"src_cid": 4}, {"dst_cid": 0}, {"dst_cid": 2**32 + 2}])
    def test_wrong_cid_is_dropped(self, connected, fields):
        guest, host = connected
        assert guest.ask(data=b"x", **fields) == []
        assert guest.ask(op=REQUEST, **fields) == []
        assert guest.ask(op=RST, **fields) == []
        guest.send(data=b"alive")
        assert drain(host) == b"alive"

    @pytest.mark.parametrize("kind", [0, 2, 0xFFFF])
    def test_wrong_type_is_reset(self, connected, kind):
        guest, host = connected
        assert ops(guest.ask(type=kind, data=b"x")) == [RST]
        assert at_end(host)
        assert ops(guest.ask(type=kind, op=REQUEST, src_port=5)) == [RST]
        assert guest.ask(type=kind, op=RST, src_port=5) == []

    @pytest.mark.parametrize("op", [0, RESPONSE, 8, 0xFFFF])
    def test_unknown_op_is_reset(self, connected, op):
        guest, host = connected
        assert ops(guest.ask(op=op)) == [RST]
        assert at_end(host)

    @pytest.mark.parametrize("op", [RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 0, 99])
    def test_packets_for_dead_connections_are_reset(self, guest, op):
        assert ops(guest.ask(op=op)) == [RST]

    def test_reset_for_a_dead_connection_is_not_answered(self, guest):
        assert guest.ask(op=RST) == []

    @pytest.mark.parametrize("size", [1, HEADER.size - 1])
    def test_short_header_is_dropped(self, connected, size):
        guest, host = connected
        head = guest.tx.add(out=[guest.machine.put(Packet(op=RST).pack()[:size])])
        guest.tx.kick_and_run()
        assert guest.tx.take_all() == [(head, 0)]
        guest.send(data=b"alive")
        assert drain(host) == b"alive"

    def test_no_readable_buffer_is_dropped(self, guest):
        head = guest.tx.add(into=[guest.machine.room(100)])
        guest.tx.kick_and_run()
        assert guest.tx.take_all() == [(head, 0)]

    def test_event_queue_is_left_alone(self, guest):
        guest.event.add(into=[guest.machine.room(8)])
        guest.event.kick_and_run()
        assert guest.event.take_all() == []


class TestResetFlood:
    """Answers without a connection are held only in a short line; nothing of them is lost."""

    def flood(self, guest: Guest, count: int, first: int = 0) -> None:
        for n in range(first, first + count):
            guest.queue_packet(Packet(op=REQUEST, dst_port=9, src_port=n))
        guest.tx.kick_and_run()

    def test_with_receive_buffers_at_hand(self, guest):
        guest.post(192)
        self.flood(guest, 200)
        assert len(guest.tx.take_all()) == 200
        answers = guest.received()
        assert set(ops(answers)) == {RST}
        assert sorted(p.dst_port for p in answers) == list(range(200))

    def test_without_receive_buffers(self, bare):
        self.flood(bare, 200)
        assert len(bare.tx.take_all()) == TX_RESETS
        assert bare.idle()
        bare.post(256)
        assert len(bare.tx.take_all()) == 200 - TX_RESETS
        assert sorted(p.dst_port for p in bare.received()) == list(range(200))

    def test_a_few_receive_buffers_at_a_time(self, bare):
        self.flood(bare, 200)
        answered = []
        for _ in range(40):
            bare.post(5)
            answered += [p.dst_port for p in bare.received(repost=False)]
        assert sorted(answered) == list(range(200))
        assert len(bare.tx.take_all()) == 200
        assert bare.idle()

    def test_buffers_come_while_a_connection_has_data(self, bare):
        """Whoever serves RX first, the TX queue must be taken up again."""
        bare.post(1)
        host = bare.offer()
        bare.connect()
        host.send(b"takes the only buffer")
        bare.machine.run()
        (packet,) = bare.received(repost=False)
        assert packet.op == RW
        self.flood(bare, 100)
        assert len(bare.tx.take_all()) == TX_RESETS
        for buffer in [bare.machine.room(RX_BUFFER) for _ in range(200)]:
            bare.buffers[bare.rx.add(into=[buffer])] = buffer
        host.send(b"more")  # the socket's event serves RX, before the kick is seen
        bare.machine.run()
        bare.rx.kick_and_run()
        answers = bare.received(repost=False)
        assert sorted(p.dst_port for p in answers if p.op == RST) == list(range(100))
        assert b"".join(p.data for p in answers) == b"more"
        assert len(bare.tx.take_all()) == 100 - TX_RESETS

    def test_unready_tx_queue_is_not_taken_up_again(self, bare):
        self.flood(bare, 100)
        bare.device.write(QUEUE_SEL, 1)
        bare.device.write(QUEUE_READY, 0)
        bare.post(200)
        assert len(bare.received(repost=False)) == len(bare.tx.take_all()) == TX_RESETS

    def test_every_connection_still_gets_its_reset(self, bare):
        hosts = [bare.offer(port) for port in range(16)]
        bare.post(16)
        for port in range(16):
            bare.connect(dst_port=port)
        held = bytes(MAX_PACKET)
        for port in range(16):
            for _ in range(BUF_ALLOC // MAX_PACKET):
                bare.send(dst_port=port, data=held)
        bare.machine.run()
        bare.received(repost=False)
        while bare.rx.take():
            pass
        self.flood(bare, 100, first=100)
        for host in hosts:
            host.close()
        assert bare.idle()
        bare.post(200)
        resets = [p for p in bare.received() if p.op == RST]
        assert len(bare.tx.take_all()) > 0
        assert sorted(p.dst_port for p in resets) == sorted([*range(100, 200), *[GUEST_PORT] * 16])


class TestNoBusyLoop:
    """Each state in which something cannot go on must leave the loop asleep (no level-triggered
    event left armed)."""

    def test_host_data_and_no_receive_buffers(self, bare):
        bare.post(1)
        host = bare.offer()
        bare.send(op=REQUEST)
        bare.received(repost=False)
        host.send(b"waits")
        assert bare.idle()
        assert bare.rx.take() is None
        bare.post(1)
        assert [p.data for p in bare.received()] == [b"waits"]

    def test_host_data_and_no_credit(self, guest):
        host = guest.offer()
        guest.connect(buf_alloc=0)
        host.send(b"x")
        assert guest.idle()

    def test_held_data_and_a_full_socket(self, connected):
        guest, _host = connected
        for _ in range(BUF_ALLOC // MAX_PACKET):
            guest.send(data=bytes(MAX_PACKET))
        assert guest.idle()

    @pytest.mark.parametrize("credit", [0, GUEST_ALLOC])
    def test_peer_hung_up(self, guest, credit):
        host = guest.offer()
        guest.connect(buf_alloc=credit)
        host.send(b"x")
        host.close()
        assert guest.idle()

    def test_peer_hung_up_and_no_receive_buffers(self, bare):
        bare.post(1)
        host = bare.offer()
        bare.connect()
        bare.received(repost=False)
        host.close()
        assert bare.idle()

    def test_hung_up_after_half_close(self, connected):
        """A guest that may still send is told that nobody reads any more."""
        guest, host = connected
        host.shutdown(socket.SHUT_WR)
        guest.machine.run()
        assert [packet.flags for packet in guest.received()] == [SEND]
        host.close()
        assert guest.idle()
        assert [packet.flags for packet in guest.received()] == [SEND | RCV]

    def test_hung_up_with_data_unread(self, connected):
        """That is an error of the socket's (ECONNRESET); what the host sent comes all the same."""
        guest, host = connected
        guest.send(data=b"unread")
        host.send(b"last")
        host.close()
        assert guest.idle()
        packets = guest.received()
        assert [(packet.op, packet.flags, packet.data) for packet in packets] == [
            (RW, 0, b"last"),
            (SHUTDOWN, SEND | RCV, b""),
        ]

    def test_both_half_closed(self, connected):
        guest, host = connected
        host.shutdown(socket.SHUT_WR)
        guest.machine.run()
        guest.received()
        guest.send(op=SHUTDOWN, flags=SEND)
        assert guest.idle()
        assert guest.received() == []

    def test_hung_up_after_the_guest_stopped_to_receive(self, connected):
        guest, host = connected
        guest.send(op=SHUTDOWN, flags=RCV)
        host.close()
        assert guest.idle()

    def test_broken_device(self, connected):
        guest, host = connected
        guest.rx.set_avail_idx(guest.rx.avail_idx + 300)
        guest.rx.kick_and_run()
        host.send(b"x")
        assert guest.idle()
        assert guest.device.status & NEEDS_RESET


class TestDeviceReset:
    def test_closes_connections_and_keeps_offers(self, connected):
        guest, host = connected
        other = guest.offer(7)
        for _ in range(BUF_ALLOC // MAX_PACKET):
            guest.send(data=bytes(MAX_PACKET))
        guest.device.write(STATUS, 0)
        drain(host)
        assert at_end(host)
        assert guest.idle()
        guest.rx, guest.tx, guest.event = guest.device.start()
        guest.buffers.clear()
        guest.post(8)
        assert ops(guest.ask(op=RW)) == [RST]
        guest.connect(dst_port=7)
        guest.send(dst_port=7, data=b"anew")
        assert drain(other) == b"anew"

    def test_forgets_answers_that_wait(self, bare):
        bare.send(op=REQUEST)
        bare.rx, bare.tx, bare.event = bare.device.start()
        bare.post(8)
        assert bare.received() == []

    def test_leaks_no_descriptor(self):
        before = len(os.listdir("/proc/self/fd"))
        with Machine(64 << 20) as machine:
            guest = Guest(machine)
            guest.post()
            for port in range(16):
                guest.offer(port)
            for port in range(8):
                guest.connect(dst_port=port)
            guest.close()
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def streaming():
    """``(guest, host's socket, another device's queue)`` after so much from the guest that its
    kicks are put off.
    """
    with Machine(64 << 20) as machine:
        guest = Guest(machine, VERSION_1 | EVENT_IDX)
        (other,) = machine.rng().start()
        guest.post()
        host = guest.offer()
        guest.connect()
        for _ in range(17):
            guest.queue_packet(Packet(data=bytes(MAX_PACKET)))
            guest.tx.kick()
            assert lib.vm_poll(machine.core, -1) == 1
            assert len(drain(host)) == MAX_PACKET
        # Of packets of 64 KiB one more than is here: half of Linux's window.
        assert guest.tx.avail_event == guest.tx.avail_idx + 1
        yield guest, host, other
        guest.close()


class TestKicksPutOff:
    """What the guest has not kicked for is seen all the same."""

    def put_off(self, streaming) -> None:
        guest, host, _other = streaming
        guest.queue_packet(Packet(data=b"!"))
        assert drain(host) == b""

    def test_after_a_quiet_moment(self, streaming):
        guest, host, _other = streaming
        for _ in range(2):  # a slow stream is one, too
            self.put_off(streaming)
            assert lib.vm_poll(guest.machine.core, -1) == 1
            assert drain(host) == b"!"
            assert guest.tx.avail_event == guest.tx.avail_idx + 64
        assert lib.vm_poll(guest.machine.core, -1) == 1
        assert guest.tx.avail_event == guest.tx.avail_idx

    def test_after_a_silence_it_is_soon_a_stream_again(self, streaming):
        guest, host, _other = streaming
        assert lib.vm_poll(guest.machine.core, -1) == 1
        for more in 0, 1:  # packets of 64 KiB: STREAM is 256, of which silence takes a quarter
            guest.queue_packet(Packet(data=bytes(MAX_PACKET - 1 + more)))
            guest.tx.kick()
            assert lib.vm_poll(guest.machine.core, -1) == 1
            assert len(drain(host)) == MAX_PACKET - 1 + more
            assert guest.tx.avail_event == guest.tx.avail_idx + more

    def test_when_its_host_does_something(self, streaming):
        guest, host, _other = streaming
        self.put_off(streaming)
        host.send(b"?")
        assert lib.vm_poll(guest.machine.core, -1) == 1
        assert drain(host) == b"!"

    def test_when_others_leave_no_quiet_moment(self, streaming):
        guest, host, other = streaming
        self.put_off(streaming)
        rounds = 0
        while not (seen := drain(host)):
            other.kick()
            assert lib.vm_poll(guest.machine.core, -1) == 1
            rounds += 1
        assert (seen, rounds) == (b"!", 7)  # the first of eight was that of the last kick


@pytest.fixture
def crowded():
    """``(guest, host's socket)`` after more for the guest than it has buffers for."""
    with Machine(64 << 20) as machine:
        guest = Guest(machine, VERSION_1 | EVENT_IDX)
        guest.post(4)
        host = guest.offer()
        guest.connect()
        host.send(bytes(range(256)) * 100)
        assert lib.vm_poll(machine.core, -1) == 1
        yield guest, host
        guest.close()


class TestCreditPutOff:
    """While the guest is to give buffers first, its kick for them does."""

    def test_kicks_are_put_off(self, crowded):
        guest, _host = crowded
        assert guest.tx.avail_event == guest.tx.avail_idx + 64
        guest.queue_packet(Packet(op=CREDIT_UPDATE))
        guest.rx.add(into=[guest.machine.room(RX_BUFFER)])
        guest.rx.kick()
        assert lib.vm_poll(guest.machine.core, -1) == 1
        assert guest.tx.take() is not None
        assert guest.tx.avail_event == guest.tx.avail_idx + 64

    def test_until_there_are_buffers_enough(self, crowded):
        guest, host = crowded
        guest.post(16)
        assert b"".join(p.data for p in guest.received()) == bytes(range(256)) * 100
        assert guest.tx.avail_event == guest.tx.avail_idx
        host.send(b"?")
        assert [p.data for p in guest.received()] == []
        assert lib.vm_poll(guest.machine.core, -1) == 1
        assert [p.data for p in guest.received()] == [b"?"]
        assert guest.tx.avail_event == guest.tx.avail_idx

    def test_a_guest_that_gives_none_costs_nothing(self, crowded):
        guest, host = crowded
        assert lib.vm_poll(guest.machine.core, -1) == 1  # a quiet moment
        assert guest.tx.avail_event == guest.tx.avail_idx
        assert lib.vm_poll(guest.machine.core, 100) == 0  # and no other
        guest.send(data=b"!")
        assert drain(host) == b"!"
        assert lib.vm_poll(guest.machine.core, 100) == 0
        assert guest.tx.avail_event == guest.tx.avail_idx

    def test_data_is_waited_for(self, crowded):
        guest, host = crowded
        guest.queue_packet(Packet(data=b"!"))
        guest.tx.kick()
        assert lib.vm_poll(guest.machine.core, -1) == 1
        assert drain(host) == b"!"
        assert guest.tx.avail_event == guest.tx.avail_idx


def test_random_traffic_on_several_connections(guest):
    """All data arrives, in order, both ways, whatever the order of what each side does."""
    rng = random.Random(3)
    ports = range(4)
    hosts = {port: guest.offer(port) for port in ports}
    up = {port: rng.randbytes(300_000) for port in ports}
    down = {port: rng.randbytes(300_000) for port in ports}
    got_up = {port: bytearray() for port in ports}
    got_down = {port: bytearray() for port in ports}
    sent_up, sent_down = dict.fromkeys(ports, 0), dict.fromkeys(ports, 0)
    forwarded, told = dict.fromkeys(ports, 0), dict.fromkeys(ports, 0)
    alloc = 20_000
    for port in ports:
        guest.connect(dst_port=port, buf_alloc=alloc)
    for _ in range(20_000):
        if got_up == up and got_down == down:
            break
        port = rng.choice(ports)
        host = hosts[port]
        match rng.randrange(4):
            case 0:
                size = min(BUF_ALLOC - (sent_up[port] - forwarded[port]), rng.randint(1, 5000))
                data = up[port][sent_up[port] :][:size]
                told[port] = len(got_down[port])
                guest.send(dst_port=port, data=data, buf_alloc=alloc, fwd_cnt=told[port])
                sent_up[port] += len(data)
            case 1:
                try:
                    part = down[port][sent_down[port] :][: rng.randint(1, 5000)]
                    sent_down[port] += host.send(part) if part else 0
                except BlockingIOError:
                    pass
            case 2:
                with contextlib.suppress(BlockingIOError):
                    got_up[port] += host.recv(rng.randint(1, 9000))
            case 3:
                told[port] = len(got_down[port])
                guest.send(dst_port=port, op=CREDIT_UPDATE, buf_alloc=alloc, fwd_cnt=told[port])
        assert guest.idle()
        for packet in guest.received():
            if packet.op == RW:
                got_down[packet.src_port] += packet.data
                assert len(got_down[packet.src_port]) - told[packet.src_port] <= alloc
            else:
                assert packet.op in (CREDIT_UPDATE, CREDIT_REQUEST)
            forwarded[packet.src_port] = packet.fwd_cnt
    assert got_up == up
    assert got_down == down
