"""The terminal that pyvmm was started from, lent to a program in a guest."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from ..config import TERMINAL
from ..errors import UsageError
from .sources import Signals


def size(*, keys: bool = False) -> tuple[int, int]:
    """Its rows and columns; 24 and 80 if there is none.

    Raises UsageError if it is to lend its ``keys`` and stdin is none: the end of a file would have
    to be typed, and a program that edits its line before then would never see it.
    """
    if keys and not os.isatty(0):
        raise UsageError("stdin is no terminal: leave out --tty (-t)")
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


@contextmanager
def lent(*, keys: bool, signals: Iterable[int] = ()) -> Iterator[Signals]:
    """Have the terminal be the guest's program's, its ``keys`` too, until this is left.

    What is yielded tells the program of the terminal's size, and of ``signals``.
    """
    with ExitStack() as end:
        told = end.enter_context(Signals(signals, size))
        if keys:
            end.enter_context(raw(0))
        yield told
