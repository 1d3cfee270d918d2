"""Rows: what was measured, beside whom, and whether the goal is met."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

MARKS = {True: "yes", False: "NO", None: ""}
GROUPS = ("yardstick", "ms", "M instr", "exits", "memory", "disk", "vsock", "image")


@dataclass(frozen=True)
class Row:
    """One figure. ``goal`` bounds ``ratio``, or ``ours`` where there is no peer."""

    kernel: str
    group: str
    figure: str
    unit: str
    ours: float | None
    peer: str = ""
    peer_value: float | None = None
    goal: float | None = None
    more: bool = False
    """more is better: the goal is the least"""

    @property
    def ratio(self) -> float | None:
        return self.ours / self.peer_value if self.ours is not None and self.peer_value else None

    @property
    def met(self) -> bool | None:
        value = self.ratio if self.peer else self.ours
        if self.goal is None or (self.peer and self.peer_value is None):
            return None
        return value is not None and (value >= self.goal if self.more else value <= self.goal)

    def told(self) -> str:
        """As one line, while others are still measured."""
        figure, unit, *numbers, met = _cells(self)
        return " ".join((f"{figure}:", *(n for n in numbers if n), unit, met)).strip()

    def plain(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio, "met": self.met}


def read(plain: dict[str, Any]) -> Row:
    """The row that plain() wrote."""
    return Row(**{key: plain[key] for key in Row.__dataclass_fields__})


def order(rows: Iterable[Row]) -> list[Row]:
    """Kernel by kernel as they came, and in each the groups in their order."""
    rows = list(rows)
    kernels = list(dict.fromkeys(row.kernel for row in rows))
    return sorted(rows, key=lambda row: (kernels.index(row.kernel), GROUPS.index(row.group)))


def markdown(rows: Iterable[Row]) -> str:
    """A table that reads well as text, too."""
    head = ("figure", "unit", "pyvmm", "peer", "ratio", "goal", "met")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def line(cells: tuple[str, ...]) -> str:
        figure = cells[0].ljust(widths[0])
        rest = (c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))
        return f"| {' | '.join((figure, *rest))} |"

    dashes = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    rule = f"|{'|'.join(dashes)}|"
    return "\n".join((line(lines[0]), rule, *map(line, lines[1:])))


def _cells(row: Row) -> tuple[str, ...]:
    sign = "≥" if row.more else "≤"
    return (
        f"{row.kernel}: {row.figure}" if row.kernel else row.figure,
        row.unit,
        _number(row.ours),
        _number(row.peer_value),
        "" if row.ratio is None else f"{row.ratio:.2f}",
        "" if row.goal is None else f"{sign} {row.goal:g}" + (" x" if row.peer else ""),
        MARKS[row.met],
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
