"""Each format as its own consumer reads it."""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyvmm.benchmark import export
from pyvmm.benchmark.adapters import read
from pyvmm.benchmark.export.pytest_benchmark import stats
from pyvmm.benchmark.model import Benchmark, Report, Series
from pyvmm.errors import BenchmarkError, UsageError, printable

from . import reports
from .reports import HOSTILE, TIMES

TOOL_OUTPUTS = Path(__file__).parent / "tool_outputs"
LEVEL = 1 - 2 * 10 / 512  # of the interval of nine values' median: binomial, 0 and 1 of 9


def _write(report: Report, name: str, path: Path) -> None:
    path.write_text(export.export(report, name), encoding="utf-8", newline="")


def _json(report: Report, name: str) -> Any:
    return json.loads(export.export(report, name))


def test_names() -> None:
    assert export.NAMES == (
        "bmf", "csv", "github-bigger", "github-smaller", "hyperfine", "junit", "openmetrics",
        "pyperf", "pytest-benchmark",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("xml=a", "--export xml=a: not a format; there are " + ", ".join(export.NAMES)),
        ("csv", "--export csv: give FORMAT=FILE, as csv=values.csv"),
        ("csv=", "--export csv=: give FORMAT=FILE, as csv=values.csv"),
    ],
)
def test_usage(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        export.parse(spec)
    assert str(error.value) == message


def test_unknown_format() -> None:
    with pytest.raises(UsageError) as error:
        export.export(reports.report(), "xml")
    assert str(error.value) == f"export 'xml': not a format; there are {', '.join(export.NAMES)}"


def test_parse() -> None:
    assert export.parse("csv=a=b.csv") == ("csv", "a=b.csv")


@pytest.mark.parametrize("name", export.NAMES)
def test_nothing(name: str) -> None:
    lacks = "times" if name in ("hyperfine", "pytest-benchmark") else "values"
    for report in (Report(), reports.report(Benchmark("a", "b", "c", []))):
        with pytest.raises(BenchmarkError) as error:
            export.export(report, name)
        assert str(error.value) == f"nothing to export: the report has no {lacks}"


def test_bmf() -> None:
    assert _json(reports.report(), "bmf") == {
        "sort": {
            "latency": {"value": 1.375e9, "lower_value": 1.125e9, "upper_value": 1.75e9},
            "peak_memory": {"value": 524288, "lower_value": 524288, "upper_value": 524288},
        },
        "sort/dump": {"latency": {"value": 3e6}},
        "sort/rate": {"throughput": {"value": 225000}},
        "sort/score": {"value": {"value": 0}},
    }
    assert {HOSTILE, f"{HOSTILE}/{HOSTILE}"} < _json(reports.hostile(), "bmf").keys()


def test_bmf_clash() -> None:
    other = reports.benchmark("sort/dump")
    with pytest.raises(BenchmarkError) as error:
        export.export(reports.report(reports.benchmark(), other), "bmf")
    assert str(error.value) == "bmf: sort/dump has two metrics latency: rename a benchmark"


def test_github() -> None:
    """No package has the action: the shape is its README's, ``range`` as its source reads it."""
    assert _json(reports.report(), "github-smaller") == [
        {
            "name": "sort time", "unit": "s", "value": 1.375, "range": "± 0.375",
            "extra": "image: python:3.13\nvalues: 9",
        },
        {
            "name": "sort peak_memory", "unit": "B", "value": 524288, "range": "± 0.0",
            "extra": "image: python:3.13\nvalues: 9",
        },
        {
            "name": "sort dump", "unit": "s", "value": 0.003,
            "extra": "image: python:3.13\nvalues: 3",
        },
    ]  # fmt: skip
    assert _json(reports.report(), "github-bigger") == [
        {
            "name": "sort rate", "unit": "ops/s", "value": 225000,
            "extra": "image: python:3.13\nvalues: 2",
        },
    ]  # fmt: skip
    assert _json(reports.hostile(), "github-smaller")[-1]["name"] == f"{HOSTILE} {HOSTILE}"


def test_github_has_a_direction() -> None:
    benchmark = reports.benchmark()
    del benchmark.series["rate"]
    with pytest.raises(BenchmarkError) as error:
        export.export(reports.report(benchmark), "github-bigger")
    wanted = "nothing to export: the report has no metric of which bigger is better"
    assert str(error.value) == wanted


def test_hyperfine() -> None:
    assert _json(reports.report(), "hyperfine") == {
        "results": [
            {
                "command": "sort", "mean": pytest.approx(12.75 / 9), "stddev": 0.3125,
                "median": 1.375, "user": None, "system": None, "min": 1.0, "max": 2.0,
                "times": list(TIMES), "exit_codes": [0] * 9, "parameters": {"n": "4"},
            }
        ]
    }  # fmt: skip
    (result,) = _json(reports.hostile(), "hyperfine")["results"]
    assert (result["command"], result["parameters"]) == (HOSTILE, {HOSTILE: HOSTILE})


@pytest.mark.parametrize(("name", "params"), [("results", {}), ("scan", {"seconds": "0.001"})])
def test_hyperfine_shape(name: str, params: dict[str, str]) -> None:
    """Keys, their order and types are those of hyperfine's own file."""
    benchmark = reports.benchmark()
    benchmark.params = params
    for metric in ("user", "system"):
        benchmark.series[metric] = Series(metric, "s", "lower", "guest", [[0.5]])
    ours = _json(reports.report(benchmark), "hyperfine")
    theirs = json.loads((TOOL_OUTPUTS / "hyperfine" / f"{name}.json").read_text())
    assert _shape(ours) == _shape(theirs)


def _shape(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, _shape(each)) for key, each in value.items()]
    return [_shape(value[0])] if isinstance(value, list) else type(value)


def test_pyperf(tmp_path: Path) -> None:
    pyperf = pytest.importorskip("pyperf")
    text = export.export(reports.report(reports.benchmark("a"), reports.benchmark("b")), "pyperf")
    (tmp_path / "old.json").write_text(text)
    suite = pyperf.BenchmarkSuite.loads(text)
    assert suite.get_metadata() == {"pyvmm CPU": "Model <x> & Co", "pyvmm governor": "performance"}
    assert suite.get_benchmark_names() == [
        "a", "a/peak_memory", "a/dump", "b", "b/peak_memory", "b/dump"
    ]  # fmt: skip
    a = suite.get_benchmark("a")
    assert (a.get_values(), a.get_unit()) == (TIMES, "second")
    assert suite.get_benchmark("a/dump").get_values() == (0.004, 0.002, 0.003)
    assert suite.get_benchmark("a/peak_memory").get_unit() == "byte"
    begin, end = a.get_dates()
    assert (begin.isoformat(), (end - begin).total_seconds()) == (
        "2026-11-23T10:00:02.500000+00:00", 23.0
    )  # fmt: skip


def test_pyperf_undated() -> None:
    pyperf = pytest.importorskip("pyperf")
    report = reports.report()
    for started in ("", "yesterday"):
        report.started = started
        (first, *_) = pyperf.BenchmarkSuite.loads(export.export(report, "pyperf"))
        assert first.get_dates() is None


def test_pyperf_compare(tmp_path: Path) -> None:
    pytest.importorskip("pyperf")
    for name, shift in (("old", 0.0), ("new", 1.375)):
        report = reports.report(reports.benchmark(shift=shift))
        _write(report, "pyperf", tmp_path / f"{name}.json")
    compared = _pyperf("compare_to", "old.json", "new.json", cwd=tmp_path)
    first = "sort: Mean +- std dev: [old] 1.42 sec +- 0.31 sec -> "
    assert compared.splitlines()[0] == f"{first}[new] 2.79 sec +- 0.31 sec: 1.97x slower"
    assert (
        "Median +- MAD:   1.38 sec +- 0.12 sec"
        in _pyperf("stats", "old.json", cwd=tmp_path).splitlines()
    )


def test_pyperf_hostile(tmp_path: Path) -> None:
    pyperf = pytest.importorskip("pyperf")
    _write(reports.hostile(), "pyperf", tmp_path / "a.json")
    name = pyperf.BenchmarkSuite.load(str(tmp_path / "a.json")).get_benchmarks()[0].get_name()
    assert name == printable(HOSTILE)
    assert _pyperf("stats", "a.json", cwd=tmp_path).splitlines()[8:10] == [name, "-" * len(name)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 30])
def test_pytest_benchmark_stats(count: int) -> None:
    """Each is what pytest-benchmark itself makes of the same values."""
    theirs = pytest.importorskip("pytest_benchmark.stats").Stats()
    draw = random.Random(count)
    values = [draw.lognormvariate(0, 1) for _ in range(count)]
    for value in values:
        theirs.update(value)
    ours = stats(values)
    assert {name: getattr(theirs, name) for name in theirs.fields} == {
        name: each if isinstance(each, str) else pytest.approx(each)
        for name, each in ours.items()
        if name in theirs.fields
    }


def test_pytest_benchmark_compare(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    for name, shift in (("old", 0.0), ("new", 1.0)):
        report = reports.report(reports.benchmark(shift=shift))
        _write(report, "pytest-benchmark", tmp_path / f"{name}.json")
    program = Path(sys.executable).parent / "pytest-benchmark"
    columns = "--columns=min,median,iqr,outliers,rounds"
    subprocess.run(
        [program, "compare", "old.json", "new.json", "--csv=c.csv", columns],
        cwd=tmp_path, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    rows = csv.DictReader(io.StringIO((tmp_path / "c.csv").read_text()))
    same = {"name": "sort", "param:n": "4", "iqr": "0.34375", "outliers": "3;0", "rounds": "9"}
    assert list(rows) == [
        same | {"min": "1.0", "median": "1.375"}, same | {"min": "2.0", "median": "2.375"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hyperfine", {"sort": list(TIMES)}),
        ("pyperf", {"sort": list(TIMES), "sort/dump": [0.004, 0.002, 0.003]}),
        ("bmf", {"sort": [1.375e9], "sort/rate/throughput": [225000.0]}),
    ],
)
def test_read_back(name: str, expected: dict[str, list[float]]) -> None:
    """By our own adapters."""
    text = export.export(reports.report(), name).encode()
    adapter, series = read({"stdout": text}, None, [])
    found = {each.name: each.samples[0] for each in series}
    assert (adapter, {key: found.get(key) for key in expected}) == (name, expected), found


def _pyperf(*words: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "pyperf", *words]
    return subprocess.run(
        command, cwd=cwd, check=True, capture_output=True, encoding="utf-8", timeout=60
    ).stdout


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(export.export(reports.report(), "csv"), newline="")))
    assert len(rows) == 9 + 9 + 3 + 2 + 1
    assert rows[1] == {
        "benchmark": "sort", "image": "python:3.13", "digest": "sha256:ab", "mode": "fresh-vm",
        "metric": "time", "unit": "s", "better": "lower", "source": "guest",
        "run": "1", "sample": "0", "value": "1.5", "param:n": "4",
    }  # fmt: skip
    dump = [row for row in rows if row["metric"] == "dump"]
    assert [(row["run"], row["sample"], row["value"], row["unit"]) for row in dump] == [
        ("0", "0", "4.0", "ms"), ("0", "1", "2.0", "ms"), ("0", "2", "3.0", "ms")
    ]  # fmt: skip


def test_csv_hostile() -> None:
    text = io.StringIO(export.export(reports.hostile(), "csv"), newline="")
    name = HOSTILE.replace("\ud800", "\\ud800")  # which UTF-8 cannot encode
    last = list(csv.DictReader(text))[-1]
    assert (last["benchmark"], last["metric"], last[f"param:{name}"]) == (name, name, name)


def test_junit(tmp_path: Path) -> None:
    junitparser = pytest.importorskip("junitparser")
    report = reports.report()
    report.benchmarks[0].runs[3].exit_code = 7
    _write(report, "junit", tmp_path / "a.xml")
    (suite,) = junitparser.JUnitXml.fromfile(str(tmp_path / "a.xml"))
    counts = (suite.tests, suite.failures, suite.errors, suite.skipped, suite.time)
    assert (suite.name, *counts) == ("sort", 7, 1, 0, 1, 25.0)
    assert suite.timestamp == "2026-11-23T10:00:00+00:00"
    assert {each.name: each.value for each in suite.properties()} == {
        "CPU": "Model <x> & Co", "governor": "performance",
        "image": "python:3.13", "digest": "sha256:ab",
    }  # fmt: skip
    cases = list(suite)
    assert [(case.classname, case.name, case.time, case.system_out) for case in cases] == [
        ("sort", "runs", 25.0, None),
        ("sort", "time", 1.375,
         f"median 1.375 s, 1.125 s to 1.750 s at {LEVEL:.1%}, of 9 values"),
        ("sort", "peak_memory", None,
         f"median 512 KiB, 512 KiB to 512 KiB at {LEVEL:.1%}, of 9 values"),
        ("sort", "dump", 0.003, "median 3 ms, of 3 values"),
        ("sort", "rate", None, "median 225 k ops/s, of 2 values"),
        ("sort", "score", None, "median 0, of 1 values"),
        ("sort", "cycles", None, None),
    ]  # fmt: skip
    assert [result.message for result in cases[0].result] == ["runs 3 ended with 7"]
    assert [result.message for result in cases[-1].result] == ["this host's KVM has no PMU"]


def test_junit_hostile() -> None:
    junitparser = pytest.importorskip("junitparser")
    text = export.export(reports.hostile(), "junit")
    (suite,) = junitparser.JUnitXml.fromstring(text.encode())
    name = printable(HOSTILE)
    assert (suite.name, [case.name for case in suite][-1]) == (name, name)
    assert next(iter(suite.properties())).value == name


def test_openmetrics() -> None:
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    families = list(
        parser.text_string_to_metric_families(export.export(reports.report(), "openmetrics"))
    )
    assert [(family.name, family.type, family.unit) for family in families] == [
        ("pyvmm_benchmark_median_seconds", "gauge", "seconds"),
        ("pyvmm_benchmark_low_seconds", "gauge", "seconds"),
        ("pyvmm_benchmark_high_seconds", "gauge", "seconds"),
        ("pyvmm_benchmark_median_bytes", "gauge", "bytes"),
        ("pyvmm_benchmark_low_bytes", "gauge", "bytes"),
        ("pyvmm_benchmark_high_bytes", "gauge", "bytes"),
        ("pyvmm_benchmark_median", "gauge", ""),
        ("pyvmm_benchmark_values", "gauge", ""),
        ("pyvmm_benchmark_host", "info", ""),
    ]
    assert [(s.labels, s.value) for s in families[0].samples] == [
        ({"benchmark": "sort", "metric": "time", "better": "lower"}, 1.375),
        ({"benchmark": "sort", "metric": "dump", "better": "lower"}, 0.003),
    ]
    assert [(s.labels["metric"], s.labels["unit"], s.value) for s in families[6].samples] == [
        ("rate", "ops/s", 225000.0), ("score", "", 0.0)
    ]  # fmt: skip
    assert [s.value for s in families[7].samples] == [9, 9, 3, 2, 1]
    assert [s.labels for s in families[8].samples] == [
        {"fact": "CPU", "value": "Model <x> & Co"}, {"fact": "governor", "value": "performance"}
    ]  # fmt: skip


def test_openmetrics_hostile() -> None:
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    text = export.export(reports.hostile(), "openmetrics")
    families = list(parser.text_string_to_metric_families(text))
    name = HOSTILE.replace("\ud800", "\\ud800")
    assert families[0].samples[0].labels["benchmark"] == name
    assert families[-1].samples[0].labels == {"fact": name, "value": name}
