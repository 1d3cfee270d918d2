"""init answers as it did when recorded.py was recorded."""

from __future__ import annotations

import pytest

from . import recorded
from .init_guest import STDOUT, Connection, Guest

SERVER = (
    "import socket, time; s = socket.create_server(('127.0.0.1', 8000)); "
    "print('up', flush=True); time.sleep(1000)"
)


def replay(c: Connection, name: str) -> None:
    for side, data in recorded.EXCHANGES[name]:
        if side == recorded.HOST:
            c.send(data)
            continue
        expected = recorded.masked(recorded.frames(data))
        got: list[tuple[int, int, bytes]] = []
        while recorded.masked(got) != expected and len(got) < 100:
            got.append(c.receive())
            if got[-1][0] == expected[-1][0] and got[-1][0] != STDOUT:
                break
        assert recorded.masked(got) == expected


@pytest.mark.parametrize("name", ["main", "failure", "hold"])
def test_the_main_exchange(guest, name: str) -> None:
    g: Guest = guest()
    replay(g, name)
    g.close()


@pytest.mark.parametrize("name", ["session", "session that fails", "terminal", "probe"])
def test_sessions(guest, name: str) -> None:
    g: Guest = guest()
    replay(g, "hold")
    if name == "probe":
        server = g.session("/usr/bin/python3", "-c", SERVER)
        assert server.until(STDOUT) == b"up\n"
    replay(g.connect(1024), name)
    g.close()
