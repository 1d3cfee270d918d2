"""The one place on disk that pyvmm keeps things in: $XDG_CACHE_HOME/pyvmm.

What has a place there is whole. Until then it is in ``unfinished/``, locked by the process that
makes it (flock(2)): what has no lock was left by one that was killed, and the next run removes it.
"""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Callable

UNFINISHED = "unfinished"


def cache_dir(*parts: str) -> str:
    """Return (and make) a directory under the cache, e.g. ``cache_dir("kernels")``."""
    root = _root()
    path = os.path.join(root, *parts)
    if not os.path.isdir(path):
        os.makedirs(os.path.dirname(root), exist_ok=True)
        os.makedirs(root, 0o700, exist_ok=True)  # images may be private
        os.makedirs(path, exist_ok=True)
    return path


def _root() -> str:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(home, "pyvmm")


def unfinished() -> str:
    """The directory of what is being made."""
    return cache_dir(UNFINISHED)


def make_once(path: str, is_whole: Callable[[], bool], make: Callable[[str], None]) -> None:
    """Let ``make`` write a file, elsewhere; it becomes ``path`` when that returns.

    Of processes and threads that want the same file at once one makes it, the others wait.
    """
    part = part_of(path)
    while not is_whole():
        with open(part, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not is_file_at(file.fileno(), part):  # whom we waited for renamed or removed it
                continue
            try:
                if not is_whole():
                    make(part)
                    os.rename(part, path)
                    os.fchmod(file.fileno(), 0o444)  # now: what stays behind is taken over
            finally:
                if is_file_at(file.fileno(), part):
                    os.unlink(part)
                fcntl.flock(file, fcntl.LOCK_UN)  # a child forked meanwhile has the file open, too


def part_of(path: str) -> str:
    """Where make_once() has ``path`` written."""
    return os.path.join(unfinished(), f"{os.path.basename(path)}.part")


def sweep() -> int:
    """Remove what was being made by processes that were killed. Returns the bytes freed."""
    directory, freed = os.path.join(_root(), UNFINISHED), 0
    try:
        names = os.listdir(directory)
    except OSError:  # nothing was ever made here
        return 0
    for name in names:
        path = os.path.join(directory, name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # gone meanwhile
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_file_at(descriptor, path):
                freed += _remove(path)
        except OSError:  # being made, or written by what a killed process has left behind
            pass
        finally:
            os.close(descriptor)
    return freed


def _remove(path: str) -> int:
    status = os.lstat(path)
    freed = status.st_blocks * 512
    if os.path.isdir(path) and not os.path.islink(path):
        freed += sum(_remove(entry.path) for entry in os.scandir(path))
        os.rmdir(path)
    else:
        os.unlink(path)
    return freed


def is_file_at(descriptor: int, path: str) -> bool:
    """Whether an open file is the one that has the name ``path`` now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
