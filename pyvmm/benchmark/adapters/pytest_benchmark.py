"""pytest-benchmark's JSON: seconds of each round, or their median where it left them out.

https://pytest-benchmark.readthedocs.io/en/latest/usage.html: ``--benchmark-json`` has the rounds,
``--benchmark-save`` only with ``--benchmark-save-data``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .found import Adapter, Found, Text, field, objects, word


def _read(texts: Sequence[Text], found: Found) -> None:
    for text in texts:
        if field(text.document, "machine_info") is None:
            continue
        for each in objects(text.document, "benchmarks"):
            values = field(each, "stats", "data") or field(each, "stats", "median")
            found.add(word(each.get("fullname")), values, "s", "lower")


ADAPTER = Adapter(
    "pytest-benchmark", "run pytest with --benchmark-json=FILE, and pyvmm with --output FILE", _read
)
