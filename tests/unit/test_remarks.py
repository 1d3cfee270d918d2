"""What is said of a benchmark's main metric."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyvmm.benchmark import remarks
from pyvmm.benchmark.model import Benchmark
from pyvmm.benchmark.statistics import Summary, summarize

from . import reports

SOUND = replace(
    summarize(reports.TIMES), outliers=(), drift=0.5, modes=0.5, detectable=None
)  # fmt: skip


def _said(monkeypatch: pytest.MonkeyPatch, summary: Summary) -> list[str]:
    monkeypatch.setattr(remarks, "summarize", lambda values, confidence: summary)
    return remarks.remarks(reports.benchmark(), 0.95)


def test_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _said(monkeypatch, SOUND) == []


def test_unsound(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = replace(SOUND, outliers=(0, 7), drift=0.0021, modes=0.004, detectable=0.0123)
    assert _said(monkeypatch, summary) == [
        "time: outliers, kept: run 1 (1.250 s), 8 (2 s)",
        "time: the values drift (p 0.0021): warm up longer, look at the host",
        "time: the values have two modes or more (p 0.004)",
        "time: a comparison of as many runs would find a change of 1.2 %",
    ]


def test_many_outliers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _said(monkeypatch, replace(SOUND, outliers=(0, 1, 2, 3, 4, 5, 6))) == [
        "time: outliers, kept: run 1 (1.250 s), 2 (1.500 s), 3 (1 s), 4 (1.125 s), 5 (1.375 s), "
        "2 more"
    ]


def test_too_few() -> None:
    benchmark = reports.benchmark()
    benchmark.main = "dump"
    said = remarks.remarks(benchmark, 0.95)
    assert said[0] == "dump: no interval: 0.95 takes 6 values, here are 3"


def test_none() -> None:
    assert remarks.remarks(Benchmark("a", "b", "c", []), 0.95) == []
