"""Running machines' names: each a Unix socket, which is there as long as its machine.

``$XDG_RUNTIME_DIR/pyvmm/NAME.sock``, root's without one ``/run/pyvmm/NAME.sock``; a name with a
slash is a path. The directory and the sockets are for their owner alone: who can connect can run
programs in the guest. What a killed pyvmm has left is taken away by the next that comes by.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import HostError, UsageError

SUFFIX = ".sock"
# sockaddr_un has 108 bytes, the last for the NUL; `_4294967295` for a guest's port comes after.
PATH_MAX = 107 - len("_4294967295")
CREDENTIALS = struct.Struct("3i")  # struct ucred, unix(7)


class Claim:
    """A path that is ours: a socket is bound to it, and listens."""

    def __init__(self, path: str) -> None:
        """Raises HostError if a machine has it, or it cannot be made; UsageError if too long."""
        if len(os.fsencode(path)) > PATH_MAX:
            raise UsageError(f"socket {path}: at most {PATH_MAX} bytes, take a shorter path")
        self.path = path
        self._directory = os.path.dirname(path) or "."
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            with _locked(self._directory):
                _make_way(path)
                # The file gets the socket's own mode, less the umask: 0600 from the first moment.
                os.fchmod(self.socket.fileno(), 0o600)
                self.socket.bind(path)
                self._identity = _identity(path)
                self.socket.listen(socket.SOMAXCONN)
        except OSError as e:
            self.socket.close()
            raise HostError(f"cannot make socket {path}: {e.strerror}") from None
        except BaseException:
            self.socket.close()
            raise

    def release(self) -> None:
        """Close the socket and remove its name, if that is still ours. Safe to call again."""
        if self.socket.fileno() >= 0:
            self.socket.close()
        try:
            with _locked(self._directory):
                if _identity(self.path) == self._identity:
                    os.unlink(self.path)
        except OSError:
            pass  # gone, and perhaps the directory with it


def path_of(name: str) -> str:
    """The socket of the machine that is called so. Raises UsageError for what is no name."""
    if "/" in name:
        return name
    if not name or name.startswith((".", "-")) or not name.isprintable():
        raise UsageError(f"name {name!r}: give one without a leading dot or dash, or a path")
    return os.path.join(directory(), name + SUFFIX)


def claim(name: str) -> Claim:
    """Take a name for a machine. Raises HostError if one has it, UsageError for what is no name."""
    path = path_of(name)
    if "/" not in name:
        place = os.path.dirname(path)
        try:
            _make_directory(place)
            _sweep(place)
        except OSError as e:
            raise HostError(f"cannot use {place}: {e.strerror}") from None
    return Claim(path)


def running() -> list[str]:
    """The names of the machines that run, sorted; those with a path of their own are not there."""
    return sorted(owners())


def owners() -> dict[str, int]:
    """Names, and the process ids of those that run the machines."""
    try:
        place = directory()
        paths = _sockets(place)
    except (HostError, FileNotFoundError):
        return {}
    named = ((os.path.basename(path).removesuffix(SUFFIX), _owner(path)) for path in paths)
    return {name: pid for name, pid in named if pid}


def directory() -> str:
    """Where names are. Raises HostError where no place is ours."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        return os.path.join(runtime, "pyvmm")
    if os.geteuid() == 0:
        return "/run/pyvmm"
    raise HostError("no place for names: set XDG_RUNTIME_DIR, or give a path with a slash")


def _make_directory(path: str) -> None:
    """Make it, for us alone. Raises HostError if it is somebody else's, or a link."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise HostError(f"{path} is not a directory of ours: remove it, or set XDG_RUNTIME_DIR")
    if stat.S_IMODE(status.st_mode) & 0o077:
        os.chmod(path, 0o700)


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Nobody else looks into the directory's sockets, or changes them, meanwhile."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _sockets(place: str) -> list[str]:
    names = sorted(name for name in os.listdir(place) if name.endswith(SUFFIX))
    return [os.path.join(place, name) for name in names]


def _sweep(place: str) -> None:
    """Remove what killed machines have left."""
    with _locked(place):
        for path in _sockets(place):
            if stat.S_ISSOCK(os.lstat(path).st_mode) and not _owner(path):
                os.unlink(path)


def _make_way(path: str) -> None:
    """Remove a dead machine's socket. Raises HostError if there is anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise HostError(f"{path} is there and no socket: take another name, or remove it")
    if _owner(path):
        raise HostError(f"{path} is a running machine's: take another name")
    os.unlink(path)


def _owner(path: str) -> int:
    """The process that listens there, 0 if none does, -1 if it is too busy to tell."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except BlockingIOError:  # a full backlog
            return -1
        except OSError as e:
            # Of another kind: also a dead one, but not one of ours to remove.
            return -1 if e.errno == errno.EPROTOTYPE else 0
        ids = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    return int(CREDENTIALS.unpack(ids)[0])


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
