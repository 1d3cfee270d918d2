"""What reads the guest's agent, fed with anything: it may raise GuestError, of files OSError as
well, and nothing else.

``FEEDS`` are the ways in, by the names of their directories in fuzz/corpus/. An input is the bytes
of a session, or, if its first byte is even, frames whose lengths are right: of each the type, an
index and 16 bits of length, and the payload.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO

from pyvmm.agent.connection import Connection
from pyvmm.agent.contents import Contents
from pyvmm.agent.extract import Extractor
from pyvmm.agent.process import Process, exec_
from pyvmm.agent.program import Command
from pyvmm.agent.tar import TarWriter
from pyvmm.agent.tree import Sink, receive
from pyvmm.errors import GuestError
from pyvmm.exchange import frame
from pyvmm.results import HELLO, VERSION, Session

_GREETING = frame(HELLO, struct.pack("<IIQQ", VERSION, 1, 2, 3))
_HEAD = struct.Struct("<BBH")
_LIMIT = 1000  # bytes kept of each stream and file
_SOME = 1 << 20  # bytes that an archive may have
_MADE = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO}


def _session(data: bytes) -> bytes:
    if not data or data[0] & 1:
        return data[1:]
    out, at = bytearray(_GREETING), 1
    while at + _HEAD.size <= len(data):
        kind, index, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        payload = data[at : at + length]
        at += len(payload)
        out += frame(kind, payload, index)
    return bytes(out)


def _spoken(data: bytes) -> socket.socket:
    """A connection to an agent that says that, and then no more."""
    ours, agents = socket.socketpair()
    agents.setblocking(False)
    with suppress(BlockingIOError):
        agents.send(_session(data))
    agents.shutdown(socket.SHUT_WR)
    # Closed, it would have thrown away what it sent as soon as we say anything.
    _agents.append(agents)
    return ours


_agents: list[socket.socket] = []


def _end() -> None:
    while _agents:
        _agents.pop().close()


def run(data: bytes) -> None:
    """A machine's program, run twice."""
    said = _session(data)
    session = Session(["/a", "/b"], _LIMIT)
    piece = 1 + said[-1] if said else 1
    for at in range(0, len(said), piece):
        try:
            if session.end:
                last, session = session, Session(["/a"], _LIMIT)
                session.follow(last)
            session.feed(said[at : at + piece])
        except GuestError:
            break
    result = session.finish()
    assert len(result.stdout) <= _LIMIT
    assert len(result.stderr) <= _LIMIT
    assert all(len(content) <= _LIMIT for content in result.files.values())
    assert set(result.files) | set(result.missing) == set(session.outputs)
    assert result.to_json()


def program(data: bytes) -> None:
    """A program run in a machine: to its end, and as it goes."""
    command = Command(["true"], stdin=True)
    with suppress(GuestError):
        done = exec_(_spoken(data), command, limit=_LIMIT, timeout=1)
        assert len(done.stdout) <= _LIMIT
    with (
        suppress(GuestError, BrokenPipeError),
        Process(_spoken(data), command, limit=_LIMIT) as process,
    ):
        process.write(b"some")
        for name, part in process:
            assert name in ("stdout", "stderr")
            assert len(part) <= _LIMIT
        process.wait(1)
    _end()


def _tree(data: bytes, sink: Sink) -> None:
    try:
        with suppress(GuestError), Connection(_spoken(data)) as connection:
            receive(connection, sink)
    finally:
        _end()


def tree(data: bytes) -> None:
    """Files out of a guest: what is beside their place stays as it is, and nothing is half-made."""
    for name, archive in ((b"", False), (b"name", True)):
        with tempfile.TemporaryDirectory() as top:
            place = f"{top}/place"
            os.mkdir(place)
            os.symlink("..", f"{place}/up")
            with open(f"{top}/beside", "wb") as file:
                file.write(b"as it was")
            with (
                suppress(OSError),
                Extractor(place, name, archive=archive) as extractor,
            ):
                _tree(data, extractor)
            assert sorted(os.listdir(top)) == ["beside", "place"]
            with open(f"{top}/beside", "rb") as file:
                assert file.read() == b"as it was"
            for path, directories, files in os.walk(place):
                for each in directories + files:
                    mode = os.lstat(f"{path}/{each}").st_mode
                    assert not each.startswith(".pyvmm-")
                    assert stat.S_IFMT(mode) in _MADE
                    assert archive or stat.S_ISLNK(mode) or not mode & 0o7000


class _Some(BytesIO):
    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.tell() + len(data) > _SOME:
            raise OSError("enough")
        return super().write(data)


def archive(data: bytes) -> None:
    """Files out of a guest as a tar archive, and one file's contents."""
    out = _Some()
    with suppress(OSError):
        tar = TarWriter(out.write, b"name")
        _tree(data, tar)
        tar.finish()
    parts: list[bytes] = []
    with suppress(OSError):
        _tree(data, Contents("/name", parts.append, _LIMIT))
    assert sum(map(len, parts)) <= _LIMIT


FEEDS: dict[str, Callable[[bytes], None]] = {
    "agent-run": run,
    "agent-program": program,
    "agent-tree": tree,
    "agent-archive": archive,
}
