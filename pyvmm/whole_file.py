"""Files for users: each has its name once it is complete, so that an old one is kept until then."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from .errors import PyvmmError, UsageError


def check_writable(path: str) -> None:
    """Refuse, by UsageError, what write_text() could not write: before the work, not after it.

    A file that is there is replaced, so its directory must be writable, too.
    """
    target = os.path.realpath(path)
    needed = [target] if os.path.exists(target) else []
    if not needed or os.path.isfile(target):
        needed.append(os.path.dirname(target))
    if os.path.isdir(target) or not all(os.access(each, os.W_OK) for each in needed):
        raise UsageError(f"{path}: cannot be written")


@contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """Open to write; pipes and devices are written as they are. Raises OSError."""
    path = os.path.realpath(path)
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        with open(path, "wb") as file:
            yield file
        return
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, path)
    except BaseException:
        if os.path.exists(part):
            os.unlink(part)
        raise


def write_text(path: str, text: str) -> None:
    """Write it as UTF-8; ``-`` is stdout. Raises PyvmmError if the file cannot be written."""
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        with whole_file(path) as file:
            file.write(text.encode())
    except OSError as e:
        raise PyvmmError(f"{path}: cannot be written: {e.strerror}") from None
