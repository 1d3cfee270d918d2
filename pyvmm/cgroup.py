"""A cgroup of its own around each worker: what one that a guest has broken may still take of the
host's memory, processes, CPU time and disks (Linux, admin-guide/cgroup-v2.rst). The caller's side::

    group = Cgroup(config.cgroup)  # a directory, locked; what dead callers left is removed
    group.limit(memory=…, pids=…, cpus=…)  # how much: footprint.py
    ...  # the worker is born in it (clone3, CLONE_INTO_CGROUP)
    group.close()  # what is in it is killed, and the directory removed; or:
    group.let_go()  # where the server does that, by remove(group.path)

Where there is no place for one, ``fd`` is -1, ``reason`` says why in a few words, and limit() and
close() do nothing; ``notes`` has a line for each limit that is not to be had. What was asked for by
name, a parent or a disk's rate, is a HostError instead. find() says where and makes none.

``fd`` holds the lock, and so does a copy of it: who else needs one opens ``path``. A worker must
have none of either, or nobody sweeps after a killed caller.
"""

from __future__ import annotations

import errno
import os
import select
import time
from fcntl import LOCK_EX, LOCK_NB, flock

from .delegation import enable, find, read, refusal, write
from .errors import HostError

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "pyvmm-"
PERIOD = 100_000  # µs, of cpu.max
GRACE = 10.0  # seconds for killed processes to be gone: much memory takes long to free
SWEEP_GRACE = 1.0
ATTEMPTS = 8
KILL = "cgroup.kill"  # since Linux 5.14


# ---- one ----


class Cgroup:
    """A new cgroup without limits yet, or the ``reason`` for there being none."""

    def __init__(self, where: str | None = None) -> None:
        """``where``: as find()'s. Raises HostError if one is named and cannot be used."""
        self.fd = -1
        """The directory's descriptor, which has the lock; -1 without one."""
        self.path = ""
        self.limits: list[str] = []
        """The controllers that limit it."""
        self.notes: list[str] = []
        """A line for each limit that this host does not give."""
        self._named = where is not None
        self._parent, self.reason = find(where)
        if not self.reason:
            sweep(self._parent)
            self._make()
        if self.reason and where is not None:
            raise HostError(
                f"cgroup {where}: {self.reason}: name one that this user may write, "
                "and that has no processes of its own (--cgroup)"
            )

    def _make(self) -> None:
        for _ in range(ATTEMPTS):
            path = f"{self._parent}/{PREFIX}{os.getpid()}-{os.urandom(8).hex()}"
            try:
                os.mkdir(path, 0o700)  # others may not take the lock
            except OSError as e:
                self.reason = f"cannot make {path}: {e.strerror}"
                return
            try:
                self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                flock(self.fd, LOCK_EX | LOCK_NB)
                os.stat(path)
                self.path = path
                return
            except (FileNotFoundError, BlockingIOError):  # a sweeper was sooner than our lock
                self.let_go()
            except OSError:  # too many open files
                self.let_go()
                remove(path)
                raise
        self.reason = f"others sweep {self._parent} all the time"

    def limit(
        self,
        *,
        memory: int | None = None,
        pids: int | None = None,
        cpus: int | None = None,
        cpuset: str | None = None,
        disk_rate: tuple[int, Iterable[int]] | None = None,
    ) -> None:
        """Set limits; what is None stays as it is.

        ``memory``: bytes, a multiple of 4096, and no swap; beyond it all of the group is killed.
        ``pids``: threads. ``cpus``: how many CPUs' time; ``cpuset``: which, as ``"0,2-3"``.
        ``disk_rate``: bytes a second, read and written each, of the disks with these open files.
        Raises HostError for a ``disk_rate`` that cannot be had; the others become ``notes``, unless
        the parent was named.
        """
        if self.fd < 0:
            if disk_rate:
                raise HostError(f"a disk rate needs a cgroup: {self.reason} (--cgroup)")
            return
        if memory is not None:
            self._set("memory.max", str(memory))
            self._set("memory.swap.max", "0")
            self._set("memory.oom.group", "1")
        if pids is not None:
            self._set("pids.max", str(pids))
        if cpus is not None:
            self._set("cpu.max", f"{cpus * PERIOD} {PERIOD}")
        if cpuset is not None:
            self._set("cpuset.cpus", cpuset)
        if disk_rate is not None:
            rate, files = disk_rate
            for disk in {_disk(os.fstat(fd).st_dev) for fd in files}:
                self._set("io.max", f"{disk} rbps={rate} wbps={rate}", asked=True)

    def _set(self, name: str, value: str, *, asked: bool = False) -> None:
        controller = name.partition(".")[0]
        try:
            try:
                self._write(name, value)
                return
            except FileNotFoundError:
                pass
            try:
                enable(self._parent, controller)
            except OSError as e:
                why = refusal(self._parent, controller, e)
            else:
                self._write(name, value)
                return
        except FileNotFoundError:
            if name == "memory.swap.max":
                return  # a kernel without swap
            why = "this kernel has none"
        except OSError as e:
            why = f"{value}: {e.strerror}"
        if asked or self._named:
            raise HostError(f"no {name}: {why}: name a parent that has it (--cgroup)")
        self.notes.append(f"no {name}: {why}")

    def _write(self, name: str, value: str) -> None:
        write(name, value, self.fd)
        controller = name.partition(".")[0]
        if controller not in self.limits:
            self.limits.append(controller)

    def close(self) -> None:
        """Kill what is in it, and remove it. What does not go in 10 s is left to the next sweep."""
        if self.fd >= 0:
            try:
                remove(self.path)
            finally:
                self.let_go()

    def let_go(self) -> None:
        """Let go of it, without waiting: the server removes it, or else the next sweep."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _disk(device: int) -> str:
    """``MAJOR:MINOR`` of the whole disk that a device number means: io.max has no partitions."""
    name = f"{os.major(device)}:{os.minor(device)}"
    block = f"/sys/dev/block/{name}"
    if not os.path.exists(block):
        raise HostError(
            f"disk rate: device {name} is a file system without one disk, as tmpfs or btrfs "
            "(set TMPDIR and XDG_CACHE_HOME to directories of another)"
        )
    if os.path.exists(f"{block}/partition"):
        return read(f"{block}/../dev").strip()
    return name


# ---- and what is left of others ----


def sweep(parent: str) -> None:
    """Remove the cgroups whose callers were killed: nobody holds their locks."""
    for name in os.listdir(parent):
        if not _is_ours(name):
            continue
        path = f"{parent}/{name}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:  # removed meanwhile, or another user's
            continue
        try:
            flock(fd, LOCK_EX | LOCK_NB)
            remove(path, SWEEP_GRACE)
        except OSError:  # in use, or another user's processes
            pass
        finally:
            os.close(fd)


def _is_ours(name: str) -> bool:
    """Whether _make() makes such names; ``pyvmm-nightly.service`` is somebody else's."""
    pid, _, random = name.removeprefix(PREFIX).partition("-")
    return name.startswith(PREFIX) and pid.isdigit() and len(random) == 16 and random.isalnum()


def remove(path: str, seconds: float = GRACE) -> bool:
    """Kill what is in a cgroup and remove it; False if it was not empty in time."""
    try:
        return _rmdir(path) or _kill_and_remove(path, time.monotonic() + seconds)
    except OSError as e:
        if e.errno not in (errno.ENOENT, errno.ENODEV):  # somebody else was sooner
            raise
        return True


def _kill_and_remove(path: str, deadline: float) -> bool:
    events = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    poll = select.poll()
    poll.register(events, select.POLLPRI)  # not POLLIN, which a file always has
    try:
        while (left := deadline - time.monotonic()) > 0:
            pause = _kill(path, left)
            if b"populated 1" in os.pread(events, 4096, 0):  # poll() tells of what is since then
                poll.poll(pause * 1000)
            if _rmdir(path):
                return True
    finally:
        os.close(events)
    return False


def _rmdir(path: str) -> bool:
    try:
        os.rmdir(path)
    except OSError as e:
        if e.errno != errno.EBUSY:
            raise
        return False
    return True


def _kill(path: str, seconds: float) -> float:
    """Kill all that is in a cgroup. Returns after how many seconds to look for more."""
    try:
        write(f"{path}/{KILL}", "1")
        return seconds
    except FileNotFoundError:
        pass
    for pid in map(int, read(f"{path}/cgroup.procs").split()):
        if pid:  # 0 is one of a foreign PID namespace
            try:
                os.kill(pid, 9)
            except OSError:  # gone
                pass
    return 0.01  # one may have forked meanwhile
