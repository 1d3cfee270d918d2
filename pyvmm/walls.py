"""Which walls this host gives a worker: found by putting them up around a child without a guest."""

from __future__ import annotations

import json
import os

from . import jail, worker
from ._core import ffi, lib
from .cgroup import Cgroup
from .errors import HostError, PyvmmError


def found() -> dict[str, str]:
    """Each wall and what it is here, or "none: why". Raises HostError where there is no jail.

    For a process with one thread.
    """
    ours, theirs = os.pipe()
    pid = lib.jail_clone(jail.namespaces(), -1, ffi.new("int *"))
    if pid == 0:
        _tell(theirs)
    os.close(theirs)
    with open(ours, "rb") as file:
        said = file.read()
    if pid < 0:
        raise jail.refusal("start a process for the VM, in namespaces of its own", -pid)
    os.waitpid(pid, 0)
    walls: dict[str, str] = json.loads(said)
    if why := walls.get("refused"):
        raise HostError(why)
    group = Cgroup()
    walls["cgroup"] = f"none: {group.reason}" if group.reason else os.path.dirname(group.path)
    group.close()
    return walls


def _tell(to: int) -> None:
    """In the child: all that a worker does, but for a VM."""
    try:
        around = jail.Jail()
        core = lib.vm_new()
        around.arm(core)
        worker.check(lib.vm_spawn(core))
        around.close(1 << 20)
        worker.check(lib.vm_start(core))
        said = around.walls
    except (PyvmmError, OSError) as e:
        said = {"refused": str(e)}
    os.write(to, json.dumps(said).encode())
    os._exit(0)
