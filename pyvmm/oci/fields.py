"""JSON documents from images, with every field's type checked where it is read."""

from __future__ import annotations

from pyvmm.errors import ImageError
from pyvmm.quick_json import loads

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

DOCUMENT_MAX = 8 << 20  # bytes; real ones have some thousand
ITEMS_MAX = 10_000  # of a list of objects; real ones have some tens

_LISTED = 20


class Fields:
    """A JSON object. A field of the wrong type is an ImageError that names it."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise ImageError(f"{where}: not a JSON object")
        self.where = where
        self._value: dict[str, Any] = value

    def __contains__(self, name: str) -> bool:
        return self._value.get(name) is not None

    def _wrong(self, name: str, wanted: str) -> ImageError:
        return ImageError(f"{self.where}: {name!r} is not {wanted}")

    def _text(self, value: Any, name: str) -> str:
        if not isinstance(value, str) or "\0" in value:
            raise self._wrong(name, "text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self._wrong(name, "Unicode text") from None
        return value

    def text(self, name: str) -> str:
        """A string; "" where it is absent or null."""
        return self._text(self._value[name], name) if name in self else ""

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty where it is absent or null."""
        return tuple(self._text(item, name) for item in self._list(name))

    def size(self, name: str) -> int:
        """A number of bytes; required."""
        value = self._value.get(name)
        if type(value) is not int or not 0 <= value < 1 << 62:
            raise self._wrong(name, "a size")
        return value

    def object(self, name: str) -> Fields:
        """An object; empty where it is absent or null."""
        return Fields(self._value[name] if name in self else {}, f"{self.where}: {name}")

    def objects(self, name: str) -> list[Fields]:
        """A list of objects, at most `ITEMS_MAX`; empty where it is absent or null."""
        items = self._list(name)
        if len(items) > ITEMS_MAX:
            raise ImageError(f"{self.where}: more than {ITEMS_MAX} {name}")
        return [Fields(item, f"{self.where}: {name}[{i}]") for i, item in enumerate(items)]

    def _list(self, name: str) -> list[Any]:
        value = self._value[name] if name in self else []
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return value


def listed(texts: Iterable[str]) -> str:
    """What an image has, for a message: each once, and no more than can be read."""
    once = list(dict.fromkeys(texts))
    shown = [text if len(text) <= 100 else f"{text[:100]}…" for text in once[:_LISTED]]
    return ", ".join([*shown, f"and {len(once) - _LISTED} more"] if len(once) > _LISTED else shown)


def parse(data: bytes, where: str) -> Any:
    """The value of a JSON text."""
    try:
        return loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{where}: not valid JSON: {error}") from None
