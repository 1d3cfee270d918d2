"""pyperf's JSON: the values of all its processes, without warm-ups and calibration.

https://pyperf.readthedocs.io/en/latest/api.html, BenchmarkSuite; metadata that all benchmarks share
is the suite's.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..model import Better
from .found import Adapter, Found, Text, field, objects, word

_UNITS: dict[str, tuple[str, Better]] = {
    "second": ("s", "lower"), "byte": ("B", "lower"), "integer": ("", ""),
}  # fmt: skip


def _read(texts: Sequence[Text], found: Found) -> None:
    for text in texts:
        document = text.document
        for each in objects(document, "benchmarks"):
            if not (runs := objects(each, "runs")):
                continue
            name, kind = (
                word(field(each, "metadata", key) or field(document, "metadata", key))
                for key in ("name", "unit")
            )
            unit, better = _UNITS.get(kind or "second", (kind, ""))
            found.add(name, [value for run in runs for value in _values(run)], unit, better)


def _values(run: dict[str, object]) -> list[object]:
    values = run.get("values")
    return values if isinstance(values, list) else []


ADAPTER = Adapter("pyperf", "run the script with -o FILE, and pyvmm with --output FILE", _read)
