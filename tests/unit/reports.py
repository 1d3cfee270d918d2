"""Reports to show and export."""

from __future__ import annotations

from pyvmm.benchmark.model import Benchmark, Report, Run, Series

HOSTILE = (
    "a\nb\r\t\"q\" 'x' <i>&amp; ]]> --> \x00\x1b[31m\x85 \u202e\ud800\uffff ünï 漢字 \\n {}=,|`"
    "</script><script>alert(1)</script>"
)
TIMES = (1.25, 1.5, 1.0, 1.125, 1.375, 1.75, 1.25, 2.0, 1.5)
"""Nine: their median's interval at 0.95 is from the second least to the second greatest."""


def benchmark(name: str = "sort", shift: float = 0.0) -> Benchmark:
    times = [[value + shift] for value in TIMES]
    return Benchmark(
        name,
        "python:3.13",
        "sha256:ab",
        ["python", "-m", "sort"],
        {"n": "4"},
        runs=[Run(True, 0, 0.0, 2.5, 0)]
        + [Run(False, 0, 2.5 * n, 2.5, n) for n in range(1, 1 + len(TIMES))],
        series={
            "peak_memory": Series("peak_memory", "KiB", "lower", "guest", [[512.0]] * len(TIMES)),
            "time": Series("time", "s", "lower", "guest", times),
            "dump": Series("dump", "ms", "lower", "pytest-benchmark", [[4.0, 2.0, 3.0]]),
            "rate": Series("rate", "ops/s", "higher", "regex", [[250000.0], [200000.0]]),
            "score": Series("score", "", "", "regex", [[0.0]]),
        },
        unavailable={"cycles": "this host's KVM has no PMU"},
    )


def report(*benchmarks: Benchmark) -> Report:
    return Report(
        list(benchmarks) or [benchmark()],
        "2026-11-23T10:00:00+00:00",
        {"CPU": "Model <x> & Co", "governor": "performance"},
    )


def hostile() -> Report:
    """Every name that is not pyvmm's own is."""
    made = benchmark(HOSTILE)
    made.image = made.digest = HOSTILE
    made.params = {HOSTILE: HOSTILE}
    made.unavailable = {HOSTILE: HOSTILE}
    made.command = [HOSTILE]
    made.series[HOSTILE] = Series(HOSTILE, HOSTILE, "lower", "regex", [[1.0], [2.0]])
    made.runs[1].warnings = [HOSTILE]
    found = report(made)
    found.fingerprint = {HOSTILE: HOSTILE}
    found.warnings = [HOSTILE]
    return found
