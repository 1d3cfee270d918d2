"""Criterion's files, or else the estimates that it prints.

``target/criterion/**/new/``: ``sample.json`` has the iterations and nanoseconds of each sample,
``estimates.json`` what it made of them, ``benchmark.json`` the name
(https://criterion-rs.github.io/book/). On stdout the middle of ``time: [low estimate high]`` is the
same estimate: the slope, or the mean where each sample has as many iterations. Throughput is the
time in other words, and is not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..units import SECONDS
from .found import Adapter, Found, Text, field, number, word

_NS = 1e9  # in a second


def _read(texts: Sequence[Text], found: Found) -> None:
    by_name = {text.name: text for text in texts}
    for text in texts:
        directory, _, file = text.name.rpartition("/")
        if not directory.endswith("/new"):
            continue
        if file == "sample.json" and (values := _sample(text.document)) is not None:
            found.add(_name(directory, by_name), values, "ns", "lower")
        if file == "estimates.json" and f"{directory}/sample.json" not in by_name:
            typical = field(text.document, "slope") or field(text.document, "mean")
            found.add(_name(directory, by_name), field(typical, "point_estimate"), "ns", "lower")
    if not found.series:
        for text in texts:
            _printed(text, found)


def _sample(document: object) -> list[object] | None:
    """Nanoseconds per iteration of each sample; None if this is no sample."""
    times, iterations = field(document, "times"), field(document, "iters")
    if not isinstance(times, list) or not isinstance(iterations, list):
        return None
    if len(times) != len(iterations):
        return []
    return [
        time / count if isinstance(time, float) and isinstance(count, float) and count else None
        for time, count in zip(times, iterations, strict=True)
    ]


def _name(directory: str, by_name: Mapping[str, Text]) -> str:
    benchmark = by_name.get(f"{directory}/benchmark.json")
    if benchmark and (name := word(field(benchmark.document, "full_id"))):
        return name
    return directory.removesuffix("/new").rpartition("criterion/")[2]


def _printed(text: Text, found: Found) -> None:
    before = ""
    for line in text.lines:
        name, colon, rest = line.partition("time:")
        fields = rest.strip().strip("[]").split() if colon else []
        # Not the lines of "change:", which are three percentages.
        if len(fields) == 6 and {fields[1], fields[3], fields[5]} <= SECONDS.keys():
            value = number(fields[2])
            if isinstance(value, float) and (name := name.strip() or before):
                found.add(name, value * (SECONDS[fields[3]] * _NS), "ns", "lower")
        before = line  # a long name is on a line of its own


ADAPTER = Adapter(
    "criterion",
    "let cargo bench print to stdout, or take its new/sample.json by --output",
    _read,
)
