"""What is in the cache is whole, and what was not finished is swept away."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from pyvmm import cache
from pyvmm.kernel import making
from pyvmm.kernel.store import Image, Segment

PAGE = 4096


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pyvmm"


def test_sweep_takes_what_nobody_locks() -> None:
    here = Path(cache.unfinished())
    (here / "left.part").write_bytes(bytes(PAGE))
    (here / "tree" / "deep").mkdir(parents=True)
    (here / "tree" / "deep" / "link").symlink_to("/etc")
    (here / "tree" / "file").write_bytes(bytes(PAGE))
    directories = sum(p.stat().st_blocks * 512 for p in (here / "tree", here / "tree" / "deep"))
    (here / "used.part").write_bytes(bytes(PAGE))
    with (here / "used.part").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert cache.sweep() == 2 * PAGE + directories
        assert os.listdir(here) == ["used.part"]
    assert cache.sweep() == PAGE
    assert os.listdir(here) == []


def test_sweep_makes_nothing(place: Path) -> None:
    """The cache may be another's, to be read only."""
    assert cache.sweep() == 0
    assert not place.exists()


def test_sweepers_and_makers_at_once(place: Path) -> None:
    """A part that is swept before its maker has locked it is made again."""
    over = threading.Event()

    def sweep() -> None:
        while not over.is_set():
            cache.sweep()

    def write(part: str) -> None:
        Path(part).write_bytes(b"whole")

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(300):
            path = Path(cache.cache_dir("x"), str(number))
            cache.make_once(str(path), path.exists, write)
            assert path.read_bytes() == b"whole"
            with making.staging() as made:
                (made / "file").write_bytes(b"x")
    finally:
        over.set()
        sweeper.join()
    assert os.listdir(cache.unfinished()) == []


def test_a_maker_that_fails_leaves_nothing(place: Path) -> None:
    def write(part: str) -> None:
        Path(part).write_bytes(b"half")
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        cache.make_once(str(place / "x"), lambda: False, write)
    assert os.listdir(place) == ["unfinished"]
    assert os.listdir(cache.unfinished()) == []


def publish(version: str) -> str:
    """A kernel of one file under one name; the version that is there then."""
    with making.staging() as made:
        (made / "vmlinux").write_text(version)
        making.save(made, Image(version, 0, None, (Segment(0, 1, 0, 1),), False), "vmlinux")
        making.publish(made, "key")
    assert os.listdir(cache.unfinished()) == []
    return making.select("name", "key").version


def test_a_kernel_that_is_there_stays(place: Path) -> None:
    assert publish("first") == "first"
    assert publish("second") == "first"
    assert sorted(os.listdir(place / "kernels")) == ["key", "name"]


def test_a_kernel_of_another_format_is_replaced(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(making, "FORMAT", 0)
        with pytest.raises(AssertionError):
            publish("old")
    assert publish("new") == "new"
    assert (place / "kernels" / "key" / "vmlinux").read_text() == "new"
