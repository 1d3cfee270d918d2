"""Blobs from a registry into the store, several at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from threading import Event, Thread
from typing import Protocol

from pyvmm.errors import ImageError
from pyvmm.oci.http import Temporary
from pyvmm.oci.incoming import DigestError, Incoming
from pyvmm.oci.registry import Registry
from pyvmm.oci.retry import Retries, Stopped
from pyvmm.oci.store import Store

CONNECTIONS = 4
_CHUNK = 1 << 20


class Progress(Protocol):
    """What is told of a pull, always in the thread that called it. Sizes are in bytes."""

    def blob(self, digest: str, size: int, at: int) -> None:
        """A blob is fetched from the byte ``at`` on; again if it has to start anew."""

    def advance(self, digest: str, count: int) -> None:
        """``count`` more bytes of it are there."""

    def done(self, digest: str) -> None:
        """It is there and verified."""

    def line(self, text: str) -> None:
        """Something worth a line, such as that a server is asked again."""


class Downloads:
    """The blobs that are wanted of a repository, with their sizes, fetched by some threads.

    Each thread's reports come to the caller's thread through a queue, errors as well.
    """

    def __init__(
        self, registry: Registry, store: Store, blobs: Mapping[str, int], progress: Progress
    ) -> None:
        self._registry = registry
        self._store = store
        self._progress = progress
        missing = [blob for blob in blobs.items() if not store.has(*blob)]
        self._threads = min(CONNECTIONS, len(missing))
        self._waiting = deque([*missing, *[None] * self._threads])
        self._reports: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._stop = Event()
        self._retries = Retries(self._stop, lambda text: self._report(progress.line, text))

    def run(self) -> None:
        """Fetch them. Raises ImageError.

        Whatever ends it early, an error or a signal, ends it at once; the threads notice at their
        next piece, and what they had is there to be resumed.
        """
        threads = [
            Thread(target=self._work, name="pyvmm-pull", daemon=True) for _ in range(self._threads)
        ]
        try:
            for thread in threads:
                thread.start()
            for _ in threads:  # each ends with None
                while report := self._reports.get():
                    report()
            for thread in threads:
                thread.join()
        finally:
            self._stop.set()

    def _report(self, call: Callable[..., object], *values: object) -> None:
        self._reports.put(lambda: call(*values))

    def _work(self) -> None:
        try:
            while blob := self._waiting.popleft():
                self._fetch(*blob)
        except Stopped:
            pass
        except BaseException as error:
            self._report(_raise, error)
        self._reports.put(None)

    def _fetch(self, digest: str, size: int) -> None:
        with self._store.receive(digest, size) as incoming:
            self._report(self._progress.blob, digest, size, incoming.offset)
            try:
                self._fill(digest, size, incoming)
            except DigestError as error:
                # A damaged part of an earlier try, perhaps, or of a proxy's cache: once more.
                self._report(self._progress.line, f"{error}; fetching it again")
                self._report(self._progress.blob, digest, size, 0)
                self._fill(digest, size, incoming)
        self._report(self._progress.done, digest)

    def _fill(self, digest: str, size: int, incoming: Incoming) -> None:
        if incoming.offset < size:
            self._retries.run(lambda: self._stream(digest, size, incoming), lambda: incoming.offset)
        incoming.finish()

    def _stream(self, digest: str, size: int, incoming: Incoming) -> None:
        """One try to get what is missing."""
        with self._registry.blob(digest, incoming.offset) as body:
            if body.start != incoming.offset:
                incoming.restart()
                self._report(self._progress.blob, digest, size, 0)
            if body.length not in (None, size - body.start):
                there = body.start + (body.length or 0)
                raise ImageError(
                    f"blob {digest}: the registry has {there} bytes, the image says {size}"
                )
            while data := body.read(_CHUNK):
                if self._stop.is_set():
                    raise Stopped
                incoming.write(data)
                self._report(self._progress.advance, digest, len(data))
            if incoming.offset < size and body.length is None:  # nobody else would notice
                raise Temporary(f"blob {digest}: the connection was cut")


def _raise(error: BaseException) -> None:
    raise error
