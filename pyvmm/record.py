"""What dataclasses.dataclass does, as far as pyvmm needs it.

Importing dataclasses (inspect, ast, tokenize, …) and having it compile each class takes as long as
half an interpreter's start, and every run would wait for it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda cls: cls


class _Fresh:
    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def field(*, default_factory: Callable[[], Any]) -> Any:
    """A default that every instance gets its own of."""
    return _Fresh(default_factory)


@dataclass_transform(field_specifiers=(field,))
class Record:
    """A class whose annotated fields, in order, are its constructor's arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = type(self).__annotations__
        if len(args) > len(names):
            raise TypeError(f"{type(self).__name__} takes {len(names)} arguments, not {len(args)}")
        given = dict(zip(names, args, strict=False)) | kwargs
        for name in names:
            if name in given:
                value = given.pop(name)
            elif hasattr(type(self), name):
                value = getattr(type(self), name)
                value = value.make() if isinstance(value, _Fresh) else value
            else:
                raise TypeError(f"{type(self).__name__}: missing argument {name!r}")
            setattr(self, name, value)
        if given:
            raise TypeError(f"{type(self).__name__}: unexpected argument {next(iter(given))!r}")
        self.check()

    def check(self) -> None:
        """Called when all fields are set: here a subclass refuses what cannot be."""

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({values})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]
