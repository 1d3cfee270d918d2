"""The worker process, from the caller's side: started, told, heard, reaped."""

from __future__ import annotations

import json
import marshal
import os
import select
import signal
import struct
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socketpair
from _thread import get_native_id

import _cffi_backend

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from typing import Any

REPORT_GRACE = 10.0  # seconds for the worker to report after it was told to stop
MAX_REPORT = 1 << 20
NAME = "pyvmm-worker"  # in /proc/PID/cmdline, for people


def _start() -> str:
    """The worker's program. Without site (-S): it costs more than all that the worker imports."""
    package, backend = os.path.dirname(__file__), _cffi_backend.__file__
    paths = [os.path.dirname(package), os.path.dirname(backend)]
    return f"import sys; sys.path += {paths!r}; from pyvmm.worker import main; main()"


class WorkerProcess:
    """A started worker (worker.py). It is told what to run by assign()."""

    def __init__(self) -> None:
        self.control, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        self._log = os.memfd_create("pyvmm-worker-log")
        self.pid: int | None = None
        self._status = 0
        try:
            self.pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _start(), NAME],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, self._log, 1),
                    (os.POSIX_SPAWN_DUP2, self._log, 2),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 3),
                ],
                setsigdef=[signal.SIGTERM, signal.SIGPIPE],
                setsigmask=[signal.SIGINT],  # the terminal's ^C is for the caller
            )
        finally:
            theirs.close()

    def assign(self, spec: dict[str, Any], fds: dict[str, int]) -> None:
        """Hand over what to run. ``fds`` stay the caller's; the worker has its own copies."""
        # The kernel ties PDEATHSIG to the thread that made the worker: only the main one is sure
        # to live as long as the process. End of file on the socket covers the rest.
        main = get_native_id() == os.getpid()
        spec = spec | {"fds": list(fds), "parent": os.getpid() if main else 0}
        try:
            rights = struct.pack(f"{len(fds)}i", *fds.values())
            self.control.sendmsg([marshal.dumps(spec)], [(SOL_SOCKET, SCM_RIGHTS, rights)])
        except BrokenPipeError:
            pass  # it died at once: wait() and died() will tell

    def stop(self) -> None:
        """Tell it to end the VM and report."""
        try:
            self.control.send(b"stop")
        except OSError:
            pass  # it has ended by itself; its report waits in the socket

    def report(self) -> dict[str, Any]:
        """Its report, after stop() or an end of its own; empty if it died without one. Reaps it."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        message = b""
        if poll.poll(REPORT_GRACE * 1000):
            message = self._receive()
        else:
            self.kill()
        self._reap()
        report = json.loads(message or b"{}")
        assert isinstance(report, dict)
        return report

    def _receive(self) -> bytes:
        # A worker that ended by itself leaves our "stop" unread: that resets the connection, which
        # Linux tells once, before it gives what was sent (the report).
        for _ in range(2):
            try:
                return self.control.recv(MAX_REPORT)
            except ConnectionResetError:
                continue
        return b""

    def died(self) -> str:
        """How it ended without a report, in words."""
        if os.WIFSIGNALED(self._status):
            number = os.WTERMSIG(self._status)
            return f"worker killed by signal {number} ({signal.strsignal(number)})"
        log = os.pread(self._log, 1 << 16, 0).decode("utf-8", "replace").strip()
        return f"worker failed: {log.splitlines()[-1] if log else 'no report'}"

    def _reap(self) -> None:
        if self.pid is None:
            return
        try:
            self._status = os.waitpid(self.pid, 0)[1]
        except ChildProcessError:
            pass  # somebody in this process waits for every child
        self.pid = None

    def kill(self) -> None:
        """End it at once."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()

    def close(self) -> None:
        self.kill()
        self.control.close()
        if self._log >= 0:
            os.close(self._log)
            self._log = -1
