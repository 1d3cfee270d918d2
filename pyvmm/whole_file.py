"""Files for users: each has its name once it is complete, so that an old one is kept until then."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from .errors import PyvmmError


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
