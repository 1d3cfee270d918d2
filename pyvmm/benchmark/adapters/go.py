"""Go's ``testing`` text, as benchstat reads it; each line of ``-count`` is a value.

https://go.dev/design/14313-benchmark-format; which way is good as
https://pkg.go.dev/golang.org/x/perf/benchfmt says it, also by ``Unit`` lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..model import Better
from .found import Adapter, Found, Text

# The measures that everybody has: name of the series, unit, which way is good.
_KNOWN: dict[str, tuple[str, str, Better]] = {
    "ns/op": ("", "ns", "lower"),
    "B/op": ("/memory", "B", "lower"),
    "allocs/op": ("/allocs", "", "lower"),
    "MB/s": ("/throughput", "MB/s", "higher"),
}
_NEITHER: Better = ""


class _Line(NamedTuple):
    package: str
    name: str
    values: list[tuple[float, str]]


def _read(texts: Sequence[Text], found: Found) -> None:
    lines: list[_Line] = []
    better: dict[str, Better] = {}
    for text in texts:
        package = ""
        for line in text.lines:
            if not line.startswith(("Benchmark", "Unit", "pkg:")):
                continue
            fields = line.split()
            if line.startswith("pkg:"):
                package = line.removeprefix("pkg:").strip()
            elif fields[:1] == ["Unit"] and "better=lower" in fields[2:]:
                better[fields[1]] = "lower"
            elif fields[:1] == ["Unit"] and "better=higher" in fields[2:]:
                better[fields[1]] = "higher"
            elif _is_name(fields) and (values := _values(fields)):
                lines.append(_Line(package, fields[0].removeprefix("Benchmark"), values))
    packages = len({each.package for each in lines}) > 1
    suffix = _procs(lines)
    for each in lines:
        name = each.name.removesuffix(suffix)
        name = f"{each.package}.{name}" if packages else name
        for value, unit in each.values:
            measure, shown, usual = _KNOWN.get(unit, (f"/{unit}", unit, _NEITHER))
            found.add(f"{name}{measure}", value, shown, better.get(unit, usual))


def _is_name(fields: list[str]) -> bool:
    """As Go's: no lower-case letter after Benchmark."""
    name = fields[0].removeprefix("Benchmark")
    return name not in ("", fields[0]) and not name[0].islower()


def _values(fields: list[str]) -> list[tuple[float, str]]:
    """Of ``NAME ITERATIONS VALUE UNIT …``; none if this is no such line."""
    if len(fields) < 4 or len(fields) % 2 or not fields[1].isdecimal():
        return []
    try:
        return [(float(fields[n]), fields[n + 1]) for n in range(2, len(fields), 2)]
    except ValueError:
        return []


def _procs(lines: list[_Line]) -> str:
    """``-N``, GOMAXPROCS, if all names end in the same: it is the VM's, not the benchmark's."""
    ends = {each.name.rpartition("-")[2] for each in lines}
    if len(ends) != 1 or not all("-" in each.name for each in lines):
        return ""
    (end,) = ends
    return f"-{end}" if end.isdecimal() else ""


ADAPTER = Adapter("go", "let go test -bench print to stdout, not as -json", _read)
