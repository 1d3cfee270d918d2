"""When a machine is ready: what ``--wait-for`` and Machine.wait_for() mean.

``log=REGEX``: a line of the program's output has it (re.search; stdout or stderr). ``port=N``: the
guest's loopback accepts on TCP port N. ``exec=COMMAND``: the command, words as a shell's but run by
none, ends with 0 in the guest. Of several all must have been seen.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from .errors import UsageError

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
