"""``pyvmm kernel …``: the guests' kernels that are there, and getting them."""

from __future__ import annotations

from . import kernel
from .arguments import Command, Values
from .cli import say
from .errors import UsageError
from .kernel import Kernel


def _fetch(_: Values) -> int:
    return _ready(kernel.fetch(progress=say))


def _build(_: Values) -> int:
    return _ready(kernel.build(progress=say))


def _ready(made: Kernel) -> int:
    say(f"kernel {made.name} {made.version} is ready")
    return 0


def _list(_: Values) -> int:
    for found in kernel.installed():
        print(f"{found.name}\t{found.version}\t{found.path}")
    return 0


def _path(a: Values) -> int:
    if len(a.words) > 1:
        raise UsageError(f"{a.words[1]!r} is too much: one kernel at a time")
    print(kernel.find(a.words[0] if a.words else None, progress=say).path)
    return 0


COMMANDS = (
    Command("kernel fetch", "Get Debian's cloud kernel (no root needed).", _fetch),
    Command("kernel build", "Build pyvmm's minimal kernel (about ten minutes on two cores).",
            _build),
    Command("kernel list", "What is in the cache.", _list),
    Command("kernel path", "Where a kernel's vmlinux is.", _path,
            words="[minimal|stock|PATH]"),
)  # fmt: skip
