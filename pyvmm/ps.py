"""``pyvmm ps``: the machines that run and have a name."""

from __future__ import annotations

import os
import time

from .arguments import Command, Option
from .names import owners, path_of

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from .arguments import Values

FORM = "{:20} {:>8} {:>8}  {}"


def _ps(a: Values) -> int:
    found = owners()
    if a.quiet:
        for name in sorted(found):
            print(name)
        return 0
    print(FORM.format("NAME", "PID", "UP", "SOCKET"))
    for name, pid in sorted(found.items()):
        path = path_of(name)
        try:
            seconds = max(0, int(time.time() - os.stat(path).st_mtime))
        except FileNotFoundError:
            continue  # it has just ended
        print(FORM.format(name, pid if pid > 0 else "?", age(seconds), path))
    return 0


def age(seconds: int) -> str:
    """Seconds in the largest unit that is there at least twice: 119s, 2m, 47h, 2d."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


COMMANDS = (
    Command(
        "ps",
        "List the machines that run and have a name.",
        _ps,
        (Option("--quiet", "", "names only", False),),
    ),
)
