"""What a worker says, read by its caller as what it is: the word of a process that a guest may have
taken over. It is data of this shape or an error, never a surprise further on.
"""

from __future__ import annotations

from .errors import GuestError
from .quick_json import loads

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from typing import Any

MAX = 1 << 20  # bytes of one message
MAX_ERRNO = 4096

TIMES = ("ready", "made", "loaded", "start")
EXITS = ("serial", "pio", "mmio", "signal", "other")  # VM_EXIT_*
MARKS = ("", "init", "program", "ended")  # by the guest's number for it
COUNT = ("count", "enabled_ns", "running_ns")  # struct vm_count
ENDS = ("none", "reset", "crash", "unknown", "errno", "stopped")  # VM_END_*
CRASHES = ("crash", "unknown", "errno")

WALLS = {"walls": {str: str}}
"""before the guest's first instruction"""
FAILED = {"end": str, "error": str, "message": str}
ENDED = {
    "end": str,
    "kvm_exit": int,
    "errno": int,
    "detail": [int],
    "times": dict.fromkeys(TIMES, int),
    "exits": dict.fromkeys(EXITS, int),
    "kvm_exits": int,
    "marks": {str: dict.fromkeys(("time_ns", "exits", "kvm_exits"), int)},
    "counters": [{"errno": int, "user": int, "marks": {str: dict.fromkeys(COUNT, int)}}],
}
CRASHED = ENDED | {"registers": str}


def read(message: bytes) -> dict[str, Any]:
    """One message; empty if the worker ended without one. Raises GuestError for what is none."""
    if not message:
        return {}
    try:
        said: Any = loads(message)
    except (ValueError, RecursionError):
        said = None
    if _fits(said, WALLS):
        return dict(said)
    end = said.get("end") if isinstance(said, dict) else None
    shape = FAILED if end == "failed" else CRASHED if end in CRASHES else ENDED
    if not (
        (end == "failed" or end in ENDS)
        and _fits(said, shape)
        and said.get("marks", {}).keys() <= set(MARKS)
        and said.get("errno", 0) < MAX_ERRNO
    ):
        raise GuestError("the VM's process sent a report that is none: it may have been taken over")
    return dict(said)


def _fits(value: Any, shape: Any) -> bool:
    """Whether a value has these fields and no others, or items of this kind; numbers of 64 bits."""
    if shape is int:
        return type(value) is int and 0 <= value < 1 << 64
    if shape is str:
        return type(value) is str
    if isinstance(shape, list):
        return type(value) is list and all(_fits(each, shape[0]) for each in value)
    if type(value) is not dict:
        return False
    if str in shape:
        return all(_fits(each, shape[str]) for each in value.values())
    return value.keys() == shape.keys() and all(_fits(value[name], shape[name]) for name in shape)
