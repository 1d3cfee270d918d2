"""JMH's JSON: the score of each iteration of each fork.

https://github.com/openjdk/jmh, JSONResultFormat. Of the secondary metrics those per operation are
read (auxiliary counters, ``gc.alloc.rate.norm``): the others are of a whole iteration, and some are
there only in runs in which they happened, as ``gc.time``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..model import Better
from .found import Adapter, Found, Text, field, objects, parameters, word

# Average time is the benchmark's own series, as other tools'.
_MODES = {"avgt": "", "thrpt": "/throughput", "sample": "/sample", "ss": "/single"}


def _read(texts: Sequence[Text], found: Found) -> None:
    for text in texts:
        for each in objects(text.document):
            if "jmhVersion" not in each:
                continue
            name = word(each.get("benchmark")) + parameters(each.get("params"))
            name += _MODES.get(word(each.get("mode")), "")
            _add(found, name, each.get("primaryMetric"))
            secondary = each.get("secondaryMetrics")
            for key, metric in secondary.items() if isinstance(secondary, dict) else ():
                unit = word(field(metric, "scoreUnit"))
                if unit.startswith("ops/") or unit.endswith("/op"):
                    _add(found, f"{name}/{key}", metric)


def _add(found: Found, name: str, metric: object) -> None:
    unit = word(field(metric, "scoreUnit"))
    better: Better = "higher" if unit.startswith("ops/") else "lower"
    forks = field(metric, "rawData")
    values = [
        value
        for fork in (forks if isinstance(forks, list) else [])
        for value in (fork if isinstance(fork, list) else [fork])
    ]
    found.add(
        name, values or field(metric, "score"), unit.removesuffix("/op"), better
    )  # mode sample has no rawData


ADAPTER = Adapter("jmh", "run it with -rf json -rff FILE, and pyvmm with --output FILE", _read)
