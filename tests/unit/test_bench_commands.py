"""What `pyvmm bench` does with what was measured: files, words, exit codes. No VM is made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pyvmm.arguments import Values, parse
from pyvmm.benchmark import commands
from pyvmm.benchmark.model import Report
from pyvmm.errors import BenchmarkError, UsageError

from . import reports


@pytest.fixture(autouse=True)
def end(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What the measuring ends with, if anything."""
    ends: list[BaseException] = []

    def prepared(_made: object, _schedule: object, *, runner: Any, **_more: object) -> None:
        runner.report.benchmarks = reports.report().benchmarks
        if ends:
            raise ends[0]

    monkeypatch.setattr(commands, "prepared", prepared)
    return ends


def values(*words: str) -> Values:
    return parse("pyvmm", commands.COMMANDS, list(words))[1]


def bench(*words: str) -> int:
    command, found = parse("pyvmm", commands.COMMANDS, ["bench", *words, "image"])
    return command.function(found)


@pytest.mark.parametrize(
    ("cause", "code"),
    [(KeyboardInterrupt(), 130), (SystemExit(143), 143), (BenchmarkError("no"), 3)],
)
def test_an_early_end_keeps_what_there_is(
    cause: BaseException, code: int, end: list[BaseException], tmp_path: Path
) -> None:
    end.append(cause)
    assert bench("--json", f"{tmp_path}/report.json") == code
    report = Report.load(tmp_path / "report.json")
    assert report.benchmarks == reports.report().benchmarks
    assert report.warnings == ["ended early: these are the runs until then"]


def test_a_file_that_cannot_be_written_costs_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--json", "/dev/full", "--export", f"csv={tmp_path}/values.csv") == 125
    out, err = capsys.readouterr()
    assert err == "pyvmm: /dev/full: cannot be written: No space left on device\n"
    assert os.listdir(tmp_path) == ["values.csv"]
    assert out.startswith("sort\nMETRIC")


def test_stdout_is_one_thing(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--json", "-") == 0
    assert Report.from_json(capsys.readouterr().out).benchmarks == reports.report().benchmarks
    with pytest.raises(UsageError) as error:
        bench("--json", "-", "--export", "csv=-")
    assert str(error.value) == "one thing only can be written to stdout (-)"


def test_a_duet_without_a_pair(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What there is is written; that it cannot be judged is said below it."""
    report = reports.report(reports.benchmark("a"), reports.benchmark("b"))
    report.duet = ["a", "b"]
    report.benchmarks[1].series = {}
    path = tmp_path / "report.json"
    assert commands._deliver(values("duet", "--json", str(path)), report) == 0
    assert Report.load(path) == report
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "a, b: no benchmark and metric in common"


@pytest.mark.parametrize(
    ("words", "runs", "most"),
    [
        ([], 10, 100),
        (["--runs", "200"], 200, 200),
        (["--max-runs", "5"], 5, 5),
        (["--runs", "6", "--max-runs", "5"], 6, 5),
    ],
)
def test_how_many_runs(words: list[str], runs: int, most: int) -> None:
    schedule = commands._schedule(values("bench", *words), "fresh-vm")
    assert (schedule.runs, schedule.max_runs) == (runs, most)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x"], "--param 'x': write it as x=1,2,4"),
        (["x=1", "x=2"], "--param x: given twice; write it as x=1,2,4"),
    ],
)
def test_parameters_that_cannot_be_meant(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        commands._params(words)
    assert str(error.value) == message
