"""What tools wrote, read as series: the outputs in tool_outputs/ are the tools' own (make.sh)."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest

from pyvmm.benchmark import adapters
from pyvmm.benchmark.adapters.found import MAX_TEXT, MAX_VALUES
from pyvmm.benchmark.model import Series
from pyvmm.errors import BenchmarkError, UsageError

OUTPUTS = Path(__file__).parent / "tool_outputs"
Row = list[Any]  # name, unit, better, values: as they are in expected.json
EXPECTED: dict[str, list[Row]] = json.loads((OUTPUTS / "expected.json").read_bytes())
SAMPLES, ESTIMATES = EXPECTED.pop("criterion samples"), EXPECTED.pop("criterion estimates")


def texts(*names: str) -> dict[str, bytes]:
    return {name: (OUTPUTS / name).read_bytes() for name in names}


def rows(series: list[Series]) -> list[Row]:
    assert all(len(each.samples) == 1 for each in series)
    return [[each.name, each.unit, each.better, each.samples[0]] for each in series]


def found(adapter: str, shown: dict[str, bytes]) -> list[Row]:
    """What is recognised, and chosen, and found among the data of no tool."""
    name, series = adapters.read(shown, None, [])
    assert name == adapter
    assert {each.source for each in series} == {adapter}
    again = adapters.read({"stdout": b"text\n\xff", "/a": b"{}"} | shown, adapter, [])
    assert again == (name, series)
    return rows(series)


def refused(shown: dict[str, bytes], adapter: str | None = None, *patterns: str) -> str:
    with pytest.raises(BenchmarkError) as error:
        adapters.read(shown, adapter, patterns)
    return str(error.value)


CRITERION = sorted(
    str(path.relative_to(OUTPUTS)) for path in (OUTPUTS / "criterion").glob("output/**/*.json")
)


@pytest.mark.parametrize("name", EXPECTED)
def test_tools(name: str) -> None:
    adapter = name.partition("/")[0]
    assert found(adapter, texts(name)) == EXPECTED[name]


def test_criterion_files() -> None:
    shown = texts(*CRITERION)
    assert found("criterion", shown) == SAMPLES
    # What it prints is the same again, rounded.
    assert found("criterion", texts("criterion/stdout.txt") | shown) == SAMPLES
    estimates = {name: data for name, data in shown.items() if not name.endswith("sample.json")}
    assert found("criterion", estimates) == ESTIMATES
    moved = {
        name.replace("criterion/output", "/root/target/criterion"): data
        for name, data in estimates.items()
        if not name.endswith("benchmark.json")
    }
    assert found("criterion", moved) == ESTIMATES


def test_as_the_tools_say() -> None:
    """The tools' own summaries of the values that were read."""

    def values(name: str) -> list[list[float]]:
        return [row[3] for row in EXPECTED[name]]

    rounds, medians = values("pytest-benchmark/raw.json"), values("pytest-benchmark/saved.json")
    assert [[median(each)] for each in rounds] == medians
    results = json.loads((OUTPUTS / "hyperfine/results.json").read_bytes())["results"]
    times = values("hyperfine/results.json")[::3]
    assert [median(each) for each in times] == [each["median"] for each in results]
    for (name, _, _, samples), path in zip(
        SAMPLES, (path for path in CRITERION if path.endswith("/estimates.json")), strict=True
    ):
        assert f"output/{name}/new/" in path
        said = json.loads((OUTPUTS / path).read_bytes())["mean"]["point_estimate"]
        assert mean(samples) == pytest.approx(said, rel=1e-12)
    scores = [
        metric["score"]
        for each in json.loads((OUTPUTS / "jmh/results.json").read_bytes())
        for metric in (each["primaryMetric"], each["secondaryMetrics"]["gc.alloc.rate.norm"])
    ]
    found = [mean(each) for each in values("jmh/results.json")]
    assert found == pytest.approx(scores, rel=1e-12)


def test_google_benchmark_that_fails() -> None:
    message = "google-benchmark: BM_Fails failed: no device"
    assert refused(texts("google-benchmark/fails.json")) == message


def test_google_benchmark_skipped() -> None:
    document = json.loads((OUTPUTS / "google-benchmark/fails.json").read_bytes())
    failed = document["benchmarks"][-1]
    del failed["error_occurred"], failed["error_message"]
    failed |= {"skipped": True, "skip_message": "no device"}
    names = [row[0] for row in found("google-benchmark", {"/o": json.dumps(document).encode()})]
    assert names == [row[0] for row in EXPECTED["google-benchmark/results.json"]]


def test_google_benchmark_console() -> None:
    head = b"Benchmark Time CPU Iterations UserCounters...\n"
    aggregates = b"A_mean 2 ns 1 ns 3\nA_median 3 ns 2 ns 3\nA_stddev 1 ns 1 ns 3\nA_cv 9 % 9 % 3\n"
    assert found("google-benchmark", {"stdout": head + aggregates}) == [
        ["A", "ns", "lower", [3.0]], ["A/cpu", "ns", "lower", [2.0]],
    ]  # fmt: skip
    failed = refused({"stdout": head + b"A   ERROR OCCURRED: 'no device'\n"})
    assert failed == "google-benchmark: A   ERROR OCCURRED: 'no device'"
    # The file has all digits, the table three.
    both = texts("google-benchmark/console.txt", "google-benchmark/results.json")
    assert found("google-benchmark", both) == EXPECTED["google-benchmark/results.json"]


def test_hyperfine_memory() -> None:
    result = {"command": "x", "mean": 1.5, "times": None, "memory_usage_byte": [4096, 8192]}
    assert found("hyperfine", {"/o": json.dumps({"results": [result]}).encode()}) == [
        ["x", "s", "lower", [1.5]], ["x/memory", "B", "lower", [4096.0, 8192.0]],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "unit", "better"),
    [("second", "s", "lower"), ("byte", "B", "lower"), ("integer", "", ""), ("V", "V", "")],
)
def test_pyperf_units(kind: str, unit: str, better: str) -> None:
    metadata = {"name": "x", "unit": kind}
    suite = {"benchmarks": [{"metadata": metadata, "runs": [{}, {"values": [7]}]}], "version": "1"}
    shown = {"/o": json.dumps(suite).encode()}
    assert found("pyperf", shown) == [["x", unit, better, [7.0]]]


def test_go_lines() -> None:
    text = (
        b"Unit ns/op assume=exact\nUnit q/op better=higher\nBenchmarkA/x-1-4 7 5 ns/op 3 q/op\n"
        b"Benchmarking 10 5 s\nBenchmarkLogs-4\nBenchmarkA/y-2-4 7 x ns/op\n--- BENCH: A\n"
    )
    assert found("go", {"stdout": text}) == [
        ["A/x-1", "ns", "lower", [5.0]], ["A/x-1/q/op", "q/op", "higher", [3.0]],
    ]  # fmt: skip
    text = b"BenchmarkA/n-10 7 5 ns/op\nBenchmarkA/n-20 7 6 ns/op\n"  # GOMAXPROCS is 1
    assert [row[0] for row in found("go", {"stdout": text})] == ["A/n-10", "A/n-20"]


def test_jmh_modes() -> None:
    metric = {"score": 2, "scoreError": "NaN", "scoreUnit": "us/op"}
    text = json.dumps(
        [
            {"jmhVersion": "1.37", "benchmark": "a.B.c", "mode": mode, "primaryMetric": metric}
            for mode in ("avgt", "sample", "ss")
        ]
    )
    assert found("jmh", {"/o": text.encode()}) == [
        ["a.B.c", "us", "lower", [2.0]], ["a.B.c/sample", "us", "lower", [2.0]],
        ["a.B.c/single", "us", "lower", [2.0]],
    ]  # fmt: skip


def test_bmf_between_lines() -> None:
    text = (
        b'begin {\n{ not json\n{"a": {"latency": {"value": 1}}}\n{"a": 1}\nmore\n'
        b'{\n  "b": {\n    "build-time": {"value": 2}\n  }\n}\nend\n'
        b'{"a": {"latency": {"value": 3}}}'
    )
    assert found("bmf", {"stderr": text}) == [
        ["a", "ns", "lower", [1.0, 3.0]], ["b/build-time", "s", "lower", [2.0]],
    ]  # fmt: skip


def test_nothing() -> None:
    assert adapters.read({}, None, []) == ("", [])
    assert adapters.read({"stdout": b"hello\n", "/o": b"[]", "/p": b"{}"}, None, []) == ("", [])


MENDS = {
    "pytest-benchmark": "run pytest with --benchmark-json=FILE, and pyvmm with --output FILE",
    "hyperfine": "run it with --export-json FILE, and pyvmm with --output FILE",
    "pyperf": "run the script with -o FILE, and pyvmm with --output FILE",
    "google-benchmark":
        "run the program with --benchmark_out=FILE, and pyvmm with --output FILE",
    "criterion": "let cargo bench print to stdout, or take its new/sample.json by --output",
    "go": "let go test -bench print to stdout, not as -json",
    "jmh": "run it with -rf json -rff FILE, and pyvmm with --output FILE",
    "bmf": 'print {"BENCHMARK": {"MEASURE": {"value": NUMBER}}}',
}  # fmt: skip


@pytest.mark.parametrize("adapter", adapters.NAMES)
def test_no_data(adapter: str) -> None:
    message = refused({"stdout": b"", "/o": b"\x00" * (MAX_TEXT + 1)}, adapter)
    looked = "no data of it in stdout, /o (too large)"
    assert message == f"{adapter}: {looked}: {MENDS[adapter]}"
    others = {name: data for name, data in texts(*EXPECTED).items() if not name.startswith(adapter)}
    assert refused(others, adapter).startswith(f"{adapter}: no data of it in ")


def test_two_tools() -> None:
    shown = texts("hyperfine/results.json", "go/one.txt")
    message = "there is data of hyperfine and go: choose one by --adapter"
    assert refused(shown) == message
    assert rows(adapters.read(shown, "go", [])[1]) == EXPECTED["go/one.txt"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("NaN", "x: nan is not a finite number"),
        ("-Infinity", "x: -inf is not a finite number"),
        ("1e999", "x: inf is not a finite number"),
        ("1" + "0" * 400, "x: inf is not a finite number"),
        ("true", "x: a bool where a number should be"),
        ('"1"', "x: a str where a number should be"),
        ("[[1]]", "x: a list where a number should be"),
        ("[]", "x: no values"),
        ("null", "x: no values"),
        (str([1] * (MAX_VALUES + 1)), "more than 1000000 values in one run"),
    ],
)
def test_values(value: str, message: str) -> None:
    shown = {"/o": f'{{"x": {{"latency": {{"value": {value}}}}}}}'.encode()}
    assert refused(shown) == f"bmf: {message}"


def test_names() -> None:
    def of(name: str) -> dict[str, bytes]:
        return {"/o": json.dumps({name: {"latency": {"value": 1}}}).encode()}

    assert found("bmf", of("a\n\x1b\ud800é")) == [["a\\n\\x1b\\ud800é", "ns", "lower", [1.0]]]
    assert refused(of("")) == "bmf: a metric without a name"
    assert refused(of("x" * 1001)) == f"bmf: {'x' * 40}…: name or unit is too long"


def test_two_units() -> None:
    text = b"Benchmark Time CPU Iterations\nA 2 ns 1 ns 3\nA 2 us 1 ns 3\n"
    assert refused({"stdout": text}) == "google-benchmark: A: in 'ns' and in 'us'"


def test_patterns() -> None:
    shown = {"stdout": b"p99: 1.5 ms\np99: 2e1 ms\r\n", "/log": b"\xffserved 7\n"}
    patterns = [r"p99[ms]:lower=^p99: (\S+)", "served/all:higher=served (\\d+)", "q[%]==*(7)"]
    name, series = adapters.read(shown, None, patterns)
    assert name == "metric"
    assert {each.source for each in series} == {"metric"}
    assert rows(series) == [
        ["p99", "ms", "lower", [1.5, 20.0]], ["served/all", "", "higher", [7.0]],
        ["q", "%", "", [7.0]],
    ]  # fmt: skip
    name, series = adapters.read(shown | texts("bmf/results.json"), None, patterns[:1])
    assert name == "bmf"
    assert rows(series) == [*EXPECTED["bmf/results.json"], ["p99", "ms", "lower", [1.5, 20.0]]]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("x=none (.)", "--metric x: nothing matches 'none (.)' in stdout, /o"),
        ("x=(b)", "--metric x: 'b' in stdout is not a number"),
        ("x=(q)?b", "--metric x: None in stdout is not a number"),
        ("x=()", "--metric x: '' in stdout is not a number"),
        ("x=c (.*)", "metric: x: nan is not a finite number"),
        ("sort=(1)", "--metric sort: bmf has a metric of this name"),
    ],
)
def test_patterns_without_numbers(pattern: str, message: str) -> None:
    data = (OUTPUTS / "bmf/results.json").read_bytes()
    assert refused({"stdout": b"b 1\nc nan\n", "/o": data}, None, pattern) == message


@pytest.mark.parametrize(
    ("adapter", "patterns", "message"),
    [
        ("go", ["a=(1)", "b[s]:lower=(2)"], ""),
        ("none", [], f"--adapter none: must be one of {', '.join(adapters.NAMES)}"),
        (None, ["a=(1)", "a[s]=(2)"], "--metric a: given twice"),
        (None, ["a=1"], "--metric a: '1' has no group for the number, as (\\d+)"),
        (None, ["a=("], "--metric a: '(' is no regular expression: "
                        "missing ), unterminated subpattern at position 0"),
        *(
            (None, [each], f"--metric {each!r}: must be NAME=REGEX, NAME[UNIT]=REGEX or"
                           " NAME[UNIT]:lower=REGEX (or :higher)")
            for each in ("", "a", "a=", "=(1)", "a:less=(1)", "a[s=(1)", "[s]=(1)")
        ),
    ],
)  # fmt: skip
def test_check(adapter: str | None, patterns: list[str], message: str) -> None:
    if not message:
        adapters.check(adapter, patterns)
        return
    with pytest.raises(UsageError) as error:
        adapters.check(adapter, patterns)
    assert str(error.value) == message


def test_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    table = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| `")]
    assert table == [f"`{name}`" for name in adapters.NAMES]
