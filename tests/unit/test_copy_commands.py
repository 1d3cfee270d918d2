"""pyvmm cp's words."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

sys.path.append(os.path.dirname(__file__))

from test_files import harness  # noqa: F401
from tree_guest import TreeGuest

from pyvmm.agent import copy_commands
from pyvmm.arguments import parse
from pyvmm.errors import HostError, PyvmmError, UsageError


@pytest.fixture
def cp(harness: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    """Runs ``pyvmm cp`` where a machine ``box`` is this one."""
    names = []
    guest = TreeGuest(harness)

    def connect(name: str):
        names.append(name)
        return guest.connect()

    monkeypatch.setattr(copy_commands, "connect", connect)

    def run(*words: str | Path) -> tuple[int, list[str]]:
        names.clear()
        command, values = parse("pyvmm", copy_commands.COMMANDS, ["cp", *map(str, words)])
        return command.function(values), list(names)

    return run


def test_both_ways(cp, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a:b").write_bytes(b"colon")
    assert cp(tmp_path / "a", f"box:{tmp_path}/there") == (0, ["box"])
    assert cp(f"box:{tmp_path}/there", tmp_path / "back") == (0, ["box"])
    assert cp(tmp_path / "a:b", f"box:{tmp_path}/c") == (0, ["box"])
    assert (tmp_path / "back").read_bytes() == b"x"
    assert (tmp_path / "c").read_bytes() == b"colon"


def test_a_machines_path(cp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_bytes(b"x")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("vm.sock")
        assert cp(f"./vm.sock:{tmp_path}/a", "b") == (0, ["./vm.sock"])
    assert (tmp_path / "b").read_bytes() == b"x"


def test_links_and_owners(cp, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").chmod(0o4755)
    (tmp_path / "link").symlink_to("a")
    cp(f"box:{tmp_path}/link", tmp_path / "1")
    cp("--follow-link", f"box:{tmp_path}/link", tmp_path / "2")
    cp("-L", "--archive", f"box:{tmp_path}/link", tmp_path / "3")
    assert os.readlink(tmp_path / "1") == "a"
    assert (tmp_path / "2").lstat().st_mode == 0o100755
    assert (tmp_path / "3").lstat().st_mode == 0o104755


def test_warnings(cp, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s\n"))
        cp(f"{tmp_path}/s\n", f"box:{tmp_path}/there")
    expected = f"pyvmm: warning: {tmp_path}/s\\n: a socket, left out\n"
    assert capsys.readouterr() == ("", expected)


ONE = "one of both is a machine's: give it as NAME:PATH"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "give a source and a destination, not 0 words"),
        (["box:/a"], "give a source and a destination, not 1 words"),
        (["a", "b"], ONE),
        (["box:/a", "box:/b"], ONE),
        (["-", "-"], ONE),
        (["/x/box:/a", "b"], ONE),
        (["box:", "b"], ONE),
    ],
)
def test_words_that_cannot_be_meant(cp, words: list[str], error: str) -> None:
    with pytest.raises(UsageError) as e:
        cp(*words)
    assert str(e.value) == error


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["box:/none", "{}"], "/none: no such file or directory"),
        (["{}/none", "box:/"], "{}/none: No such file or directory"),
        (["box:/dev/null", "{}/none/b"], "{}/none: No such file or directory"),
        (["{}", "box:/none/b"], "/none: no such file or directory"),
    ],
)
def test_files_that_cannot_be(cp, tmp_path: Path, words: list[str], error: str) -> None:
    with pytest.raises(PyvmmError) as e:
        cp(*(word.format(tmp_path) for word in words))
    assert str(e.value) == error.format(tmp_path)


def test_no_such_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    command, values = parse("pyvmm", copy_commands.COMMANDS, ["cp", "none:/a", str(tmp_path)])
    with pytest.raises(HostError) as e:
        command.function(values)
    assert str(e.value) == "no machine 'none' runs here: see pyvmm ps"
