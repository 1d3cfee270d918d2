"""Makes workers by forking, so that a run waits for no interpreter to start.

Requests come over a socket (passing.JAILED or OPEN), with four or five descriptors: the worker's
control socket, a file for what it says on stderr, its life line, /dev/kvm, and its cgroup if it has
one. On the life line the server answers with the worker's process id (or a negative errno) and a
pidfd, and tells its wait status at the end. Whoever lets go of it has no more interest in a worker,
which is then ending: the next one starts only when it is gone, so that the memory of two guests is
never held for one.
"""

from __future__ import annotations

import os
import select
import struct
from _signal import SIG_BLOCK, SIG_DFL, SIGINT, SIGPIPE, SIGTERM, pthread_sigmask, signal
from _socket import AF_UNIX, SOCK_SEQPACKET, socket
from fcntl import F_DUPFD, fcntl

from . import jail, passing
from ._core import ffi, lib
from .kvm import Kvm

FDS = 5
NAME, WORKER_NAME = "pyvmm-server", "pyvmm-worker"
CONTROL, KVM = 3, 4  # a worker's descriptors
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
SIGKILL = 9


def main(requests: int, *, preload: bool = True) -> None:
    """Serve until the other end of the socket is closed; the workers die with us.

    ``preload``: import now what workers need, for there will be many; else each does, later.
    """
    signal(SIGTERM, SIG_DFL)
    signal(SIGPIPE, SIG_DFL)
    pthread_sigmask(SIG_BLOCK, [SIGINT])  # the terminal's ^C is for the caller
    _name(NAME)
    if preload:
        from . import worker  # noqa: F401
    Server(socket(AF_UNIX, SOCK_SEQPACKET, 0, requests)).run()


class Server:
    def __init__(self, requests: socket) -> None:
        self._requests = requests
        self._workers: dict[int, tuple[int, socket]] = {}  # by pidfd: process id, life line
        self._poll = select.poll()
        self._poll.register(requests, select.POLLIN)

    def run(self) -> None:
        while True:
            ready = {fd for fd, _ in self._poll.poll()}
            for pidfd in ready & self._workers.keys():
                self._ended(pidfd)
            if self._requests.fileno() in ready and not self._serve():
                return

    def _serve(self) -> bool:
        message, fds = passing.receive(self._requests, 16, FDS)
        if not message:
            return False
        control, log, line, kvm, *cgroup = fds
        life = socket(AF_UNIX, SOCK_SEQPACKET, 0, line)
        self._wait_for_leavers()
        jailed = message == passing.JAILED
        pidfd = ffi.new("int *")
        _name(WORKER_NAME)  # what is born with it never has another
        pid = lib.jail_clone(jail.namespaces() if jailed else 0, *cgroup or (-1,), pidfd)
        if pid == 0:
            _become_worker(control, log, kvm, jailed)
        _name(NAME)
        if pid < 0:
            _tell(life, pid)
            life.close()
        else:
            self._workers[pidfd[0]] = pid, life
            self._poll.register(pidfd[0], select.POLLIN)
            _tell(life, pid, pidfd[0])
        for fd in control, log, kvm, *cgroup:
            os.close(fd)
        return True

    def _wait_for_leavers(self) -> None:
        for pidfd, (_, life) in list(self._workers.items()):
            poll = select.poll()
            poll.register(life, select.POLLIN)
            if poll.poll(0):
                self._ended(pidfd)

    def _ended(self, pidfd: int) -> None:
        pid, life = self._workers.pop(pidfd)
        self._poll.unregister(pidfd)
        _tell(life, os.waitpid(pid, 0)[1])
        life.close()
        os.close(pidfd)


def _tell(life: socket, number: int, *fds: int) -> None:
    try:
        passing.send(life, struct.pack("i", number), fds)
    except OSError:
        pass  # nobody is interested any more


def _become_worker(control: int, log: int, kvm: int, jailed: bool) -> None:
    code = 1
    try:
        lib.prctl(PR_SET_PDEATHSIG, ffi.cast("unsigned long", SIGKILL))
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Through numbers above all: one may have what another is to get.
        control, kvm = (fcntl(fd, F_DUPFD, 64) for fd in (control, kvm))
        os.dup2(control, CONTROL)
        os.dup2(kvm, KVM)
        os.closerange(KVM + 1, 1 << 20)
        try:
            # At once: KVM waits for a grace period here, while others have something to do.
            vm = Kvm(KVM).create_vm().fd
        except OSError as e:
            vm = -(e.errno or 1)
        from .worker import main

        main(CONTROL, KVM, vm, jailed)
        code = 0
    except BaseException as e:
        _report(e)
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
