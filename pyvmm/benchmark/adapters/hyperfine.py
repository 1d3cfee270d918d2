"""hyperfine's JSON: wall-clock seconds of each run, and the means of user and system time.

https://github.com/sharkdp/hyperfine, ``--export-json``; memory is there from 1.19 on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .found import Adapter, Found, Text, objects, parameters, word


def _read(texts: Sequence[Text], found: Found) -> None:
    for text in texts:
        results = objects(text.document, "results")
        if not all("command" in each and "mean" in each for each in results):
            continue
        often = Counter(word(each["command"]) for each in results)
        for each in results:
            name = word(each["command"])
            if often[name] > 1:  # --command-name of many
                name += parameters(each.get("parameters"))
            found.add(name, each.get("times") or each["mean"], "s", "lower")
            for measure in ("user", "system"):
                if each.get(measure) is not None:
                    found.add(f"{name}/{measure}", each[measure], "s", "lower")
            if each.get("memory_usage_byte"):
                found.add(f"{name}/memory", each["memory_usage_byte"], "B", "lower")


ADAPTER = Adapter(
    "hyperfine", "run it with --export-json FILE, and pyvmm with --output FILE", _read
)
