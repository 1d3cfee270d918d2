"""A machine's exchange in a thread, so that its program runs while its caller does more."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread, current_thread


class Follower:
    """Runs it in a thread from now on, and keeps what comes of it."""

    def __init__(self, run: Callable[[], bool]) -> None:
        self._run = run
        self._complete = False
        self._error: BaseException | None = None
        self._thread = Thread(target=self._follow, name="pyvmm-exchange", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            self._complete = self._run()
        except BaseException as e:
            self._error = e

    def wait(self) -> bool:
        """What ``run`` has returned; what it raised is raised here."""
        self._thread.join()
        if self._error:
            raise self._error
        return self._complete

    def close(self) -> None:
        """Wait until it is over, unless this is called by what it runs."""
        if self._thread is not current_thread():
            self._thread.join()
