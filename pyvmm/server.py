"""Makes workers: a process with everything imported, which becomes a worker by forking.

So a run waits for no interpreter. Requests come over a socket, each with three descriptors: the
worker's control socket, a file for what it says on stderr, and its life line. On that the server
answers with the worker's process id (or a negative errno) and a pidfd, and tells its wait status
at the end. Whoever lets go of the life line has no more interest in a worker, which is then ending:
the next one starts only when it is gone, so that the memory of two guests is never held for one.
"""

from __future__ import annotations

import os
import select
import struct
import sys
from _signal import SIG_BLOCK, SIG_DFL, SIGINT, SIGPIPE, SIGTERM, pthread_sigmask, signal
from _socket import AF_UNIX, CMSG_SPACE, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socket

from . import worker
from ._core import ffi, lib

FDS = 3
NAME = "pyvmm-server"
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
SIGKILL = 9


def main(requests: int) -> None:
    """Serve until the other end of the socket is closed; the workers die with us."""
    signal(SIGTERM, SIG_DFL)
    signal(SIGPIPE, SIG_DFL)
    pthread_sigmask(SIG_BLOCK, [SIGINT])  # the terminal's ^C is for the caller
    _name(NAME)
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
        message, ancillary, _, _ = self._requests.recvmsg(16, CMSG_SPACE(4 * FDS))
        if not message:
            return False
        (rights,) = (data for level, kind, data in ancillary if kind == SCM_RIGHTS)
        control, log, line = struct.unpack(f"{FDS}i", rights)
        life = socket(AF_UNIX, SOCK_SEQPACKET, 0, line)
        self._wait_for_leavers()
        us = os.getpid()
        _name(worker.NAME)  # what is born with it never has another
        try:
            pid = os.fork()
        except OSError as e:
            _tell(life, -(e.errno or 1))
            life.close()
        else:
            if pid == 0:
                _become_worker(us, control, log)
            pidfd = os.pidfd_open(pid)
            self._workers[pidfd] = pid, life
            self._poll.register(pidfd, select.POLLIN)
            _tell(life, pid, pidfd)
        _name(NAME)
        os.close(control)
        os.close(log)
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
    rights = [(SOL_SOCKET, SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
    try:
        life.sendmsg([struct.pack("i", number)], rights)
    except OSError:
        pass  # nobody is interested any more


def _become_worker(server: int, control: int, log: int) -> None:
    code = 1
    try:
        lib.prctl(PR_SET_PDEATHSIG, ffi.cast("unsigned long", SIGKILL))
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(control, worker.CONTROL)
        os.closerange(worker.CONTROL + 1, 1 << 20)
        if os.getppid() == server:
            worker.main()
            code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())  # to the log
    os._exit(code)


def _name(name: str) -> None:
    """For ps."""
    lib.prctl(PR_SET_NAME, ffi.from_buffer(name.encode() + b"\0"))
