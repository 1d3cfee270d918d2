"""The caller's half of a machine's vsock: connections to the guest, and from it.

The device is the worker's, which opens nothing by path: what is to be a connection of the guest's
is made here and handed over, a descriptor each, by messages over the **switch channel**. What is
said on a connection never passes through Python.

A thread (loop.py) is there only once there is something to listen on.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from socket import AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_SEQPACKET, SOCK_STREAM
from threading import Lock

from .loop import BATCH, Loop
from .vsock_line import Line
from .vsock_listener import Listener, connected

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    import _socket

    from .loop import Handler
    from .publish import Port, Published
    from .vsock_server import Server

MESSAGE = struct.Struct("<IIII")  # op, a, b, flags
CONNECT, LISTEN, UNLISTEN, ACCEPT, REFUSE, RESET = range(1, 7)
ASKED = 1
QUIET, SEQPACKET = 1, 2
EVERY_PORT = 0xFFFFFFFF

MAX_LISTENERS = 1023  # the device has room for one more, EVERY_PORT
PATIENCE = 5.0  # seconds for the worker to take a message
RETRY = 0.01


class Vsock:
    """A machine's vsock (``machine.vsock``). Its methods may be called from any thread."""

    def __init__(self, channel: _socket.socket) -> None:
        """``channel`` is the caller's end of the switch channel, and closed with this.

        Raises ConnectionError if it is already.
        """
        if channel.fileno() < 0:
            raise _gone()
        self._channel = socket.socket(fileno=channel.detach())
        self._lock = Lock()
        self._loop: Loop | None = None
        self._listeners: dict[int, Listener] = {}
        self._served = ""  # what answer_all() was given
        self._started = self._closed = False
        self._waiting: list[Handler] = []
        self._ends: list[Handler] = []

    def connect(self, port: int, *, timeout: float = 5.0, kind: int = SOCK_STREAM) -> socket.socket:
        """Connect to a port of the guest's (ValueError for what is none); ``kind`` may be
        SOCK_SEQPACKET.

        Returns a Unix socket that is the connection. Raises ConnectionRefusedError if nobody in the
        guest listens there, or the machine has ended; TimeoutError after ``timeout`` seconds.
        """
        _check(port, kind)
        deadline = time.monotonic() + timeout
        ours, theirs = socket.socketpair(AF_UNIX, kind)
        answer = Line()
        try:
            with theirs:
                self.hand_over(theirs, port, quiet=False, timeout=timeout)
            while not answer.whole:
                ours.settimeout(max(0.001, deadline - time.monotonic()))
                answer.take(ours)
        except TimeoutError:
            ours.close()
            raise TimeoutError(
                errno.ETIMEDOUT, f"vsock port {port}: no answer within {timeout:g} s"
            ) from None
        except (ConnectionError, EOFError, ValueError):
            ours.close()
            raise ConnectionRefusedError(
                errno.ECONNREFUSED, f"vsock port {port}: nobody in the guest listens there"
            ) from None
        ours.settimeout(None)
        return ours

    def listen(self, port: int, *, kind: int = SOCK_STREAM) -> socket.socket:
        """Listen on a port of the host's for the guest; ``kind`` may be SOCK_SEQPACKET.

        Returns a listening Unix socket: its accept() gives the guest's connections, and fails with
        EINVAL once the machine has ended. Raises OSError: EADDRINUSE if it is listened on already,
        EMFILE if 1,023 ports are.
        """
        _check(port, kind)
        self.loop()
        with self._lock:
            if port in self._listeners:
                if self._listeners[port].open:
                    raise OSError(errno.EADDRINUSE, f"vsock port {port}: listened on already")
                self._listeners.pop(port).end()
            self._make_room()
            sock = socket.socket(AF_UNIX, kind)
            try:
                self._listeners[port] = Listener(sock)
            except OSError:
                sock.close()
                raise
        self.send(LISTEN, port)
        return sock

    def _make_room(self) -> None:
        """For one more listener, with _lock held. Those that were closed are found out here."""
        if len(self._listeners) < MAX_LISTENERS:
            return
        for port in [port for port, listener in self._listeners.items() if not listener.open]:
            self._forget(port)
        if len(self._listeners) == MAX_LISTENERS:
            raise OSError(errno.EMFILE, f"{MAX_LISTENERS} vsock ports are listened on: close one")

    def _forget(self, port: int) -> None:
        self._listeners.pop(port).end()
        self.send(UNLISTEN, port)

    def serve(self, path: str) -> None:
        """Let programs connect by the Unix socket ``path``, as Firecracker does (vsock_server.py).

        Raises HostError if that cannot be had.
        """
        from .names import Claim
        from .vsock_server import Server

        self.attach(Server(Claim(path)))

    def publish(self, host_ip: str, host_port: int, guest_port: int) -> Published:
        """Take TCP connections to a port of the host's to one of the guest's (publish.py).

        The guest forwards only what the machine was made to publish, by any host port. Returns what
        is published, with the port that was free if ``host_port`` is 0. Raises HostError.
        """
        from .publish import Port, Published

        port = Port(Published(host_ip, host_port, guest_port))
        self.attach(port)
        return port.published

    def reset(self) -> None:
        """Drop every connection and have the guest's driver start over (Virtio 1.2 §5.10.6.7)."""
        self.send(RESET)

    def close(self) -> None:
        """End the thread and all listening. The connections stay, as long as the machine does."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self._channel.shutdown(socket.SHUT_RDWR)  # wakes whoever waits to send
        except OSError:
            pass  # the worker has gone
        if self._loop:
            self._loop.close()
        self._channel.close()
        self._end()

    # ---- for what is built on it ----

    def attach(self, entrance: Server | Port) -> None:
        """Have it served, and closed when this is."""
        with self._lock:
            self._ends.append(entrance.close)
        try:
            entrance.open(self)
        except ConnectionError:
            entrance.close()  # nobody else will
            raise

    def answer_all(self, path: str) -> None:
        """Take the guest's connections to any port P of the host's to the socket ``<path>_P``."""
        self._served = path
        self.send(LISTEN, EVERY_PORT)

    def loop(self) -> Loop:
        """The thread, started if it is not there yet. Raises ConnectionError after close()."""
        with self._lock:
            if self._closed:
                raise _gone()
            if not self._loop:
                self._loop = loop = Loop("pyvmm-switch")
                loop.call(lambda: loop.watch(self._channel, self._heard))
            return self._loop

    def started(self) -> None:
        """The guest's agent is there: begin with what when_started() has put off."""
        with self._lock:
            self._started, waiting = True, self._waiting
            self._waiting = []
        for function in waiting:
            assert self._loop
            self._loop.call(function)

    def when_started(self, function: Handler) -> None:
        """Have ``function`` called in the thread, but not before the guest's agent is there."""
        loop = self.loop()
        with self._lock:
            if not self._started:
                self._waiting.append(function)
                return
        loop.call(function)

    def hand_over(
        self, sock: socket.socket, port: int, *, quiet: bool = True, timeout: float = PATIENCE
    ) -> None:
        """Have the device join a copy of ``sock`` with a connection to the guest's port, or close
        it if there is none to be had. It is told ``OK <host port>`` first, unless ``quiet``.
        """
        flags = QUIET * quiet | SEQPACKET * (sock.type == SOCK_SEQPACKET)
        self.send(CONNECT, port, flags, sock, timeout)

    def send(
        self,
        op: int,
        a: int = 0,
        flags: int = 0,
        sock: socket.socket | None = None,
        timeout: float = PATIENCE,
    ) -> None:
        """Send the worker a message. Raises ConnectionError if it has gone, or TimeoutError."""
        message = MESSAGE.pack(op, a, 0, flags)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _number(sock))] if sock else []
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._channel.sendmsg([message], rights, MSG_DONTWAIT | MSG_NOSIGNAL)
                return
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._channel, select.POLLOUT)
                poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            except OSError as e:
                if e.errno != errno.ETOOMANYREFS:
                    raise _gone() from None
                time.sleep(RETRY)  # more descriptors are on their way than we may have open
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the machine's worker does not answer")

    # ---- in the thread ----

    def _heard(self) -> None:
        """Take what the worker says, which a guest may have taken over."""
        assert self._loop
        for _ in range(BATCH):
            try:
                message = self._channel.recv(MESSAGE.size)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._loop.stop()
                self._end()
                return
            if len(message) == MESSAGE.size:
                op, number, port, flags = MESSAGE.unpack(message)
                if op == ASKED:
                    self._asked(number, port, SOCK_SEQPACKET if flags & SEQPACKET else SOCK_STREAM)

    def _asked(self, number: int, port: int, kind: int) -> None:
        """The guest wants to connect: it gets what can be connected to at once, or a refusal."""
        try:
            sock = self._reach(port, kind)
            if sock:
                with sock:
                    self.send(ACCEPT, number, sock=sock)
            else:
                self.send(REFUSE, number)
        except OSError:
            pass  # the worker's own loss

    def _reach(self, port: int, kind: int) -> socket.socket | None:
        with self._lock:
            listener = self._listeners.get(port)
            if listener and not listener.open:
                self._forget(port)
            elif listener:
                return connected(listener.address, kind)
        return connected(f"{self._served}_{port}", kind) if self._served else None

    def _end(self) -> None:
        """Nothing will come from the guest any more."""
        with self._lock:
            ends, self._ends = self._ends, []
            listeners, self._listeners = self._listeners, {}
        for end in (*ends, *(listener.end for listener in listeners.values())):
            end()


def _check(port: int, kind: int) -> None:
    if not 0 <= port < EVERY_PORT:
        raise ValueError(f"vsock port {port}: must be 0 to {EVERY_PORT - 1}")
    if kind not in (SOCK_STREAM, SOCK_SEQPACKET):
        raise ValueError(f"vsock socket of kind {kind}: must be SOCK_STREAM or SOCK_SEQPACKET")


def _number(sock: socket.socket) -> bytes:
    return struct.pack("i", sock.fileno())


def _gone() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, "the machine has ended")
