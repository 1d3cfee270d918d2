"""Bencher Metric Format: a JSON document by itself, or amid what else is printed.

https://bencher.dev/docs/reference/bencher-metric-format/. The format has no units; those of
Bencher's built-in measures are known. Bounds are not read: pyvmm makes its own from many runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..model import Better
from .found import Adapter, Found, Text, parse

# https://bencher.dev/docs/explanation/thresholds/ and the measures that each new project has.
_MEASURES: dict[str, tuple[str, str, Better]] = {
    "latency": ("", "ns", "lower"),
    "throughput": ("/throughput", "ops/s", "higher"),
    "build-time": ("/build-time", "s", "lower"),
    "file-size": ("/file-size", "B", "lower"),
}


def _read(texts: Sequence[Text], found: Found) -> None:
    for text in texts:
        for document in _documents(text):
            for benchmark, measures in document.items() if _is_bmf(document) else ():
                for measure, metric in measures.items():
                    suffix, unit, better = _MEASURES.get(measure, (f"/{measure}", "", ""))
                    found.add(f"{benchmark}{suffix}", metric["value"], unit, better)


def _documents(text: Text) -> Iterator[Any]:
    """All of the text, or else each object from a line that begins with { to one that ends it.

    An object is on one line, or its last line begins with }: every line is parsed once.
    """
    if text.document is not None:
        yield text.document
        return
    block: list[str] = []
    for line in text.text.split("\n"):
        if line.startswith("{"):
            block = [line]
        elif block:
            block.append(line)
        if block and (line.startswith("}") or (len(block) == 1 and line.rstrip().endswith("}"))):
            yield parse("\n".join(block))
            block = []


def _is_bmf(document: object) -> bool:
    return isinstance(document, dict) and all(
        isinstance(measures, dict)
        and measures
        and all(
            isinstance(metric, dict)
            and "value" in metric
            and metric.keys() <= {"value", "lower_value", "upper_value"}
            for metric in measures.values()
        )
        for measures in document.values()
    )


ADAPTER = Adapter("bmf", 'print {"BENCHMARK": {"MEASURE": {"value": NUMBER}}}', _read)
