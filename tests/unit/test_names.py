"""Machines' names: whose they are, and what a killed machine leaves."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm import names
from pyvmm.errors import HostError, UsageError

from .switch_worker import LIMIT


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "pyvmm"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def dead(path: Path) -> None:
    """What a machine leaves that was killed."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def test_claim(place):
    old = os.umask(0)
    try:
        claim = names.claim("web")
    finally:
        os.umask(old)
    assert claim.path == str(place / "web.sock")
    assert (mode(place), mode(place / "web.sock")) == (0o700, 0o600)
    assert names.running() == ["web"]
    assert names.owners() == {"web": os.getpid()}
    claim.release()
    claim.release()
    assert os.listdir(place) == []
    assert names.running() == []


def test_taken(place):
    claim = names.claim("web")
    with pytest.raises(HostError) as caught:
        names.claim("web")
    assert str(caught.value) == f"{claim.path} is a running machine's: take another name"
    claim.release()
    names.claim("web").release()


def test_too_busy_to_answer(place):
    claim = names.claim("web")
    claim.socket.listen(0)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(claim.path)
        with pytest.raises(HostError, match="is a running machine's"):
            names.claim("web")
        assert names.owners() == {"web": -1}
    claim.release()


def test_what_killed_machines_leave(place):
    script = (
        "import time; from pyvmm import names; c = names.claim('web'); "
        "print('there', flush=True); time.sleep(600)"
    )
    words = [sys.executable, "-c", script]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        assert names.owners() == {"web": process.pid}
        process.send_signal(signal.SIGKILL)
        process.wait(LIMIT)
    dead(place / "other.sock")
    (place / "tune.lock").touch()
    assert sorted(os.listdir(place)) == ["other.sock", "tune.lock", "web.sock"]
    assert names.running() == []
    claim = names.claim("third")
    assert sorted(os.listdir(place)) == ["third.sock", "tune.lock"]
    claim.release()


def test_release_leaves_anothers(place):
    first = names.claim("web")
    os.unlink(first.path)
    second = names.claim("web")
    first.release()
    assert names.running() == ["web"]
    second.release()


def test_anything_else_stays(place, tmp_path):
    place.mkdir(0o700)
    (place / "web.sock").write_text("precious")
    with pytest.raises(HostError, match="is there and no socket: take another name, or remove it"):
        names.claim("web")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        with pytest.raises(HostError, match="is a running machine's"):
            names.Claim(str(tmp_path / "s"))
    assert (place / "web.sock").read_text() == "precious"


def test_a_directory_that_others_could_write_to(place):
    place.mkdir(0o777)
    place.chmod(0o777)
    names.claim("web").release()
    assert mode(place) == 0o700


def test_a_link_instead_of_the_directory(place, tmp_path):
    (tmp_path / "theirs").mkdir()
    place.symlink_to("theirs")
    with pytest.raises(HostError, match="is not a directory of ours"):
        names.claim("web")


def test_paths(place, tmp_path):
    claim = names.claim(f"{tmp_path}/v.sock")
    assert claim.path == f"{tmp_path}/v.sock"
    assert names.running() == []
    claim.release()
    assert not place.exists()
    with pytest.raises(HostError, match=r"cannot make socket .*/none/v.sock: No such file"):
        names.claim(f"{tmp_path}/none/v.sock")
    with pytest.raises(UsageError, match="at most 96 bytes, take a shorter path"):
        names.claim("/" + "x" * 96)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "a\nb", "a\0b"])
def test_what_is_no_name(place, name):
    with pytest.raises(UsageError, match="give one without a leading dot or dash, or a path"):
        names.claim(name)


def test_no_place(monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match="set XDG_RUNTIME_DIR, or give a path with a slash"):
        names.claim("web")
    assert names.running() == []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert names.path_of("web") == "/run/pyvmm/web.sock"
