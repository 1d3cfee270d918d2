"""The walls around a worker. Whoever breaks the monitor from inside the guest is then in a process
that has nothing and may do nothing; docs/threat-model.md says what each wall stops.

The server makes the worker in namespaces of its own (`clone`). When that has imported what it
needs it gives up paths, identity and privileges (`Jail`); only then it gets descriptors. When the
VM is assembled and its threads are made, it takes from itself what only that needed (`close`). The
threads' seccomp filters (seccomp.py) are the last wall, up before the guest's first instruction.
"""

from __future__ import annotations

import errno
import os

from . import seccomp
from ._core import ffi, lib
from .delegation import read
from .errors import HostError

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from typing import Any

# clone(2)'s flags
NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000

NAMESPACES = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWPID | NEWNET
# The first of 2^24 numbers that belong to nobody (systemd's UIDS-GIDS: none from 0x70000000 on).
UNUSED_ID = 0x7A000000

# getrlimit(2)'s resources: the module of that name costs a run a shared library
FSIZE, CORE, NPROC, NOFILE, MEMLOCK, AS = 1, 4, 6, 7, 8, 9
POLLED = 2  # descriptors that the main thread polls at once: poll(2) refuses more than NOFILE
SPARE = 64 << 20  # bytes of address space beyond what is mapped when the guest starts

OFF = "or do without the walls around the monitor (--jail=off)"
MENDS = {
    errno.EPERM: "allow user namespaces (sysctls kernel.unprivileged_userns_clone=1, "
    f"kernel.apparmor_restrict_unprivileged_userns=0; a container's seccomp profile), {OFF}",
    errno.EACCES: f"allow user namespaces all that they may (AppArmor, SELinux), {OFF}",
    errno.ENOSPC: f"raise the sysctls user.max_*_namespaces, {OFF}",
    errno.EINVAL: "use a kernel with all namespaces and seccomp filters, and no chroot that is not "
    f"a mount point (mount --bind it on itself), {OFF}",
    errno.ENOSYS: f"use Linux 5.7 or newer, and a container that lets clone3 through, {OFF}",
    errno.EAGAIN: "end other processes, or raise their limit (ulimit -u)",
}


def clone(cgroup: int = -1) -> tuple[int, int]:
    """fork() into namespaces of its own, and a cgroup: the process id (0 in the child) or a
    negative errno, and a pidfd.

    A root over all users needs no namespace for users, for there is another user to become. All
    others have the right to the other namespaces by that one only.
    """
    pidfd = ffi.new("int *")
    pid = -errno.EPERM
    if os.geteuid() == 0 and _has_all_ids():
        pid = lib.jail_clone(NAMESPACES, cgroup, pidfd)
    if pid == -errno.EPERM:
        pid = lib.jail_clone(NAMESPACES | NEWUSER, cgroup, pidfd)
    return pid, pidfd[0]


def _has_all_ids() -> bool:
    try:
        maps = [read(f"/proc/self/{name}").split() for name in ("uid_map", "gid_map")]
    except OSError:  # the worker will say it
        return False
    return maps == [["0", "0", "4294967295"]] * 2


CLONE = "start a process for the VM, in namespaces of its own"
"""what refusal() says of clone()"""


def refusal(what: str, error: int) -> HostError:
    """``what`` could not be had because of ``error`` (an errno), and the mend."""
    mend = MENDS.get(error)
    return HostError(f"cannot {what}: {os.strerror(error)}" + (f": {mend}" if mend else ""))


class Jail:
    """A worker's walls.

    ``walls`` says what each of them is here, for the Result: "none: why" for one that is missing.
    """

    def __init__(self) -> None:
        """Give up paths, identity and privileges. Raises HostError for what cannot be had."""
        identity = 0
        if os.geteuid() == 0:  # not in a user namespace: nobody has a number there
            identity = UNUSED_ID + int.from_bytes(os.urandom(3), "little")
        self._filters = [seccomp.policy(kind) for kind in seccomp.KINDS]
        os.setpgid(0, 0)  # no signal to the caller's group
        self._statm, self._fds = _open("/proc/self/statm"), _open("/proc/self/fd")
        _require(lib.jail_root(), "put the VM's process into an empty root directory")
        landlock = lib.jail_landlock()
        _require(lib.jail_drop(identity), "take the privileges of the VM's process away")
        self.walls = {
            "namespaces": "mount, network, PID, IPC, UTS, cgroup" + ("" if identity else ", user"),
            "root": "empty, read-only",
            "user": f"{identity}, no capabilities" if identity else "no capabilities",
            "landlock": f"ABI {landlock}" if landlock > 0 else f"none: {os.strerror(-landlock)}",
        }

    def arm(self, core: Any) -> None:
        """Give the VM's threads their filters, which they put on as they are made."""
        for kind, code in enumerate(self._filters):
            # The filters stay as long as we do: the core has only their addresses.
            result = lib.vm_confine(core, kind, ffi.from_buffer(code), len(code) // 8)
            _require(result, f"confine the {seccomp.KINDS[kind]} thread")
        self.walls["seccomp"] = ", ".join(seccomp.KINDS)

    def close(self, disk: int) -> None:
        """Nothing more is to be started or mapped, no file to be longer than ``disk``, and no more
        opened than what vsock's connections are."""
        mapped = int(os.pread(self._statm, 64, 0).split()[0]) * 4096
        os.close(self._statm)
        used = len(os.listdir(self._fds)) - 2  # that one, and the copy by which it is read
        os.close(self._fds)
        for resource, limit in (
            (AS, mapped + SPARE),
            (FSIZE, disk),
            (NOFILE, used + POLLED + lib.VM_VSOCK_CONNS),
            (NPROC, 0),
            (CORE, 0),
            (MEMLOCK, 0),
        ):
            _require(lib.jail_limit(resource, limit), "limit the VM's process")
        self.walls["rlimits"] = "AS, FSIZE, NOFILE, NPROC, CORE, MEMLOCK"


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise HostError(f"cannot open {path}: {e.strerror}: mount /proc, {OFF}") from None


def _require(result: int, what: str) -> None:
    if result < 0:
        raise refusal(what, -result)


def require_filters(result: int) -> None:
    """Raise what the core says of threads that put on their filters as they begin."""
    _require(result, "confine the VM's threads by seccomp")
