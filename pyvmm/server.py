"""Makes workers by forking, so that a run waits for no interpreter to start.

Requests come over a socket: whether the worker is to have walls (jail.py), its cgroup's path or "",
and the events that it is to count (counters.py). Each has four descriptors: the worker's control
socket, a file for what it says on stderr, its life line, and /dev/kvm. On the life line the
server answers with the worker's process id (or a negative errno) and a pidfd, and tells its wait
status at the end, when its cgroup is gone, too. Whoever lets go of it has no more interest in a
worker, which is then ending: the next one starts only when it is gone, so that the memory of two
guests is never held for one.
"""

from __future__ import annotations

import marshal
import os
import select
import struct
from _signal import (
    SIG_BLOCK,
    SIG_DFL,
    SIGHUP,
    SIGINT,
    SIGKILL,
    SIGQUIT,
    SIGTERM,
    pidfd_send_signal,
    pthread_sigmask,
    signal,
)
from _socket import AF_UNIX, SOCK_SEQPACKET, socket
from fcntl import F_DUPFD, fcntl

from . import jail, passing
from ._core import ffi, lib
from .cgroup import remove
from .kvm import Kvm

FDS = 4
CGROUP_GRACE = 5.0  # seconds for a cgroup to be empty whose process is gone
MAX_REQUEST = 8192  # bytes: a path
NAME, WORKER_NAME = "pyvmm-server", "pyvmm-worker"
CONTROL, KVM, SERVER = 3, 4, 5  # a worker's descriptors
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15


def main(requests: int, *, preload: bool = True) -> None:
    """Serve until the other end of the socket is closed; the workers die with us.

    ``preload``: import now what workers need, for there will be many; else each does, later.
    """
    signal(SIGTERM, SIG_DFL)
    # What a terminal sends, its end too, is for the caller; we end after it, and clean up.
    pthread_sigmask(SIG_BLOCK, [SIGINT, SIGQUIT, SIGHUP])
    _name(NAME)
    if preload:
        from . import worker  # noqa: F401
    Server(socket(AF_UNIX, SOCK_SEQPACKET, 0, requests)).run()


class Server:
    def __init__(self, requests: socket) -> None:
        self._requests = requests
        self._self = os.pidfd_open(os.getpid())
        self._workers: dict[int, tuple[int, socket, str]] = {}
        """by pidfd: process id, life line, cgroup"""
        self._poll = select.poll()
        self._poll.register(requests, select.POLLIN)

    def run(self) -> None:
        """Until there is nobody to ask for more: then what is left ends at once."""
        while True:
            ready = {fd for fd, _ in self._poll.poll()}
            for pidfd in ready & self._workers.keys():
                self._ended(pidfd)
            if self._requests.fileno() in ready and not self._serve():
                break
        for pidfd in list(self._workers):
            self._ended(pidfd)

    def _serve(self) -> bool:
        try:
            message, fds = passing.receive(self._requests, MAX_REQUEST, FDS)
        except OSError:  # no room for its descriptors: its life line is closed, which tells
            return True
        if not message:
            return False
        control, log, line, kvm = fds
        life = socket(AF_UNIX, SOCK_SEQPACKET, 0, line)
        self._wait_for_leavers()
        _name(WORKER_NAME)  # what is born with it never has another
        jailed, cgroup, events = marshal.loads(message)
        pid, pidfd = _clone(jailed, cgroup)
        if pid == 0:
            _become_worker(control, log, kvm, self._self, jailed, events)
        _name(NAME)
        if pid < 0:
            _tell(life, pid)
            life.close()
        else:
            self._workers[pidfd] = pid, life, cgroup
            self._poll.register(pidfd, select.POLLIN)
            _tell(life, pid, pidfd)
        for fd in control, log, kvm:
            os.close(fd)
        return True

    def _wait_for_leavers(self) -> None:
        for pidfd, (_, life, _) in list(self._workers.items()):
            if passing.readable(life, 0):
                self._ended(pidfd)

    def _ended(self, pidfd: int) -> None:
        pid, life, cgroup = self._workers.pop(pidfd)
        self._poll.unregister(pidfd)
        pidfd_send_signal(pidfd, SIGKILL)  # one that a guest has taken over may not want to end
        status = os.waitpid(pid, 0)[1]
        if cgroup:
            try:
                remove(cgroup, CGROUP_GRACE)
            except OSError:
                pass  # another user's by now, or swept away: the next run looks again
        _tell(life, status)
        life.close()
        os.close(pidfd)


def _clone(jailed: bool, cgroup: str) -> tuple[int, int]:
    """fork(): the process id, 0 in the child, or a negative errno; and a pidfd."""
    if not jailed:
        pidfd = ffi.new("int *")
        return lib.jail_clone(0, -1, pidfd), pidfd[0]
    if not cgroup:
        return jail.clone()
    try:
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        return -(e.errno or 1), -1
    try:
        return jail.clone(directory)
    finally:
        os.close(directory)


def _tell(life: socket, number: int, *fds: int) -> None:
    try:
        passing.send(life, struct.pack("i", number), fds)
    except OSError:
        pass  # nobody is interested any more


def _become_worker(
    control: int, log: int, kvm: int, server: int, jailed: bool, events: list[tuple[int, int]]
) -> None:
    code = 1
    try:
        lib.prctl(PR_SET_PDEATHSIG, ffi.cast("unsigned long", SIGKILL))
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Through numbers above all: one may have what another is to get.
        fds = [fcntl(fd, F_DUPFD, 64) for fd in (control, kvm, server)]
        for fd, number in zip(fds, (CONTROL, KVM, SERVER), strict=True):
            os.dup2(fd, number)
        os.closerange(SERVER + 1, 1 << 20)
        try:
            # At once: KVM waits for a grace period here, while others have something to do.
            vm = Kvm(KVM).create_vm().fd
        except OSError as e:
            vm = -(e.errno or 1)
        from .worker import main

        main(CONTROL, KVM, vm, SERVER, jailed, events)
        code = 0
    except BaseException as e:
        _report(e)
    finally:
        os._exit(code)


def _report(e: BaseException) -> None:
    """To the log, by nothing but write(2): Python would read its source files, which are gone."""
    lines, trace = [], e.__traceback__
    while trace:
        code = trace.tb_frame.f_code
        lines.append(f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}")
        trace = trace.tb_next
    os.write(2, "\n".join([*lines, f"{type(e).__name__}: {e}"]).encode())


def _name(name: str) -> None:
    """For ps."""
    lib.prctl(PR_SET_NAME, ffi.from_buffer(name.encode() + b"\0"))
