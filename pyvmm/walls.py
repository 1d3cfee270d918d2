"""Which walls this host gives a worker: found by putting them up around a child without a guest."""

from __future__ import annotations

import json
import os

from . import jail, worker
from ._core import lib
from .cgroup import Cgroup
from .errors import HostError, PyvmmError


def found() -> dict[str, str]:
    """Each wall and what it is here, or "none: why". Raises HostError where there is no jail.

    For a process with one thread.
    """
    ours, theirs = os.pipe()
    pid, pidfd = jail.clone()
    if pid == 0:
        _tell(theirs)
    os.close(theirs)
    with open(ours, "rb") as file:
        said = file.read()
    if pid < 0:
        raise jail.refusal(jail.CLONE, -pid)
    os.close(pidfd)
    status = os.waitpid(pid, 0)[1]
    if status:
        why = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "an error of its own"
        raise HostError(f"the VM's process is ended by {why} behind its walls: report this")
    walls: dict[str, str] = json.loads(said)
    if "refused" in walls:
        raise HostError(walls["refused"])
    group = Cgroup()
    walls["cgroup"] = f"none: {group.reason}" if group.reason else os.path.dirname(group.path)
    group.close()
    return walls


def _tell(to: int) -> None:
    """In the child: all that a worker does, but for a VM."""
    try:
        around = jail.Jail()
        core = worker.new_core()
        around.arm(core)
        jail.require_filters(lib.vm_spawn(core))
        around.close(1 << 20)
        jail.require_filters(lib.vm_start(core))
        said = around.walls
    except (PyvmmError, OSError) as e:
        said = {"refused": str(e)}
    os.write(to, json.dumps(said).encode())
    os._exit(0)
