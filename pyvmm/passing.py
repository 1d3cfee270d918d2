"""Messages that carry descriptors, over Unix sockets (unix(7), SCM_RIGHTS)."""

from __future__ import annotations

import errno
import os
import select
import struct
from _socket import CMSG_SPACE, MSG_CTRUNC, SCM_RIGHTS, SOL_SOCKET

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Iterable


def send(sock: socket, data: bytes, fds: Iterable[int] = ()) -> None:
    """Send ``data`` and copies of the descriptors ``fds``."""
    numbers = list(fds)
    rights = struct.pack(f"{len(numbers)}i", *numbers)
    sock.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, rights)] if numbers else [])


def receive(sock: socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """At most ``size`` bytes and ``most`` descriptors; no bytes at the end of file.

    OSError (EMFILE) if there is no room for all descriptors that came: then there are none.
    """
    data, ancillary, flags, _ = sock.recvmsg(size, CMSG_SPACE(4 * most))
    fds = [
        fd
        for level, kind, rights in ancillary
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS)
        for (fd,) in struct.iter_unpack("i", rights)
    ]
    if flags & MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return data, fds


def readable(fd: socket | int, seconds: float) -> bool:
    """Whether there is something to read, or its end, within ``seconds``."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
