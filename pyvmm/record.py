"""What dataclasses.dataclass does, as far as pyvmm needs it.

Importing dataclasses (inspect, ast, tokenize, …) and having it compile each class takes as long as
half an interpreter's start, and every run would wait for it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda cls: cls


class _Fresh:
    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


_MISSING = object()


def field(*, default_factory: Callable[[], Any]) -> Any:
    """A default that every instance gets its own of."""
    return _Fresh(default_factory)


@dataclass_transform(field_specifiers=(field,))
class Record:
    """A class whose annotated fields, in order, are its constructor's arguments."""

    if TYPE_CHECKING:
        _template: ClassVar[dict[str, Any]]
        _pending: ClassVar[list[str]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        if "_template" not in cls.__dict__:
            cls._prepare()
        fields = self.__dict__
        fields.update(cls._template)
        if len(args) > len(fields):
            raise TypeError(f"{cls.__name__} takes {len(fields)} arguments, not {len(args)}")
        fields.update(zip(fields, args, strict=False))
        fields.update(kwargs)
        if len(fields) > len(cls._template):
            extra = next(name for name in kwargs if name not in cls._template)
            raise TypeError(f"{cls.__name__}: unexpected argument {extra!r}")
        for name in cls._pending:
            value = fields[name]
            if value is _MISSING:
                raise TypeError(f"{cls.__name__}: missing argument {name!r}")
            if isinstance(value, _Fresh):
                fields[name] = value.make()
        self.check()

    @classmethod
    def _prepare(cls) -> None:
        """Once a class: its fields with their defaults, and those that have no plain one."""
        cls._template = {name: getattr(cls, name, _MISSING) for name in cls.__annotations__}
        cls._pending = [
            name
            for name, value in cls._template.items()
            if value is _MISSING or isinstance(value, _Fresh)
        ]

    def check(self) -> None:
        """Called when all fields are set: here a subclass refuses what cannot be."""

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({values})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]
