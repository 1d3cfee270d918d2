"""The worker process, from the caller's side: asked for, told, heard, ended."""

from __future__ import annotations

import marshal
import os
import struct
import sys
from _signal import SIGKILL, SIGSYS, pidfd_send_signal
from _socket import AF_UNIX, SOCK_SEQPACKET, socketpair
from _thread import allocate_lock

from . import passing, report
from .cgroup import Cgroup
from .errors import HostError
from .host import log, logged, open_kvm

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

REPORT_GRACE = 10.0  # seconds for the worker to report after it was told to stop
DYING = 1.0  # seconds for a worker that has closed its socket to be gone


class Server:
    """The process that makes workers (server.py): one for each caller, as long as that lives."""

    def __init__(self) -> None:
        self._requests: socket | None = None
        self._pid = 0
        self._log = -1
        self._lock = allocate_lock()

    def _open(self) -> socket:
        """Make the socket and the log; returns the server's end."""
        self._log = log("pyvmm-server-log")
        self._requests, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        return theirs

    def fork(self) -> None:
        """Make it by fork, sooner than by exec. For a process with one thread and nothing to hide
        but its environment, which the server wipes from its memory.
        """
        theirs = self._open()
        self._pid = os.fork()
        if self._pid:
            theirs.close()
            return
        try:
            assert self._requests
            self._requests.close()
            null = os.open(os.devnull, os.O_RDONLY)
            for fd, number in ((null, 0), (self._log, 1), (self._log, 2)):
                os.dup2(fd, number)
            from . import server, wipe

            wipe.environment()
            server.main(theirs.fileno(), preload=False)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        os._exit(0)

    def _spawn(self) -> None:
        """Make it by exec, with nothing of ours in its memory."""
        theirs = self._open()
        import _cffi_backend

        package, backend = os.path.dirname(__file__), os.path.dirname(_cffi_backend.__file__)
        paths = [os.path.dirname(package), backend]
        # Without site (-S): it costs more than all that the server imports.
        script = f"import sys; sys.path += {paths!r}; from pyvmm.server import main; main(3)"
        with_ours = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, self._log, 1),
            (os.POSIX_SPAWN_DUP2, self._log, 2),
            (os.POSIX_SPAWN_DUP2, theirs.fileno(), 3),
        ]
        words = [sys.executable, "-I", "-S", "-c", script]
        try:
            self._pid = os.posix_spawn(sys.executable, words, {}, file_actions=with_ours)
        except OSError as e:
            self.close()
            raise HostError(f"cannot start {sys.executable}: {e.strerror}") from None
        finally:
            theirs.close()

    def request(self, message: bytes, *fds: int) -> None:
        """Ask for a worker with these descriptors (server.py)."""
        with self._lock:
            if self._requests:
                try:
                    passing.send(self._requests, message, fds)
                    return
                except (BrokenPipeError, ConnectionResetError):  # somebody has killed it
                    self.close()
            self._spawn()
            assert self._requests
            passing.send(self._requests, message, fds)

    def close(self) -> None:
        """End it, and the workers with it."""
        if self._requests:
            self._requests.close()
            self._requests = None
            os.close(self._log)
            self._log = -1
            try:
                if self._pid:
                    os.waitpid(self._pid, 0)
            except ChildProcessError:
                pass  # another process's, or somebody waits for every child
            self._pid = 0

    def is_gone(self) -> bool:
        """It never says anything here: only its end can be read."""
        return self._requests is None or passing.readable(self._requests, 0)

    def last_words(self) -> str:
        return logged(self._log) if self._log >= 0 else ""


server = Server()


class WorkerProcess:
    """A worker (worker.py), which makes a VM at once. It is told what to run by assign()."""

    def __init__(
        self, *, jail: bool = True, cgroup: str | None = None, counters: bool = False
    ) -> None:
        """Raises HostError without /dev/kvm, and if a ``cgroup`` is named that cannot be used."""
        self.cgroup: Cgroup | None = None
        """its limits, yet to be set; None without a jail"""
        self.walls = {"jail": "off"}
        """what was around it when the guest began, by its report()"""
        self._log = self._pidfd = -1
        self._pid: int | None = None
        self._status: int | None = None
        self._over = False  # it has reported, or is gone
        self.control, control = socketpair(AF_UNIX, SOCK_SEQPACKET)
        self._life, life = socketpair(AF_UNIX, SOCK_SEQPACKET)
        try:
            self._log = log("pyvmm-worker-log")
            if jail:
                self.cgroup = Cgroup(cgroup)
            kvm = open_kvm()
            try:
                events: list[tuple[int, int]] = []
                if counters:
                    from .counters import EVENTS

                    events = list(EVENTS.values())
                path = self.cgroup.path if self.cgroup else ""
                message = marshal.dumps((jail, path, events))
                server.request(message, control.fileno(), self._log, life.fileno(), kvm)
            finally:
                os.close(kvm)
        except BaseException:
            self._over = True
            self._close_cgroup()
            self.close()
            raise
        finally:
            control.close()
            life.close()

    def _close_cgroup(self) -> None:
        """Where there was no worker, there is no server to do it."""
        if self.cgroup:
            self.cgroup.close()

    @property
    def pid(self) -> int | None:
        """Its process id; None if it is over, or could not be made."""
        self._meet()
        return None if self._over else self._pid

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._log < 0

    def _meet(self) -> None:
        """Take the server's first answer."""
        if self._pidfd >= 0 or self._over:
            return
        try:
            message, fds = passing.receive(self._life, 4, 1)
        except OSError as e:
            self._over = True
            self.control.close()  # it ends without us
            raise HostError(f"cannot watch the VM's process: {e.strerror} (ulimit -n)") from None
        if not message:
            self._over = True
            return
        (number,) = struct.unpack("i", message)
        if number < 0:
            self._over = True
            path = self.cgroup.path if self.cgroup else ""
            self._close_cgroup()
            from .jail import CLONE, refusal

            raise refusal(f"{CLONE} and in {path}" if path else CLONE, -number)
        self._pid = number
        (self._pidfd,) = fds

    def assign(self, spec: dict[str, Any], fds: dict[str, int]) -> None:
        """Hand over what to run. ``fds`` stay the caller's; the worker has its own copies."""
        spec = spec | {"fds": list(fds)}
        try:
            passing.send(self.control, marshal.dumps(spec), fds.values())
        except BrokenPipeError:
            pass  # it died at once: report() and died() will tell

    def stop(self) -> None:
        """Tell it to end the VM and report."""
        try:
            self.control.send(b"stop")
        except OSError:
            pass  # it has ended by itself; its report waits in the socket

    def report(self) -> dict[str, Any]:
        """Its report, after stop() or an end of its own; empty if it died without one.

        Raises GuestError if that is not a report.
        """
        said = self._read()
        if "walls" in said:
            self.walls = said["walls"]
            said = self._read()
        self._over = True
        return said

    def _read(self) -> dict[str, Any]:
        message = b""
        if passing.readable(self.control, REPORT_GRACE):
            message = self._receive()
            self._meet()
            if not message:
                passing.readable(self._life, DYING)  # it may still be writing its last words
        if not message:
            self.kill()
        return report.read(message)

    def _receive(self) -> bytes:
        # A worker that ended by itself leaves our "stop" unread: that resets the connection, which
        # Linux tells once, before it gives what was sent (the report).
        for _ in range(2):
            try:
                return self.control.recv(report.MAX)
            except ConnectionResetError:
                continue
        return b""

    def died(self) -> str:
        """How it ended without a report, in words."""
        status = self._status
        if status is not None and os.WIFSIGNALED(status):
            from signal import strsignal

            number = os.WTERMSIG(status)
            why = ": a system call that its seccomp policy forbids" if number == SIGSYS else ""
            return f"worker killed by signal {number} ({strsignal(number)}){why}"
        said = logged(self._log) or (server.last_words() if status is None else "")
        if not said and status is None and server.is_gone():
            return "pyvmm-server was killed, and the worker with it"
        return f"worker failed: {said.splitlines()[-1] if said else 'no report'}"

    def kill(self) -> None:
        """End it at once, and wait until it is gone; one that has reported is left to itself."""
        self._meet()
        if self._over:
            return
        self._signal()
        message = self._life.recv(4)
        self._status = struct.unpack("i", message)[0] if message else None
        self._over = True

    def _signal(self) -> None:
        try:
            pidfd_send_signal(self._pidfd, SIGKILL)
        except ProcessLookupError:
            pass  # it is gone

    def close(self, wait: bool = False) -> None:
        """kill(), and let go of everything. ``wait``: until also one that has reported is gone."""
        if self._log < 0:
            return
        try:
            self.kill()
        finally:
            self.control.close()  # for which one that has reported waits
            if self._pidfd >= 0:
                self._signal()  # but a guest may have taken it over
            if wait and self._pidfd >= 0:
                passing.readable(self._pidfd, REPORT_GRACE)
            self._life.close()
            if self.cgroup:
                self.cgroup.let_go()  # the server removes it
            os.close(self._log)
            self._log = -1
            if self._pidfd >= 0:
                os.close(self._pidfd)
