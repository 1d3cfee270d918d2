"""``--metric NAME[UNIT]:BETTER=REGEX``: numbers found by regular expressions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, cast

from ...errors import BenchmarkError, UsageError
from ..model import Better
from .found import MAX_VALUES, Found, Text

SOURCE = "metric"
_GRAMMAR = re.compile(r"([^\[\]:=]+)(?:\[([^\]]*)\])?(?::(lower|higher))?=(.+)", re.DOTALL)


class Pattern(NamedTuple):
    """One --metric."""

    name: str
    unit: str
    better: Better
    regex: re.Pattern[str]


def compile_all(specifications: Sequence[str]) -> list[Pattern]:
    """Raises UsageError for what is no NAME[UNIT]:BETTER=REGEX."""
    patterns: dict[str, Pattern] = {}
    for text in specifications:
        pattern = _compile(text)
        if pattern.name in patterns:
            raise UsageError(f"--metric {pattern.name}: given twice")
        patterns[pattern.name] = pattern
    return list(patterns.values())


def _compile(text: str) -> Pattern:
    match = _GRAMMAR.fullmatch(text)
    if not match:
        raise UsageError(
            f"--metric {text!r}: must be NAME=REGEX, NAME[UNIT]=REGEX or NAME[UNIT]:lower=REGEX"
            " (or :higher)"
        )
    name, unit, better, expression = match.groups()
    try:
        regex = re.compile(expression, re.MULTILINE)
    except (re.error, OverflowError, RecursionError) as e:
        raise UsageError(f"--metric {name}: {expression!r} is no regular expression: {e}") from None
    if not regex.groups:
        raise UsageError(f"--metric {name}: {expression!r} has no group for the number, as (\\d+)")
    return Pattern(name, unit or "", cast(Better, better or ""), regex)


def search(pattern: Pattern, texts: Sequence[Text], found: Found) -> None:
    """Adds the first group of each match, in all texts. Raises BenchmarkError if there is none."""
    values: list[object] = []
    for text in texts:
        for match in pattern.regex.finditer(text.text):
            try:
                values.append(float(match[1] or ""))
            except ValueError:
                raise BenchmarkError(
                    f"--metric {pattern.name}: {match[1]!r} in {text.name} is not a number"
                ) from None
            if len(values) > MAX_VALUES:
                break  # add refuses them
    if not values:
        raise BenchmarkError(
            f"--metric {pattern.name}: nothing matches {pattern.regex.pattern!r} in"
            f" {', '.join(text.name for text in texts) or 'nothing'}"
        )
    found.add(pattern.name, values, pattern.unit, pattern.better)
