"""A guest's vsock driver for tests: packets, queues, and the host's sockets."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

from pyvmm._core import lib

from .virtq import VERSION_1, Machine, check

HEADER = struct.Struct("<QQIIIHHIII")
HOST, GUEST = 2, 3
STREAM = 1
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
RCV, SEND = 1, 2

PORT, GUEST_PORT = 1024, 40000
BUF_ALLOC = 1 << 20
MAX_PACKET = 1 << 16
GUEST_ALLOC = 1 << 20
RX_BUFFER = 4096


@dataclass
class Packet:
    src_cid: int = GUEST
    dst_cid: int = HOST
    src_port: int = GUEST_PORT
    dst_port: int = PORT
    len: int | None = None  # None: that of the data
    type: int = STREAM
    op: int = RW
    flags: int = 0
    buf_alloc: int = GUEST_ALLOC
    fwd_cnt: int = 0
    data: bytes = b""

    def pack(self) -> bytes:
        length = len(self.data) if self.len is None else self.len
        head = HEADER.pack(
            self.src_cid, self.dst_cid, self.src_port, self.dst_port, length, self.type, self.op,
            self.flags, self.buf_alloc, self.fwd_cnt,
        )  # fmt: skip
        return head + self.data

    @classmethod
    def unpack(cls, raw: bytes) -> Packet:
        packet = cls(*HEADER.unpack_from(raw), data=raw[HEADER.size :])
        assert packet.len == len(packet.data)
        return packet


class Guest:
    """A guest's vsock driver, and the sockets that the host reads and writes."""

    def __init__(
        self, machine: Machine, features: int = VERSION_1, buffer: int = BUF_ALLOC
    ) -> None:
        self.machine = machine
        self.device = machine.vsock(GUEST, buffer)
        self.rx, self.tx, self.event = self.device.start(features)
        self.buffers: dict[int, tuple[int, int]] = {}
        self.tx_buffer = [machine.alloc(HEADER.size + MAX_PACKET) for _ in range(4)]
        self.tx_turn = 0
        self.sockets: list[socket.socket] = []

    def close(self) -> None:
        for s in self.sockets:
            s.close()

    def offer(self, port: int = PORT) -> socket.socket:
        """Offer a port; returns the host program's end."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        check(lib.vm_offer_port(self.machine.core, self.device.slot, port, theirs.detach()))
        self.sockets.append(ours)
        return ours

    # ---- queues ----

    def post(self, count: int = 64, size: int = RX_BUFFER) -> None:
        """Give the device receive buffers."""
        for _ in range(count):
            buffer = self.machine.room(size)
            self.buffers[self.rx.add(into=[buffer])] = buffer
        self.rx.kick_and_run()

    def received(self, *, repost: bool = True) -> list[Packet]:
        """The packets that have come; their buffers are posted again."""
        packets, again = [], []
        while (element := self.rx.take()) is not None:
            buffer = self.buffers.pop(element[0])
            packets.append(Packet.unpack(self.machine.read(buffer[0], element[1])))
            again.append(buffer)
        if repost and again:
            for buffer in again:
                self.buffers[self.rx.add(into=[buffer])] = buffer
            self.rx.kick_and_run()
        return packets

    def queue_packet(self, packet: Packet) -> None:
        """Make a packet available in memory of its own, without a kick."""
        self.tx.add(out=[self.machine.put(packet.pack())])

    def send(self, **fields) -> None:
        """Send one packet; it must be used at once."""
        address = self.tx_buffer[self.tx_turn]
        self.tx_turn = (self.tx_turn + 1) % len(self.tx_buffer)
        raw = Packet(**fields).pack()
        self.machine.write(address, raw)
        head = self.tx.add(out=[(address, len(raw))])
        self.tx.kick_and_run()
        assert self.tx.take_all() == [(head, 0)]

    def ask(self, **fields) -> list[Packet]:
        """Send one packet and return what comes back."""
        self.send(**fields)
        return self.received()

    def connect(self, **fields) -> Packet:
        (response,) = self.ask(op=REQUEST, **fields)
        assert response.op == RESPONSE
        return response

    def idle(self) -> bool:
        """Nothing left to do: the loop would sleep, not spin."""
        self.machine.run()
        return lib.vm_poll(self.machine.core, 0) == 0

    def open_fds(self) -> int:
        return len(os.listdir("/proc/self/fd"))


def ops(packets: list[Packet]) -> list[int]:
    return [p.op for p in packets]


def drain(sock: socket.socket) -> bytes:
    """All that can be read now."""
    data = b""
    while True:
        try:
            part = sock.recv(1 << 20)
        except (BlockingIOError, ConnectionResetError):
            return data
        if not part:
            return data
        data += part


def at_end(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


def fill(sock: socket.socket, size: int) -> int:
    """Write up to ``size`` bytes, as many as fit."""
    done = 0
    while done < size:
        try:
            done += sock.send(bytes(min(65536, size - done)))
        except BlockingIOError:
            break
    return done
