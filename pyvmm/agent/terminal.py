"""The terminal that pyvmm was started from, lent to a program in a guest."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from ..config import TERMINAL


def size() -> tuple[int, int]:
    """Its rows and columns; 24 and 80 if there is none."""
    for fd in (0, 1, 2):
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:
            continue
        if rows and columns:
            return rows, columns
    return TERMINAL


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """If it is a terminal: each key comes as it is typed, ^C too, until this is left."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)
