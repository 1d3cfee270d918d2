"""Two sets of benchmarks beside each other: what compare.py finds, and its table for people."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from ..errors import printable
from .model import Better
from .statistics import Ratio
from .units import quantity

FORMAT = "pyvmm-comparison"
VERSION = 1

Verdict = Literal["regression", "improvement", "different", "unsure", "same"]
VERDICTS: tuple[Verdict, ...] = ("regression", "improvement", "different", "unsure", "same")

_NAME_MAX = 100  # characters of a name that are shown


@dataclass(frozen=True)
class Row:
    """One metric of one benchmark, in both."""

    benchmark: str
    metric: str
    unit: str
    better: Better
    old: float
    """the median, as ``new``"""
    new: float
    ratio: Ratio | None
    """None of a metric with values that are not above 0"""
    threshold: float
    """how much worse it may become: 0.05 is 5 % of what it was"""
    detectable: float | None
    """the least change that is found four times in five; None without an interval"""
    verdict: Verdict

    def change(self) -> str:
        """As ``+10.2% [+8.1%, +12.0%]``, or ``""`` without a ratio."""
        if not self.ratio:
            return ""
        interval = self.ratio.interval
        shares = [self.ratio.value - 1]
        shares += [interval.low - 1, interval.high - 1] if interval else []
        digits = 1 if max(map(abs, shares)) >= 0.1 else 2
        first, *ends = (f"{share:+.{digits}%}" for share in shares)
        return f"{first} [{', '.join(ends)}]" if ends else first

    def judgement(self) -> str:
        """The verdict; for ``unsure`` with the reason."""
        if self.verdict != "unsure":
            return self.verdict
        if not self.ratio:
            return "unsure: 0 has no ratio"
        if self.detectable is None:
            return "unsure: too few runs"
        if self.detectable <= self.threshold:
            return "unsure"
        return f"unsure: may miss a change below {self.detectable:.1%}"

    def cells(self) -> tuple[str, ...]:
        """The row as people read it: see Comparison.head. Names are as they came."""
        old, new = (quantity(value, self.unit) for value in (self.old, self.new))
        return self.benchmark, self.metric, old, new, self.change(), self.judgement()


@dataclass(frozen=True)
class Difference:
    """A key of the fingerprint, or a setting, that is not equal; ``""`` where it is absent."""

    key: str
    old: str
    new: str


@dataclass
class Comparison:
    """All metrics of two reports; ``old`` and ``new`` are the reports' names."""

    old: str
    new: str
    confidence: float
    """that the ratios' intervals were asked for"""
    rows: list[Row] = field(default_factory=list)
    only_old: list[str] = field(default_factory=list)
    """benchmarks, or ``"BENCHMARK: METRIC"``"""
    only_new: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def having(self, verdict: Verdict) -> list[Row]:
        """The rows with that verdict."""
        return [row for row in self.rows if row.verdict == verdict]

    def judged(self) -> bool:
        """Whether there is one ratio with an interval, or nothing that lacks one."""
        ratios = [row.ratio for row in self.rows if row.ratio]
        return not ratios or any(each.interval for each in ratios)

    def regressed(self, strict: bool = False) -> bool:
        """Whether a metric is worse or, if ``strict``, may be.

        Not of those without a good side, nor of those without a ratio, which has the threshold.
        """
        bad = ("regression", "unsure") if strict else ("regression",)
        return any(row.verdict in bad and row.better and row.ratio for row in self.rows)

    def summary(self) -> str:
        """As ``1 regression, 3 same; 99% intervals, threshold 5%``."""
        counts = [(len(self.having(verdict)), verdict) for verdict in VERDICTS]
        found = ", ".join(counted(number, verdict) for number, verdict in counts if number)
        thresholds = sorted({f"{row.threshold * 100:.4g}%" for row in self.rows})
        intervals = f"{self.confidence * 100:.4g}% intervals"
        return f"{found}; {intervals}, threshold {' or '.join(thresholds)}"

    def notes(self) -> list[str]:
        """What else is to be said, a line each: what is in one only, what differs."""
        lines = [
            f"only in {where}: {name}"
            for where, names in ((self.old, self.only_old), (self.new, self.only_new))
            for name in names
        ]
        for each in self.differences:
            old, new = each.old or "nothing", each.new or "nothing"
            lines.append(f"{each.key}: {old} in {self.old}, {new} in {self.new}")
        return [printable(line) for line in (*lines, *self.warnings)]

    def head(self) -> tuple[str, ...]:
        """Of the columns that Row.cells fills."""
        return "benchmark", "metric", self.old, self.new, "change", "verdict"

    def table(self) -> str:
        """The rows, aligned, and the summary below them."""
        rows = [tuple(map(shown, cells)) for cells in (self.head(), *map(Row.cells, self.rows))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, "", self.summary()])

    def to_json(self) -> str:
        """Its file."""
        return json.dumps({"format": FORMAT, "version": VERSION} | asdict(self), indent=1) + "\n"


def shown(name: str) -> str:
    """A name of any origin, on one line and no longer than a line."""
    text = printable(name[: _NAME_MAX + 1])
    return text if len(text) <= _NAME_MAX else f"{text[: _NAME_MAX - 1]}…"


def counted(number: int, what: str) -> str:
    """As ``1 run``, ``2 runs``; adjectives as they are."""
    return f"{number} {what}{'s' * (number != 1 and what in _NOUNS)}"


_NOUNS = ("regression", "improvement", "run")
