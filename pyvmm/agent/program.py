"""A program in a running machine: what it is to be, and what came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial

from ..config import terminal
from ..errors import GuestError, UsageError
from ..exchange import config_frame
from ..record import Record, field
from ..results import HEADER, Session, Usage
from .connection import BUSY, ENDED
from .sources import resize_frame

OPENING_MAX = 16 << 20  # bytes, of CONFIG (docs/protocol.md)


class Command(Record):
    """What to run. What is None is as for the machine's own program. Raises UsageError."""

    argv: Sequence[str]
    env: Mapping[str, str] | None = None
    """added to the machine's"""
    user: str | None = None
    workdir: str | None = None
    tty: bool | tuple[int, int] = False
    """a terminal, of this many rows and columns"""
    stdin: bool = False

    def check(self) -> None:
        if isinstance(self.argv, str) or not self.argv:
            raise UsageError("exec: give the program and its arguments as a list")
        for key, value in (self.env or {}).items():
            if not key or "=" in key or "\0" in key + value:
                raise UsageError(f"environment variable {key!r}: not a usable name or value")
        if self.workdir is not None and not self.workdir.startswith("/"):
            raise UsageError(f"workdir {self.workdir!r}: must be an absolute path in the guest")
        terminal(self.tty)
        if (size := len(self.frame()) - HEADER.size) > OPENING_MAX:
            raise UsageError(
                f"exec: arguments and environment of {size} bytes: at most {OPENING_MAX}"
            )

    def resize(self, rows: int, columns: int) -> bytes:
        """Its terminal's new size. Raises UsageError if it has none: the session would end."""
        if not self.tty:
            raise UsageError("the program has no terminal")
        terminal((rows, columns))
        return resize_frame(rows, columns)

    def frame(self) -> bytes:
        """The session's opening."""
        return config_frame(
            self.argv,
            [f"{key}={value}" for key, value in (self.env or {}).items()],
            user=self.user or "",
            workdir=self.workdir or "",
            stdin=self.stdin,
            tty=terminal(self.tty),
        )


class ExecResult(Record):
    """What a program left that exec() ran."""

    exit_code: int = 0
    """its status; 128 + n if signal n killed it; 124 after a time-out; 125, 126 or 127: failure"""
    stdout: bytes = b""
    stderr: bytes = b""
    signal: int = 0
    timed_out: bool = False
    truncated: list[str] = field(default_factory=list)
    """``"stdout"``, ``"stderr"``: longer than the machine's max_output, the rest is lost"""
    failure: str = ""
    """why it could not be started"""
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    """that it took, by the guest's clock"""


def result(session: Session, *, timed_out: bool = False) -> ExecResult:
    """What a session brought that is over."""
    found = session.finish()
    seconds = 0.0
    if session.started_ns is not None and session.ended_ns is not None:
        seconds = (session.ended_ns - session.started_ns) / 1e9
    return ExecResult(
        exit_code=124 if timed_out else found.exit_code,
        stdout=found.stdout,
        stderr=found.stderr,
        signal=0 if timed_out else found.signal,
        timed_out=timed_out,
        truncated=found.truncated,
        failure=found.failure,
        usage=found.usage,
        seconds=seconds,
    )


def ended(session: Session) -> GuestError:
    """Why a session's connection ended before it did."""
    return GuestError(ENDED if session.hello else BUSY)


class Unread:
    """A program's output that waits for its reader."""

    def __init__(self, limit: int) -> None:
        """``limit``: bytes of each stream, more are lost."""
        self._limit = limit
        self._parts: deque[tuple[str, bytes]] = deque()
        self._size = {"stdout": 0, "stderr": 0}
        self._cut: list[str] = []
        self.sinks = (partial(self._add, "stdout"), partial(self._add, "stderr"))

    def __bool__(self) -> bool:
        return bool(self._parts)

    def _add(self, name: str, data: bytes) -> None:
        room = self._limit - self._size[name]
        if len(data) > room:
            data = data[:room]
            if name not in self._cut:
                self._cut.append(name)
        if data:
            self._parts.append((name, data))
            self._size[name] += len(data)

    def pop(self) -> tuple[str, bytes]:
        name, data = self._parts.popleft()
        self._size[name] -= len(data)
        return name, data

    def complete(self, found: ExecResult) -> ExecResult:
        """Add what was not read."""
        found.stdout, found.stderr = (
            b"".join(data for name, data in self._parts if name == wanted)
            for wanted in ("stdout", "stderr")
        )
        found.truncated = list(self._cut)
        return found
