"""Programs in a running machine: to their end by exec_(), or as they go by Process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from signal import SIGKILL
from socket import socket
from threading import Condition
from typing import Self

from ..errors import GuestError
from ..exchange import KILL_GRACE, STDIN, STDIN_WINDOW, Link, Source, frame
from ..results import MAX_FRAME, Session
from .program import Command, ExecResult, Unread, ended, result
from .sources import WAKE, Mailbox, kill_frame

Sink = Callable[[bytes], object]
TOLD = 5.0  # seconds for the guest to take what it is told


def exec_(
    sock: socket,
    command: Command,
    *,
    sources: Sequence[Source] = (),
    limit: int,
    timeout: float | None = None,
    on_stdout: Sink | None = None,
    on_stderr: Sink | None = None,
) -> ExecResult:
    """Run a program to its end over a new connection to the agent, which becomes ours.

    ``timeout`` is in seconds; a program that exceeds it is killed, which is a result. Raises
    GuestError if the machine ends before the program.
    """
    session = Session([], limit, on_stdout, on_stderr)
    with sock:
        link = Link(sock, session)
        link.outgoing += command.frame()
        link.sources = list(sources)
        deadline = None if timeout is None else time.monotonic() + timeout
        timed_out = False
        while not session.end:
            if not link.pump(deadline) and not session.end:
                raise ended(session)
            if deadline is None or time.monotonic() < deadline:
                continue
            if timed_out or session.end:
                break  # with the connection the program goes
            timed_out = True
            link.outgoing += kill_frame(SIGKILL)
            deadline = time.monotonic() + KILL_GRACE
    return result(session, timed_out=timed_out)


class Process:
    """A program that runs in the guest, as Machine.popen() gives it.

    Iterating gives its output as it comes, as ``("stdout", bytes)`` and ``("stderr", bytes)``, to
    its end. Leaving it as a context manager, or close(), kills it if it still runs. Several threads
    may use it, as one that writes and one that reads.
    """

    def __init__(self, sock: socket, command: Command, *, limit: int) -> None:
        """``limit``: bytes of each stream that may wait to be read; more are lost."""
        self._sock, self._command = sock, command
        self._output = Unread(limit)
        self._session = Session([], 0, *self._output.sinks)
        self._mailbox = Mailbox()
        self._link = Link(sock, self._session)
        self._link.outgoing += command.frame()
        self._link.sources = [self._mailbox]
        self._changed = Condition()
        self._pumping = False  # one thread does, for all
        self._sent = 0
        self._error: GuestError | None = None
        self._closed = False
        try:
            with self._changed:  # it is to begin now, whenever it is looked at
                self._until(lambda: not self._link.outgoing, time.monotonic() + TOLD)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session; a program that still runs is killed. Safe to call again."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._error = self._error or GuestError("the process was closed")
            self._mailbox.put(WAKE)
            while self._pumping:
                self._changed.wait()
            self._sock.close()
            self._mailbox.close()

    def write(self, data: bytes) -> None:
        """Give the program standard input; waits until the agent has room for it.

        Raises BrokenPipeError if the program has ended, GuestError if the machine has.
        """
        view = memoryview(data)
        while view:
            with self._changed:
                self._until(lambda: self._room() > 0 or self._session.end)
                if self._session.end:
                    raise BrokenPipeError("the program has ended")
                part = bytes(view[: min(self._room(), MAX_FRAME)])
                self._sent += len(part)
                self._tell(frame(STDIN, part))
            view = view[len(part) :]

    def close_stdin(self) -> None:
        """The end of the program's standard input."""
        with self._changed:
            self._tell(frame(STDIN))

    def kill(self, signal: int = SIGKILL) -> None:
        """Send a signal to the program's process group."""
        with self._changed:
            self._tell(kill_frame(signal))

    def resize(self, rows: int, columns: int) -> None:
        """Give the program's terminal another size."""
        with self._changed:
            self._tell(self._command.resize(rows, columns))

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        while True:
            with self._changed:
                self._until(lambda: bool(self._output) or self._session.end)
                if not self._output:
                    return
                part = self._output.pop()
            yield part

    def wait(self, timeout: float | None = None) -> ExecResult:
        """Wait for the program's end; what was not iterated over is in the result.

        Raises TimeoutError after ``timeout`` seconds, and then the program goes on; GuestError if
        the machine ends before it.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            if not self._until(lambda: self._session.end, deadline):
                raise TimeoutError(f"the program has not ended within {timeout:g} s")
        self.close()
        return self._output.complete(result(self._session))

    def _room(self) -> int:
        return STDIN_WINDOW - (self._sent - self._session.stdin_taken)

    def _tell(self, frames: bytes) -> None:
        """Have it sent, within limits: a guest that takes nothing shall not hold us up."""
        if self._error:
            raise self._error
        self._mailbox.put(frames)
        limit = time.monotonic() + TOLD
        self._until(lambda: not (self._mailbox or self._link.outgoing) or self._session.end, limit)

    def _until(self, reached: Callable[[], bool], deadline: float | None = None) -> bool:
        """Wait until that is so, with _changed held; False if it is not by the deadline.

        One thread moves bytes meanwhile, and the others wait for what it brings about.
        """
        while not reached():
            if self._error:
                raise self._error
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            if self._pumping:
                self._changed.wait(left)
            else:
                self._pump(deadline)
        return True

    def _pump(self, deadline: float | None) -> None:
        self._pumping = True
        self._changed.release()
        error = None
        try:
            if not self._link.pump(deadline):
                error = ended(self._session)
        except GuestError as e:
            error = e
        finally:
            self._changed.acquire()
            self._pumping = False
            self._error = self._error or error
            self._changed.notify_all()
