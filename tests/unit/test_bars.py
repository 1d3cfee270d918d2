"""A report as a table for a terminal, to the letter."""

from __future__ import annotations

import pytest

from pyvmm.benchmark import bars
from pyvmm.benchmark.bars import short, show
from pyvmm.benchmark.model import Benchmark, Report, Run, Series

from . import reports


@pytest.fixture(autouse=True)
def _remarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "remarks", lambda benchmark, confidence: ["time: ±1 \x1b"])


def _far(*values: float, name: str = "far") -> Benchmark:
    series = Series("time", "s", "lower", "guest", [[value] for value in values])
    return Benchmark(name, "", "", [], series={"time": series})


def test_one() -> None:
    assert show(reports.report(), width=80).splitlines() == [
        "sort",
        "METRIC            MEDIAN   95 %  RANGE                                VALUES",
        "time             1.375 s  ±27 %  ────━━━━━━━━━┃━━━━━━━━━━━━━────────  ▄▄█▄ █ ▄ ▄",
        "peak_memory      512 KiB   ±0 %",
        "dump                3 ms         ─────────────────┃─────────────────  █    █   █",
        "rate         225 k ops/s         ─────────────────┃─────────────────  █        █",
        "score                  0",
        "time: ±1 \\x1b",
        "cycles: not available here: this host's KVM has no PMU",
    ]


def test_two() -> None:
    """On one axis."""
    report = reports.report(reports.benchmark(), reports.benchmark("other", 0.5))
    assert show(report, width=80).splitlines() == [
        "METRIC       BENCHMARK       MEDIAN   95 %  RANGE                     VALUES",
        "time         sort           1.375 s  ±27 %  ──━━━━┃━━━━━━────         ██▄█ ▄▄",
        "             other          1.875 s  ±20 %          ──━━━━┃━━━━━━───     ▃▃█▆ ▃▃",
        "peak_memory  sort           512 KiB   ±0 %",
        "             other          512 KiB   ±0 %",
        "dump         sort              3 ms         ────────────┃───────────  █    █   █",
        "             other             3 ms         ────────────┃───────────  █    █   █",
        "rate         sort       225 k ops/s         ────────────┃───────────  █        █",
        "             other      225 k ops/s         ────────────┃───────────  █        █",
        "score        sort                 0",
        "             other                0",
        "sort: time: ±1 \\x1b",
        "other: time: ±1 \\x1b",
        "cycles: not available here: this host's KVM has no PMU",
    ]


def test_narrow_ascii() -> None:
    assert show(reports.report(), width=50, ascii_only=True).splitlines() == [
        "sort",
        "METRIC            MEDIAN    95 %",
        "time             1.375 s  +-27 %",
        "peak_memory      512 KiB   +-0 %",
        "dump                3 ms",
        "rate         225 k ops/s",
        "score                  0",
        "time: +-1 \\x1b",
        "cycles: not available here: this host's KVM has no PMU",
    ]


def test_far_out() -> None:
    values = (*(1 + n / 8 for n in range(8)), 9.0, -7.0)
    assert show(Report([_far(*values)]), width=60).splitlines() == [
        "far",
        "METRIC   MEDIAN   95 %  RANGE                     VALUES",
        "time    1.438 s  ±30 %  ◄━━━━━━━━━━━┃━━━━━━━━━━►  █▄▄ ▄▄ ▄▄█",
        "time: ±1 \\x1b",
    ]
    assert show(Report([_far(*values)]), width=60, ascii_only=True).splitlines()[2] == (
        "time    1.438 s  +-30 %  <==========|==========>  #;; ;; ;;#"
    )


def test_too_few() -> None:
    assert show(Report([_far(1.0, 2.0), _far(1.5, name="b")]), width=60).splitlines() == [
        "METRIC  BENCHMARK   MEDIAN  95 %  RANGE           VALUES",
        "time    far        1.500 s        ───────┃──────  █        █",
        "        b          1.500 s               ┃             █",
        "far: time: ±1 \\x1b",
        "b: time: ±1 \\x1b",
    ]


def test_what_runs_were_warned_of() -> None:
    """Once each."""
    report = Report([_far(1.0, 2.0)])
    report.benchmarks[0].runs = [Run(False, 0, 0.0, 1.0, n, ["slow"] * n) for n in range(2)]
    assert show(report, width=60).splitlines()[-1] == "warning of 1 of 2 runs: slow"


def test_no_values() -> None:
    assert show(Report()) == "no values"


@pytest.mark.parametrize("ascii_only", [False, True])
def test_hostile(ascii_only: bool) -> None:
    """No name adds a line, steers the terminal or, asked so, leaves ASCII."""
    text = show(reports.hostile(), width=200, ascii_only=ascii_only)
    assert len(text.splitlines()) == 11
    assert "".join(text.splitlines()).isprintable()
    assert text.isascii() == ascii_only


@pytest.mark.parametrize(
    ("name", "most", "expected"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdefg", 6, "abc…fg"),
        ("abcdefgh", 7, "abc…fgh"),
        ("漢字漢字", 8, "漢字漢字"),
        ("漢字漢字漢", 8, "漢字…漢"),
        ("漢" * 100, 2, "…"),
        ("e\u0301" * 6, 6, "e\u0301" * 6),
    ],
)
def test_short(name: str, most: int, expected: str) -> None:
    assert short(name, most=most) == expected
