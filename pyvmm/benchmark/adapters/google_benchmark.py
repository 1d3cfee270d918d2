"""Google Benchmark's JSON, or else the times of its console table.

https://github.com/google/benchmark/blob/main/docs/user_guide.md, Output Formats. Each repetition is
a value; of a benchmark that reports aggregates only the median is read. The table rounds to three
digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import BenchmarkError
from ..model import Better
from ..units import SECONDS
from .found import Adapter, Found, Text, field, number, objects, word

NAME = "google-benchmark"
_RATES = {"bytes_per_second": "B/s", "items_per_second": "items/s"}
_HEAD = ["Time", "CPU", "Iterations"]
# Every other number is a counter of the program's own.
_FIELDS = {
    "family_index", "per_family_instance_index", "repetitions", "repetition_index", "threads",
    "iterations", "real_time", "cpu_time",
}  # fmt: skip


def _read(texts: Sequence[Text], found: Found) -> None:
    for text in texts:
        if field(text.document, "context") is not None:
            _document(objects(text.document, "benchmarks"), found)
    if not found.series:
        for text in texts:
            _console(text, found)


def _document(benchmarks: list[dict[str, Any]], found: Found) -> None:
    runs = [each for each in benchmarks if each.get("run_type", "iteration") == "iteration"]
    whole = {_name(each) for each in runs}
    medians = [each for each in benchmarks if each.get("aggregate_name") == "median"]
    for each in runs + [each for each in medians if _name(each) not in whole]:
        name = _name(each)
        if each.get("error_occurred"):
            raise BenchmarkError(f"{NAME}: {name} failed: {word(each.get('error_message'))}")
        if each.get("skipped"):  # from 1.8 on: the program's own decision
            continue
        unit = word(each.get("time_unit", "ns"))
        found.add(name, each.get("real_time"), unit, "lower")
        found.add(f"{name}/cpu", each.get("cpu_time"), unit, "lower")
        for key, value in each.items():
            if isinstance(value, (int, float)) and type(value) is not bool and key not in _FIELDS:
                better: Better = "higher" if key in _RATES else ""
                found.add(f"{name}/{key}", value, _RATES.get(key, ""), better)


def _name(benchmark: dict[str, Any]) -> str:
    return word(benchmark.get("run_name", benchmark.get("name")))


def _console(text: Text, found: Found) -> None:
    """Rows below the head: name, time and unit, CPU time and unit, iterations, counters."""
    rows: dict[str, list[tuple[str, str, str, str]]] = {}
    lines = text.lines
    if not any(line.startswith("Benchmark") and line.split()[1:4] == _HEAD for line in lines):
        return
    for line in lines:
        fields = line.split()
        if "ERROR OCCURRED:" in line:
            raise BenchmarkError(f"{NAME}: {line}")
        for at in range(1, len(fields) - 4):
            time, unit, cpu, cpu_unit, iterations = fields[at : at + 5]
            if unit in SECONDS and cpu_unit in SECONDS and iterations.isdecimal():
                rows.setdefault(" ".join(fields[:at]), []).append((time, unit, cpu, cpu_unit))
                break
    for name, values in rows.items():
        base, _, kind = name.rpartition("_")
        if kind in ("mean", "median", "stddev") and f"{base}_stddev" in rows:
            if kind != "median" or base in rows:
                continue
            name = base
        for time, unit, cpu, cpu_unit in values:
            found.add(name, number(time), unit, "lower")
            found.add(f"{name}/cpu", number(cpu), cpu_unit, "lower")


ADAPTER = Adapter(
    NAME, "run the program with --benchmark_out=FILE, and pyvmm with --output FILE", _read
)
