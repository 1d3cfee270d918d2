"""Units: which are seconds or bytes, and quantities for people."""

from __future__ import annotations

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9, "ps": 1e-12}
BYTES = {
    "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024.0, "MiB": 1024.0**2, "GiB": 1024.0**3,
}  # fmt: skip

_STEPS = {
    "s": (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)),
    "B": (("GiB", 1024.0**3), ("MiB", 1024.0**2), ("KiB", 1024.0), ("B", 1.0)),
}
_PREFIXES = (("G", 1e9), ("M", 1e6), ("k", 1e3))
_COUNT_MAX = 1e5  # a count below it is shown as it is


def base(unit: str) -> tuple[str, float]:
    """The unit that files have (``"s"``, ``"B"``; another as it is), and how many one is of it."""
    if unit in SECONDS:
        return "s", SECONDS[unit]
    if unit in BYTES:
        return "B", BYTES[unit]
    return unit, 1.0


def scale(value: float, unit: str) -> tuple[float, str]:
    """What to multiply by, and the unit then, for numbers about as large as ``value`` to be read.

    Ratios in ``%`` stay; counts get a prefix from a hundred thousand on.
    """
    kind, factor = base(unit)
    size = abs(value) * factor
    if kind not in _STEPS and (unit == "%" or size < _COUNT_MAX):
        return 1.0, unit
    if not size:
        return factor, kind
    steps = _STEPS.get(kind, _PREFIXES)
    name, step = next((each for each in steps if size >= each[1]), steps[-1])
    return factor / step, name if kind in _STEPS else f"{name} {unit}".strip()


def number(value: float) -> str:
    """To four digits, with an exponent only below a millionth and from a million on."""
    if value == 0:
        return "0"
    text = f"{value:.3e}"  # rounds first: 999999.9 is a million
    magnitude = int(text.partition("e")[2])
    if not -6 <= magnitude < 6:
        return text
    whole = abs(value - round(value)) <= abs(value) * 1e-9
    return f"{value:.{0 if whole else max(0, 3 - magnitude)}f}"


def quantity(value: float, unit: str) -> str:
    """As ``12.34 ms``."""
    factor, name = scale(value, unit)
    return f"{number(value * factor)} {name}".strip()
