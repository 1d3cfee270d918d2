"""What adapters read from, and what they make of it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from ...errors import BenchmarkError, printable
from ..model import LARGEST, Better, Series

MAX_TEXT = 64 << 20  # bytes of one stream or file: what is larger is not read
MAX_VALUES = 1_000_000  # of one run
MAX_NAME = 1000  # characters


class Text:
    """What the program printed to one stream, or one file that it wrote."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self._data = data

    @cached_property
    def text(self) -> str:
        """Bytes that are not UTF-8 become U+FFFD."""
        return self._data.decode("utf-8", "replace")

    @property
    def lines(self) -> Iterator[str]:
        """Without the white space around them."""
        return map(str.strip, io.StringIO(self.text))

    @cached_property
    def document(self) -> Any:
        """The JSON document that all of it is, or None."""
        return parse(self._data) if self._data.lstrip()[:1] in (b"{", b"[") else None


def parse(text: str | bytes) -> Any:
    """The JSON document, or None if it is not one, or nested too deep."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


class Found:
    """The series of one run, by name, all checked."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.series: dict[str, Series] = {}
        self._count = 0

    def add(self, name: str, values: object, unit: str, better: Better) -> None:
        """A number or a list of numbers for the series of this name: more of it, if there is one.

        Raises BenchmarkError for what is no name, no unit or no finite number.
        """
        if not name:
            raise BenchmarkError(f"{self.source}: a metric without a name")
        if max(len(name), len(unit)) > MAX_NAME:
            raise BenchmarkError(f"{self.source}: {name[:40]}…: name or unit is too long")
        name = name if name.isprintable() else printable(name)
        unit = unit if unit.isprintable() else printable(unit)
        numbers = [self._number(name, each) for each in _list(values)]
        if not numbers:
            raise BenchmarkError(f"{self.source}: {name}: no values")
        self._count += len(numbers)
        if self._count > MAX_VALUES:
            raise BenchmarkError(f"{self.source}: more than {MAX_VALUES} values in one run")
        series = self.series.setdefault(name, Series(name, unit, better, self.source, [[]]))
        if series.unit != unit:
            raise BenchmarkError(f"{self.source}: {name}: in {series.unit!r} and in {unit!r}")
        series.samples[0] += numbers

    def _number(self, name: str, value: object) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise BenchmarkError(
                f"{self.source}: {name}: a {type(value).__name__} where a number should be"
            )
        try:
            number = float(value)
        except OverflowError:  # an int
            number = math.inf
        if not math.isfinite(number):
            raise BenchmarkError(f"{self.source}: {name}: {number} is not a finite number")
        if abs(number) > LARGEST:
            raise BenchmarkError(f"{self.source}: {name}: {number} is above {LARGEST:g}")
        return number


class Adapter(NamedTuple):
    """How to read what one tool writes."""

    name: str
    mend: str
    """how to have it write that"""
    read: Callable[[Sequence[Text], Found], None]
    """adds what it recognises; what is of other tools is left alone"""


def objects(value: object, key: str | None = None) -> list[dict[str, Any]]:
    """The list of objects that ``value``, or its field ``key``, is; else an empty one."""
    found = field(value, key) if key is not None else value
    if isinstance(found, list) and all(isinstance(each, dict) for each in found):
        return found
    return []


def field(value: object, *keys: str) -> Any:
    """The field of the field … of an object, or None."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def word(value: object) -> str:
    """The text that it is; ``""`` of what is none."""
    return value if isinstance(value, str) else ""


def number(text: str) -> object:
    """The number that a text is, or the text."""
    try:
        return float(text)
    except ValueError:
        return text


def parameters(value: object) -> str:
    """An object of texts as `` (size=10, kind=a)``; ``""`` of an empty one."""
    pairs = value.items() if isinstance(value, dict) else ()
    text = ", ".join(f"{key}={each}" for key, each in pairs if isinstance(each, str))
    return f" ({text})" if text else ""


def _list(values: object) -> list[object]:
    if isinstance(values, list):
        return values
    return [] if values is None else [values]
