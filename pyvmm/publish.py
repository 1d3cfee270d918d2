"""Published ports: TCP connections to a port of the host's, taken to one of the guest's.

The guest needs no network for it: its agent joins connections to vsock port 65536 + N with its
loopback's TCP port N. Connections are accepted here and handed to the device; what is said on them
does not pass through Python.

A host's port is bound before the machine is started, and listens only once the guest's accepts: so
whoever tries whether a service is there learns the truth.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import NamedTuple

from .errors import HostError, UsageError
from .probe import Probe

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from .vsock import Vsock

FORWARDED = 65536  # the vsock port of the guest's TCP port 0
LOOPBACK = "127.0.0.1"
MAX_PORTS = 32  # each of which takes a session of the agent's until it accepts
AGAIN = 1.0  # seconds
FORM = "write it as [HOST_IP:]HOST_PORT:GUEST_PORT, as 8080:80"


class Published(NamedTuple):
    """A port of the host's and the guest's that it leads to."""

    host_ip: str
    host_port: int
    guest_port: int
    chosen: bool = False
    """whether the host's port is one that was free, since none was asked for"""

    def __str__(self) -> str:
        ip = f"[{self.host_ip}]" if ":" in self.host_ip else self.host_ip
        return f"{ip}:{self.host_port}"


class Port:
    """One published port."""

    def __init__(self, published: Published) -> None:
        """Binds the host's port. Raises HostError, in one line, if that cannot be had."""
        family = socket.AF_INET6 if ":" in published.host_ip else socket.AF_INET
        self._socket = _bind(family, published)
        port = self._socket.getsockname()[1]
        self.published = published._replace(host_port=port, chosen=not published.host_port)

    def open(self, vsock: Vsock) -> None:
        """Listen once the guest does."""
        self._vsock, self._loop = vsock, vsock.loop()
        probe = Probe(vsock, self.published.guest_port, self._listen)
        vsock.when_started(probe.begin)

    def close(self) -> None:
        """Free the host's port; not while the thread runs."""
        self._socket.close()

    def _listen(self) -> None:
        # Not before: it would let others bind to the port, too.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.listen(socket.SOMAXCONN)
        except OSError:  # see _bind(): of two that were bound one is first
            self._loop.later(AGAIN, self._listen)
            return
        self._loop.watch(self._socket, self._accept)

    def _accept(self) -> None:
        for client in self._loop.accept(self._socket):
            with client:
                try:
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._vsock.hand_over(client, FORWARDED + self.published.guest_port)
                except OSError:
                    pass  # the client has gone, or the machine


def parse(words: Sequence[str]) -> list[Published]:
    """``[HOST_IP:]HOST_PORT:GUEST_PORT`` each. Raises UsageError."""
    if len(words) > MAX_PORTS:
        raise UsageError(f"{len(words)} published ports: at most {MAX_PORTS}")
    return [_parse(word) for word in words]


def _parse(word: str) -> Published:
    host, _, guest = word.rpartition(":")
    ip, colon, port = host.rpartition(":")
    if ip.startswith("[") and ip.endswith("]") and ":" in ip:
        ip = ip[1:-1]
    elif ":" in ip or (colon and not ip):
        raise UsageError(f"publish {word!r}: {FORM}")
    ip = ip or LOOPBACK
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in ip else socket.AF_INET, ip)
    except OSError:
        raise UsageError(f"publish {word!r}: {ip!r} is not an IP address") from None
    if ":" not in word:
        raise UsageError(f"publish {word!r}: {FORM}")
    return Published(ip, _number(port or "0", word, 0), _number(guest, word, 1))


def _number(text: str, word: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"publish {word!r}: {FORM}")
    if len(text) > 5 or not least <= int(text) < 65536:
        raise UsageError(f"publish {word!r}: ports are {least} to 65535")
    return int(text)


def _bind(family: int, published: Published) -> socket.socket:
    """A socket that has the port and does not listen yet."""
    # At first without SO_REUSEADDR, which would share the port with another's that does not listen
    # yet; then with it, lest connections that were closed a minute ago be in the way.
    for reuse in (0, 1):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            sock.bind((published.host_ip, published.host_port))
        except OSError as e:
            sock.close()
            if e.errno == errno.EADDRINUSE and not reuse:
                continue
            raise HostError(f"cannot publish {published}: {_mend(e, published)}") from None
        return sock
    raise AssertionError("unreachable")


def _mend(e: OSError, published: Published) -> str:
    if e.errno == errno.EADDRINUSE:
        return "the port is in use, choose another (0: any that is free)"
    if e.errno == errno.EADDRNOTAVAIL:
        return f"{published.host_ip} is no address of this host's"
    if e.errno == errno.EACCES:
        return "ports below 1024 are root's, choose one above"
    return str(e.strerror)
