"""When a machine is ready: what ``--wait-for`` and Machine.wait_for() mean.

``log=REGEX``: a line of the program's output has it (re.search; stdout or stderr). ``port=N``: the
guest's loopback accepts on TCP port N. ``exec=COMMAND``: the command, words as a shell's but run by
none, ends with 0 in the guest. Of several all must have been seen.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Sequence
from functools import partial
from threading import Condition as Changes
from typing import NamedTuple

from .errors import GuestError, UsageError
from .probe import Probe

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from .exchange import Exchange
    from .guest import Guest

RETRY = 0.1  # seconds until a command that failed is run again
FORM = "write log=REGEX, port=N or exec=COMMAND"
MAX_LINE = 65536  # bytes of a line that are looked at


class Condition(NamedTuple):
    """One of them, checked; prints as it was written."""

    kind: str
    value: str

    def __str__(self) -> str:
        return f"{self.kind}={self.value}"


def parse(words: str | Sequence[str]) -> list[Condition]:
    """Read them. Raises UsageError."""
    return [_parse(word) for word in ([words] if isinstance(words, str) else words)]


def _parse(word: str) -> Condition:
    kind, _, value = word.partition("=")
    wrong = "" if kind in ("log", "port", "exec") and value else FORM
    try:
        if kind == "log":
            re.compile(value)
        elif kind == "exec" and not shlex.split(value):
            wrong = FORM
    except re.error as e:
        wrong = f"not a regular expression: {e}"
    except ValueError as e:
        wrong = str(e).lower()
    if kind == "port" and not (value.isascii() and value.isdecimal() and len(value) <= 5):
        wrong = FORM
    elif kind == "port" and not 1 <= int(value) < 65536:
        wrong = "ports are 1 to 65535"
    if wrong:
        raise UsageError(f"wait_for {word!r}: {wrong}")
    return Condition(kind, value)


class Log:
    """Looks for a pattern in the lines of a program's output, as it comes."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)
        self._lines: dict[int, bytes] = {}  # the line that each stream is in
        self.found = False

    def feed(self, stream: int, data: bytes) -> bool:
        """Take output; whether the pattern has been found now or before."""
        *whole, rest = (self._lines.get(stream, b"") + data).split(b"\n")
        self._lines[stream] = rest[:MAX_LINE]
        self.found = self.found or any(map(self._matches, (*whole, rest)))
        return self.found

    def _matches(self, line: bytes) -> bool:
        text = line[:MAX_LINE].decode(errors="replace")
        return bool(self._pattern.search(text.removesuffix("\r")))


class Waiting:
    """Until all conditions have held. Made before it is waited, so that no line is missed."""

    def __init__(self, guest: Guest, exchange: Exchange, conditions: list[Condition]) -> None:
        self._guest, self._exchange = guest, exchange
        self._all = conditions
        self._missing = dict.fromkeys(conditions)
        self._changes = Changes()
        self._probes: list[Probe] = []
        exchange.on_end.append(self._over)
        for condition in conditions:
            if condition.kind == "log":
                log = Log(condition.value)
                exchange.session.watch(partial(self._look, condition, log))
            elif condition.kind == "port":
                vsock = guest.vsock
                probe = Probe(vsock, int(condition.value), partial(self._met, condition))
                self._probes.append(probe)
                vsock.when_started(probe.begin)

    def wait(self, timeout: float | None) -> None:
        """Wait for so many seconds at most.

        Raises GuestError if it is too late then, or the program ends before.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            for condition in self._all:
                while (left := self._left(deadline)) is None or left > 0:
                    if condition.kind == "exec":
                        met = self._try(condition, left)
                    else:
                        met = self._changed(condition, left)
                    if met:
                        break
                    if self._exchange.over:
                        raise self._ended()
                else:
                    raise GuestError(f"not ready within {timeout:g} s: {self._what()}")
        finally:
            self._leave()

    def _changed(self, condition: Condition, seconds: float | None) -> bool:
        with self._changes:
            self._changes.wait_for(
                lambda: condition not in self._missing or self._exchange.over, seconds
            )
            return condition not in self._missing

    def _try(self, condition: Condition, seconds: float | None) -> bool:
        try:
            done = self._guest.exec(shlex.split(condition.value), timeout=seconds)
        except GuestError:  # it has ended, or has no room for another program
            done = None
        if done and done.exit_code == 0:
            self._met(condition)
            return True
        with self._changes:
            self._changes.wait_for(lambda: self._exchange.over, RETRY)
        return False

    def _look(self, condition: Condition, log: Log, stream: int, data: bytes) -> None:
        if not log.found and log.feed(stream, data):
            self._met(condition)

    def _met(self, condition: Condition) -> None:
        with self._changes:
            self._missing.pop(condition, None)
            self._changes.notify_all()

    def _over(self) -> None:
        with self._changes:
            self._changes.notify_all()

    def _leave(self) -> None:
        self._exchange.on_end.remove(self._over)
        for probe in self._probes:
            probe.give_up()

    @staticmethod
    def _left(deadline: float | None) -> float | None:
        return None if deadline is None else deadline - time.monotonic()

    def _what(self) -> str:
        return ", ".join(map(str, self._missing))

    def _ended(self) -> GuestError:
        session = self._exchange.session
        if not session.end:
            return GuestError(f"the machine ended before it was ready: {self._what()}")
        why = session.result.failure or f"with exit code {session.result.exit_code}"
        return GuestError(f"the program ended before it was ready ({self._what()}): {why}")
