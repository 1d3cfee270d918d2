"""How a pull is shown: bars on a terminal, else a line for each blob."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Self


def display(say: Callable[[str], object], bars: bool) -> Lines:
    """Bars if they are wanted, stderr is a terminal and rich is there; else lines for ``say``."""
    if bars and sys.stderr and sys.stderr.isatty():
        try:
            return Bars(say)
        except ImportError:
            pass
    return Lines(say)


class Lines:
    """One line for each blob, when it is there. A context manager, for one pull (oci/pull.py)."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._began: dict[str, tuple[int, int, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def blob(self, digest: str, size: int, at: int) -> None:
        self._began[digest] = size, at, time.monotonic()

    def advance(self, digest: str, count: int) -> None:
        pass

    def done(self, digest: str) -> None:
        size, at, began = self._began[digest]
        seconds = time.monotonic() - began
        resumed = f", {quantity(at)} of them from before" if at else ""
        self._say(f"{digest}: {quantity(size)} in {seconds:.1f} s{resumed}")

    def line(self, text: str) -> None:
        self._say(text)


class Bars(Lines):
    """A bar for each blob, by rich. Raises ImportError if that is not installed."""

    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__(say)
        from rich import progress
        from rich.console import Console

        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def blob(self, digest: str, size: int, at: int) -> None:
        if digest in self._tasks:
            self._bars.reset(self._tasks[digest], total=size, completed=at)
        else:
            self._tasks[digest] = self._bars.add_task(short(digest), total=size, completed=at)

    def advance(self, digest: str, count: int) -> None:
        self._bars.advance(self._tasks[digest], count)

    def done(self, digest: str) -> None:
        self._bars.stop_task(self._tasks[digest])

    def line(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)


def short(digest: str) -> str:
    """The beginning of a digest, as Docker shows it."""
    return digest.partition(":")[2][:12]


def quantity(size: float) -> str:
    """Bytes for people: ``1.5 MiB``."""
    if size < 1024:
        return f"{size:.0f} bytes"
    unit = 0
    while size >= 1000 and unit < 4:
        size /= 1024
        unit += 1
    return f"{size:.1f} {' KMGT'[unit]}iB"
