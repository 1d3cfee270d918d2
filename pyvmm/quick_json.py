"""JSON by the functions in C that the json module is made of.

json itself imports re and what that needs, twice what reading an image's documents takes; every run
would wait for it. Whatever is not plain goes to json, which then says what is wrong.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from typing import Any


class _Context:
    """json.JSONDecoder's defaults."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = None


def _refuse(value: Any) -> Any:
    raise TypeError(f"{value!r} has no place in JSON")


_scan = make_scanner(_Context)  # type: ignore[arg-type]
# json.JSONEncoder's defaults
_encode = make_encoder(
    None, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, False
)


def loads(data: bytes) -> Any:
    """The value of a JSON text, as json.loads. Raises ValueError or RecursionError."""
    try:
        text = data.decode("ascii").strip(" \t\r\n")
        value, end = _scan(text, 0)
        if end == len(text):
            return value
    except (StopIteration, ValueError, TypeError):
        pass
    import json

    return json.loads(data)


def dumps(value: Any) -> str:
    """JSON text of what consists of dicts with text keys, lists, text, numbers and None."""
    return "".join(_encode(value, 0))
