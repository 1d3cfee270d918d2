"""What a worker says at its end, read as what it is: the word of a process that a guest may have
taken over. It is data of this shape or an error, never a surprise further on.
"""

from __future__ import annotations

from .errors import GuestError
from .quick_json import loads

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from typing import Any

MAX = 1 << 20  # bytes
FAILED = {"end": str, "error": str, "message": str}
ENDED = {
    "end": str,
    "kvm_exit": int,
    "errno": int,
    "detail": [int],
    "times": {str: int},
    "exits": {str: int},
    "kvm_exits": int,
    "marks": {str: {str: int}},
    "walls": {str: str},
}
CRASHED = ENDED | {"registers": str}


def read(message: bytes) -> dict[str, Any]:
    """The report; empty if the worker ended without one. Raises GuestError for what is none."""
    if not message:
        return {}
    try:
        report: dict[str, Any] = loads(message)
    except (ValueError, RecursionError):
        report = {}
    if not any(_fits(report, shape) for shape in (ENDED, CRASHED, FAILED)):
        raise GuestError("the VM's process sent a report that is none: it may have been taken over")
    return report


def _fits(value: Any, shape: Any) -> bool:
    """Whether a value has these fields and no others, or items of this kind; numbers of 64 bits."""
    if shape is int:
        return type(value) is int and -(1 << 63) <= value < 1 << 64
    if shape is str:
        return type(value) is str
    if isinstance(shape, list):
        return type(value) is list and all(_fits(each, shape[0]) for each in value)
    if type(value) is not dict:
        return False
    if str in shape:
        return all(_fits(each, shape[str]) for each in value.values())
    return value.keys() == shape.keys() and all(_fits(value[name], shape[name]) for name in shape)
