"""One thread that waits for many sockets: what the caller's half of vsock runs in.

Handlers are called in the thread, one at a time, and must not wait. They may be called without
cause (a descriptor's number may be another's by then), so that all they do is non-blocking.
"""

from __future__ import annotations

import errno
import heapq
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from socket import socket
from threading import Lock, Thread

BATCH = 64  # events, or connections, until the others have their turn
PAUSE = 0.1  # seconds until there may be descriptors or memory again
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Handler = Callable[[], object]


class Loop:
    """The thread. Of its methods only call() and close() are for others."""

    def __init__(self, name: str) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._handlers: dict[int, tuple[socket, Handler]] = {}
        self._calls: deque[Handler] = deque()
        self._timers: list[tuple[float, int, Handler]] = []
        self._timer_count = 0
        self._ending = False
        self._lock = Lock()  # of the wake-up's descriptor
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Handler) -> None:
        """Have ``function`` called in the thread, soon; never, if that has ended."""
        self._calls.append(function)
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread. Call it once, from another."""
        self.call(self.stop)
        self._thread.join()
        with self._lock:
            os.close(self._wake)
            self._wake = -1
        self._epoll.close()

    # ---- for handlers ----

    def stop(self) -> None:
        """End the thread after this handler, and close every socket that it watches."""
        self._ending = True

    def watch(self, sock: socket, handler: Handler) -> None:
        """Call ``handler`` whenever there is something to read from ``sock``, or to accept."""
        sock.setblocking(False)
        self._handlers[sock.fileno()] = sock, handler
        self._epoll.register(sock, select.EPOLLIN)

    def forget(self, sock: socket) -> None:
        """Watch it no more; it stays open."""
        del self._handlers[sock.fileno()]
        self._epoll.unregister(sock)

    def later(self, seconds: float, function: Handler) -> None:
        """Call ``function`` in so many seconds."""
        self._timer_count += 1
        entry = time.monotonic() + seconds, self._timer_count, function
        heapq.heappush(self._timers, entry)

    def accept(self, listener: socket, most: int = BATCH) -> Iterator[socket]:
        """What has connected to a socket that is watched: ``most``, and a batch, at a time.

        Where there is no room for it, or no descriptor, it stays in the backlog for a while.
        """
        for _ in range(min(most, BATCH)):
            try:
                yield listener.accept()[0]
            except BlockingIOError:
                return
            except OSError as e:
                if e.errno in SHORT:
                    most = 0
                    break
                # ECONNABORTED and its like: that one has gone, the next may be there
        if most <= 0:
            self._pause(listener)

    def _pause(self, sock: socket) -> None:
        self._epoll.modify(sock, 0)
        self.later(PAUSE, lambda: self._resume(sock))

    def _resume(self, sock: socket) -> None:
        if self._handlers.get(sock.fileno(), (None,))[0] is sock:
            self._epoll.modify(sock, select.EPOLLIN)

    # ---- the thread ----

    def _run(self) -> None:
        try:
            while not self._ending:
                self._turn()
        finally:
            for sock, _ in self._handlers.values():
                sock.close()

    def _turn(self) -> None:
        timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1
        for fd, _ in self._epoll.poll(timeout, BATCH):
            if fd in self._handlers:
                self._handlers[fd][1]()
            elif fd == self._wake:
                os.eventfd_read(self._wake)
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()
        for _ in range(len(self._calls)):
            self._calls.popleft()()
