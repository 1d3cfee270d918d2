"""Files for users: what is refused before the work, and what stays if the writing fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.errors import PyvmmError, UsageError
from pyvmm.whole_file import check_writable, whole_file, write_text


def test_an_old_file_is_kept_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_text(str(path), "old")
    with pytest.raises(TypeError), whole_file(str(path)) as file:
        file.writelines([b"new", "no bytes"])  # type: ignore[list-item]
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    for path in ("new", "there"):
        check_writable(str(tmp_path / path))
    check_writable("/dev/full")
    for path in ("", "no/file"):
        with pytest.raises(UsageError) as refused:
            check_writable(str(tmp_path / path))
        assert str(refused.value) == f"{tmp_path / path}: cannot be written"
    with pytest.raises(PyvmmError) as error:
        write_text("/dev/full", "x")
    assert str(error.value) == "/dev/full: cannot be written: No space left on device"


def test_a_directory_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file may be written, but not be replaced. (Root is refused nothing: made up.)"""
    path = tmp_path / "f"
    path.touch()
    monkeypatch.setattr(os, "access", lambda name, _mode: name != str(tmp_path))
    with pytest.raises(UsageError) as error:
        check_writable(str(path))
    assert str(error.value) == f"{path}: cannot be written"
