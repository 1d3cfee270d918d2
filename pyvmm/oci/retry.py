"""Trying again: how often, and how long to wait before it."""

from __future__ import annotations

import random
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from pyvmm.errors import ImageError
from pyvmm.oci.http import Temporary

TRIES = 6
FIRST_DELAY = 0.5  # seconds; doubled each time
DELAY_MAX = 120.0  # seconds that a server may ask us to wait

_Result = TypeVar("_Result")


class Stopped(Exception):
    """Somebody else failed or gave up: nobody waits for this any more."""


class Retries:
    """Waits between tries. ``note`` is given a line each time; ``stop`` ends the waiting."""

    def __init__(self, stop: Event, note: Callable[[str], object]) -> None:
        self._stop = stop
        self._note = note

    def run(self, attempt: Callable[[], _Result], progress: Callable[[], int] = int) -> _Result:
        """The result of ``attempt``, tried again while it raises Temporary.

        ``progress`` is how far it has got, in bytes: the count of tries starts anew when one got
        further than all before by a MiB, so that large blobs come over bad lines. Raises the last
        error.
        """
        failures = 0
        furthest = progress()
        while True:
            try:
                return attempt()
            except Temporary as error:
                failures = 1 if progress() - furthest >= 1 << 20 else failures + 1
                furthest = max(furthest, progress())
                if failures == TRIES:
                    raise
                if error.after > DELAY_MAX:
                    raise ImageError(f"{error}; try again in {error.after:.0f} s") from None
                # Jitter, so that those whom one outage stopped do not come back as one.
                delay = FIRST_DELAY * 2 ** (failures - 1) * random.uniform(0.5, 1)
                delay = max(delay, error.after)
                self._note(f"{error}; trying again in {delay:.1f} s")
                if self._stop.wait(delay):
                    raise Stopped from None
