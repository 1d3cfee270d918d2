"""A report's file: written, read back, and refused if it is not one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pyvmm.benchmark.model import Benchmark, Report, Run, Series
from pyvmm.errors import BenchmarkError


def report() -> Report:
    time = Series("time", "s", "lower", "guest", [[1.0], [3.0, 2.0, 4.0]])
    benchmark = Benchmark(
        "a", "oci/", "sha256:0", ["true"], {"x": "1"},
        runs=[Run(False, 0, 0.5, 2.0, 0, ["w"])], series={"time": time},
    )  # fmt: skip
    return Report([benchmark], "2026-01-01T00:00:00Z", {"cpu": "x"})


def test_there_and_back() -> None:
    assert Report.from_json(report().to_json()) == report()


def test_a_runs_value_is_its_median() -> None:
    assert report().benchmark("a").series["time"].values == [1.0, 3.0]
    assert Series("t", "s", "lower", "x", [[1.0, 5.0, 2.0]]).values == [1.0, 5.0, 2.0]
    assert Series("t", "s", "lower", "x").values == []


def change(**fields: Any) -> str:
    document = json.loads(report().to_json())
    for path, value in fields.items():
        at = document
        *way, last = path.split("__")
        for step in way:
            at = at[int(step) if step.isdigit() else step]
        at[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "report: not JSON: "),
        ("[]", "report: not a report: make one by pyvmm bench --json FILE"),
        ("[" * 200_000, "report: not a report: nested too deep"),
        ("{}", "report: not a report: make one by pyvmm bench --json FILE"),
        (change(version=2), "report: a report of version 2, this pyvmm reads 1"),
        (change(more=1), "report: unknown field 'more'"),
        (change(benchmarks={}), "report: benchmarks: not a list"),
        (change(benchmarks__0__params=[]), "report: benchmarks[0]: params: not an object"),
        (change(benchmarks__0__runs=[1]), "report: benchmarks[0]: runs[0]: not an object"),
        (
            change(benchmarks__0__runs__0__exit_code="x"),
            "report: benchmarks[0]: runs[0]: exit_code: 'x' is not a int",
        ),
        (
            change(benchmarks__0__series__time__better="up"),
            "report: benchmarks[0]: series.time: better: 'up' is not one of 'lower', 'higher', ''",
        ),
        (
            change(benchmarks__0__series__time__samples=[[float("nan")]]),
            "report: benchmarks[0]: series.time: samples[0][0]: nan is not a finite number",
        ),
        (
            change(benchmarks__0__series__time__samples=[[1e101]]),
            "report: benchmarks[0]: series.time: samples[0][0]: a number above 1e+100",
        ),
    ],
)
def test_no_report(text: str, message: str) -> None:
    with pytest.raises(BenchmarkError) as error:
        Report.from_json(text)
    assert str(error.value).startswith(message)
    assert error.value.exit_code == 3


def test_a_missing_field() -> None:
    document = json.loads(report().to_json())
    del document["benchmarks"][0]["digest"]
    with pytest.raises(BenchmarkError) as error:
        Report.from_json(json.dumps(document))
    assert str(error.value) == "report: benchmarks[0]: no field 'digest'"


def test_two_of_a_name() -> None:
    document = json.loads(report().to_json())
    document["benchmarks"] *= 2
    with pytest.raises(BenchmarkError) as error:
        Report.from_json(json.dumps(document))
    number = len(document["benchmarks"]) // 2
    name = document["benchmarks"][0]["name"]
    assert str(error.value) == f"report: benchmarks[{number}]: another {name!r}"


def test_no_file() -> None:
    with pytest.raises(BenchmarkError, match=r"^/nowhere: No such file or directory$"):
        Report.load("/nowhere")
