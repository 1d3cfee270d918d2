"""Where frames for the agent come from: a descriptor, other threads, signals."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable, Iterable
from threading import Lock

from ..exchange import KILL, RESIZE, STDIN, STDIN_WINDOW, Source, frame
from ..results import MAX_FRAME

WAKE = b""  # for a Mailbox, to have the one that waits for it look around
Size = Callable[[], tuple[int, int]]


def kill_frame(number: int) -> bytes:
    """Raises ValueError for what is no signal: the agent would end the session."""
    if not 1 <= number <= 64:
        raise ValueError(f"signal {number}: must be 1 to 64")
    return frame(KILL, struct.pack("<I", number))


def resize_frame(rows: int, columns: int) -> bytes:
    return frame(RESIZE, struct.pack("<HH", rows, columns))


class Piped(Source):
    """The program's standard input from a descriptor, of which no more is read than may be sent."""

    def __init__(self, fd: int) -> None:
        """``fd`` stays the caller's, and blocking: it may be others' as well."""
        self._given = fd
        self._sent = 0
        self._ended = False

    def frames(self, taken: int) -> bytes:
        room = min(STDIN_WINDOW - (self._sent - taken), MAX_FRAME)
        out = b""
        if self.ready and room > 0 and not self._ended:
            try:
                data = os.read(self._given, room)
            except OSError:  # a terminal that is gone, or no descriptor at all
                data = b""
            self.ready = False
            self._ended = not data
            self._sent += len(data)
            room -= len(data)
            out = frame(STDIN, data)
        self.fd = self._given if room > 0 and not self._ended else -1
        return out


class Mailbox(Source):
    """Frames from any thread."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = Lock()
        self._frames = b""

    def put(self, frames: bytes) -> None:
        with self._lock:
            self._frames += frames
            os.eventfd_write(self.fd, 1)

    def __bool__(self) -> bool:
        return bool(self._frames)

    def frames(self, _taken: int) -> bytes:
        with self._lock:
            out, self._frames = self._frames, b""
            if self.ready or out:
                os.eventfd_read(self.fd)
                self.ready = False
        return out

    def close(self) -> None:
        os.close(self.fd)


class Signals(Source):
    """Signals of this process for the program, and SIGWINCH as its terminal's new size.

    A context manager, for the main thread: leaving it restores what was.
    """

    def __init__(self, numbers: Iterable[int], size: Size | None = None) -> None:
        """``size`` is called for the terminal's rows and columns, if SIGWINCH is to be told."""
        self._size = size
        self._numbers = [*numbers, *([signal.SIGWINCH] if size else [])]

    def __enter__(self) -> Signals:
        self.fd, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._handlers = [(n, signal.signal(n, lambda *_: None)) for n in self._numbers]
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._handlers:
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self.fd)
        os.close(self._write)

    def frames(self, _taken: int) -> bytes:
        if not self.ready:
            return b""
        came = os.read(self.fd, 4096)
        out = b"".join(kill_frame(n) for n in self._numbers if n in came and n != signal.SIGWINCH)
        if self._size and signal.SIGWINCH in came:
            out += resize_frame(*self._size())
        return out
