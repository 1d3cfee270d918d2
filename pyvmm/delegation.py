"""Where a cgroup (v2) can be made, and the files of one (Linux, admin-guide/cgroup-v2.rst).

Controllers are on for a cgroup if its parent's cgroup.subtree_control names them.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Iterable

MOUNTS = "/sys/fs/cgroup", "/sys/fs/cgroup/unified"
OWN = "/proc/self/cgroup"


def find(
    where: str | None = None, *, mounts: Iterable[str] = MOUNTS, own: str = OWN
) -> tuple[str, str]:
    """The cgroup to make others in, with the memory controller on for them; or "" and why not.

    ``where`` names it, by its path or from the mount on. Else root uses the mount itself if it can;
    all others, and root in a container, the parent of the cgroup that they are in: a process's own
    cannot have both processes and controllers ("no internal processes").
    """
    mount = next((m for m in mounts if os.access(f"{m}/cgroup.controllers", os.R_OK)), "")
    if not mount:
        return "", "no cgroup2 here"
    if where is not None:
        path = os.path.normpath(os.path.join(mount, where))
        if path != mount and not path.startswith(f"{mount}/"):
            return "", f"not below {mount}"
        mine = _own(mount, own) or mount
        return _usable(path, os.path.commonpath((path, mine)), mount)
    reason = ""
    if os.geteuid() == 0:
        path, reason = _usable(mount, mount, mount)
        if path:
            return path, ""
    mine = _own(mount, own)
    if mine in ("", mount):
        return "", reason or "no cgroup can be made beside this process's: it is the topmost"
    parent = os.path.dirname(mine)
    path, why = _usable(parent, parent, mount)
    return path, "" if path else reason or why


def _own(mount: str, own: str) -> str:
    """The directory of the cgroup that this process is in; "" if it is outside of the mount."""
    for line in read(own).splitlines():
        if line.startswith("0::/") and not line.startswith("0::/.."):
            return mount + line[3:].rstrip("/")
    return ""


def _usable(path: str, meeting: str, mount: str) -> tuple[str, str]:
    """``path`` if cgroups can be made in it and entered, else why not.

    Who enters one must be allowed to write the cgroup.procs of the first that holds it and their
    own, ``meeting`` ("Delegation Containment").
    """
    try:
        enabled = read(f"{path}/cgroup.subtree_control").split()
    except OSError as e:
        return "", f"{path}: {e.strerror}"
    if not (os.access(path, os.W_OK) and os.access(f"{meeting}/cgroup.procs", os.W_OK)):
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return "", f"{path} is read-only"
        return "", f"{path if meeting == path else meeting} is not delegated to this user"
    if "memory" not in enabled:
        try:
            enable(path, "memory")
        except OSError as e:
            if path == mount and e.errno in (errno.ENOENT, errno.EINVAL):
                return "", "no cgroup2 here has the memory controller"
            return "", refusal(path, "memory", e)
    return path, ""


def enable(parent: str, controller: str) -> None:
    write(f"{parent}/cgroup.subtree_control", f"+{controller}")


def refusal(parent: str, controller: str, e: OSError) -> str:
    """Why a controller cannot be switched on for a cgroup's children."""
    if e.errno == errno.EBUSY:
        return f"{parent} has processes of its own"
    if e.errno in (errno.ENOENT, errno.EINVAL):
        return f"{parent} has no {controller} controller"
    if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{parent} lets this user switch no {controller} controller on"
    return f"{parent}: {e.strerror}"


def read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16).decode()
    finally:
        os.close(fd)


def write(name: str, text: str, directory: int | None = None) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
