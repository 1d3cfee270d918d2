"""Two reports beside each other, through the real command line too."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pyvmm.benchmark.compare import Thresholds, compare, duet
from pyvmm.benchmark.comparison import Comparison, Row, shown
from pyvmm.benchmark.github import annotate, code, command, markdown
from pyvmm.benchmark.model import Benchmark, Better, Report, Run, Series
from pyvmm.errors import BenchmarkError

SUMMARY = "99% intervals, threshold 5%"


def series(values: Sequence[float], better: Better = "lower", unit: str = "s") -> Series:
    return Series("", unit, better, "guest", [[value] for value in values])


def benchmark(name: str, more: Mapping[str, Series]) -> Benchmark:
    found = Benchmark(name, "oci/", "sha256:0", ["true"], series=dict(more))
    for key, each in found.series.items():
        each.name = key
    return found


def report(name: str = "a", **more: Series) -> Report:
    return Report([benchmark(name, more)])


def steady(value: float, runs: int = 10) -> list[float]:
    return [value] * runs


def noisy(middle: float, share: float, seed: int, runs: int = 30) -> list[float]:
    generator = random.Random(seed)
    return [middle * (1 + generator.gauss(0, share)) for _ in range(runs)]


def verdict(
    old: Sequence[float], new: Sequence[float], better: Better = "lower", threshold: float = 0.05
) -> str:
    before, after = report(m=series(old, better)), report(m=series(new, better))
    (row,) = compare(before, after, Thresholds(threshold)).rows
    return row.verdict


@pytest.mark.parametrize(
    ("old", "new", "better", "expected"),
    [
        (1.0, 1.06, "lower", "regression"),
        (1.0, 0.94, "lower", "improvement"),
        (1.0, 1.06, "higher", "improvement"),
        (1.0, 0.94, "higher", "regression"),
        (1.0, 1.06, "", "different"),
        (1.0, 0.94, "", "different"),
        (1.0, 1.04, "lower", "same"),
        (1.0, 0.96, "higher", "same"),
        (1.0, 1.0, "lower", "same"),
        (0.0, 0.0, "lower", "same"),
        (0.0, 12.0, "lower", "different"),
        (12.0, 0.0, "lower", "different"),
        (-1.0, -2.0, "lower", "different"),
    ],
)
def test_verdicts_without_noise(old: float, new: float, better: Better, expected: str) -> None:
    assert verdict(steady(old), steady(new), better) == expected


def test_verdicts_with_noise() -> None:
    assert verdict(noisy(1, 0.01, 1), noisy(1.1, 0.01, 2)) == "regression"
    assert verdict(noisy(1, 0.01, 1), noisy(1.02, 0.01, 2)) == "same"
    assert verdict(noisy(1, 0.01, 1), noisy(1.02, 0.01, 2), threshold=0.001) == "regression"
    assert verdict(noisy(1, 0.2, 1), noisy(1, 0.2, 2)) == "unsure"
    assert verdict(noisy(1, 0.2, 1), noisy(2, 0.2, 2)) == "regression"


def test_what_has_no_ratio_is_judged_by_ranks() -> None:
    zeros = [0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert verdict(zeros, [each + 20 for each in zeros]) == "different"
    assert verdict(zeros, zeros[::-1]) == "same"
    found = compare(*(report(m=series([each + by for each in zeros])) for by in (0, 1)))
    assert [row.judgement() for row in found.rows] == ["unsure: 0 has no ratio"]
    assert not found.regressed(strict=True)
    assert annotate(found) == []


@pytest.mark.parametrize("side", ["independent", "paired"])
def test_noise_around_0_is_no_difference(side: str) -> None:
    draw = random.Random(1)

    def alarm() -> bool:
        old, new = ([float(draw.choice((0, 1, 2, 3, 4))) for _ in range(10)] for _ in "ab")
        if side == "independent":
            return verdict(old, new) == "different"
        both = Report([benchmark(n, {"m": series(v)}) for n, v in (("A", old), ("B", new))])
        both.duet = ["A", "B"]
        return duet(both).rows[0].verdict == "different"

    assert sum(alarm() for _ in range(100)) <= 5


def test_a_row() -> None:
    old, new = (report(time=series(steady(value))) for value in (1.0, 1.5))
    (row,) = compare(old, new).rows
    assert row.ratio
    assert row.ratio.interval
    assert row == Row("a", "time", "s", "lower", 1.0, 1.5, row.ratio, 0.05, 0.0, "regression")
    assert (row.ratio.value, row.ratio.interval.low, row.ratio.interval.high) == (1.5, 1.5, 1.5)
    assert row.cells() == (
        "a", "time", "1 s", "1.500 s", "+50.0% [+50.0%, +50.0%]", "regression",
    )  # fmt: skip


def test_the_main_metric_is_first() -> None:
    both = report(a=series(steady(1)), time=series(steady(1)), b=series(steady(1)))
    assert [row.metric for row in compare(both, both).rows] == ["time", "a", "b"]


def test_thresholds() -> None:
    thresholds = Thresholds(0.1, {"x/*": 0.2, "x/1": 0.3, "t[1]": 0.4})
    assert [thresholds.of(name) for name in ("y", "x/2", "x/1", "t[1]")] == [0.1, 0.2, 0.3, 0.4]
    old = report(a=series(steady(1)), b=series(steady(1)))
    new = report(a=series(steady(1.1)), b=series(steady(1.1)))
    found = compare(old, new, Thresholds(0.2, {"b": 0.0}))
    assert [row.verdict for row in found.rows] == ["same", "regression"]
    assert found.summary() == "1 regression, 1 same; 99% intervals, threshold 0% or 20%"


def test_what_is_in_one_only_or_not_comparable() -> None:
    old = Report([
        benchmark("a", {"time": series(steady(1)), "gone": series(steady(1)), "none": series([])}),
        benchmark("b", {}),
    ], fingerprint={"cpu": "A", "kernel": "6.1", "same": "1"})  # fmt: skip
    new = Report([
        benchmark("c", {}),
        benchmark("a", {"time": series(steady(1)), "none": series([1]), "u": series([1])}),
    ], fingerprint={"cpu": "B", "same": "1"})  # fmt: skip
    old.benchmarks[0].series["u"] = Series("u", "ns", "lower", "x", [[1.0]])
    old.benchmarks[0].options = {"vcpus": "1"}
    new.benchmarks[1].options = {"vcpus": "2"}
    new.benchmarks[1].mode = "same-vm"
    new.benchmarks[1].runs = [Run(True, 1, 0, 0, 0), Run(False, 0, 0, 0, 1), Run(False, 1, 0, 0, 2)]
    found = compare(old, new)
    assert found.notes() == [
        "only in old: a: gone",
        "only in old: b",
        "only in new: a: none",
        "only in new: c",
        "cpu: A in old, B in new",
        "kernel: 6.1 in old, nothing in new",
        "a: vcpus: 1 in old, 2 in new",
        "a: mode: fresh-vm in old, same-vm in new",
        "a: u: in ns in old, in s in new: not compared",
        "a: 1 of 2 runs failed in new",
    ]


@pytest.mark.parametrize(
    ("old", "new", "metrics", "thresholds", "message"),
    [
        (report("a"), report("b"), [], {}, "old, new: no benchmark and metric in common"),
        (report(x=series([1])), report(y=series([1])), [], {},
         "old, new: no benchmark and metric in common"),
        (report(x=series([])), report(x=series([])), [], {},
         "old, new: no benchmark and metric in common"),
        (report(x=series([1])), report(x=series([1])), ["x", "y*"], {},
         "no metric 'y*' in common; there are x"),
        (report(x=series([1])), report(x=series([1])), ["y"], {},
         "no metric 'y' in common; there are x"),
        (report(x=series([1])), report(x=series([1])), [], {"y": 1},
         "no metric 'y' in common; there are x"),
        (report(x=series([1, float("nan")])), report(x=series([1])), [], {},
         "a: x: value 2 of 2 is nan: not a finite number"),
    ],
)  # fmt: skip
def test_not_comparable(
    old: Report, new: Report, metrics: list[str], thresholds: dict[str, float], message: str
) -> None:
    with pytest.raises(BenchmarkError) as error:
        compare(old, new, Thresholds(0.05, thresholds), metrics)
    assert str(error.value) == message


def test_few_runs() -> None:
    found = compare(report(time=series([1])), report(time=series([2, 2])))
    assert found.notes() == [
        "a: 1 run in old, too few for an interval: make 8 or more",
        "a: 2 runs in new, too few for an interval: make 8 or more",
    ]
    assert found.rows[0].cells()[4:] == ("+100.0%", "unsure: too few runs")
    assert not found.judged()
    assert not found.regressed()
    assert found.regressed(strict=True)


def test_the_values_of_a_single_run() -> None:
    one = report(time=Series("time", "s", "lower", "x", [steady(1)]))
    assert compare(one, one).notes() == [
        f"a: a single run in {where}: what differs from run to run is not seen"
        for where in ("old", "new")
    ]
    assert compare(one, one).rows[0].verdict == "same"


def test_a_metric_without_a_good_side_never_fails() -> None:
    old = report(a=series(steady(1), ""), b=series(noisy(1, 0.2, 1), ""))
    new = report(a=series(steady(2), ""), b=series(noisy(1, 0.2, 2), ""))
    found = compare(old, new)
    assert [row.verdict for row in found.rows] == ["different", "unsure"]
    assert not found.regressed(strict=True)


def paired(share: float, change: float, pairs: int = 30) -> Report:
    """Two benchmarks with noise that both of a pair have, and little of their own."""
    host = noisy(1, share, 1, pairs)
    own = [noisy(1, 0.005, seed, pairs) for seed in (2, 3)]
    old = [a * b for a, b in zip(host, own[0], strict=True)]
    new = [a * b * (1 + change) for a, b in zip(host, own[1], strict=True)]
    found = Report([benchmark(name, {"time": series(v)}) for name, v in (("A", old), ("B", new))])
    found.duet = ["A", "B"]
    return found


def test_a_duet_sees_through_the_hosts_noise() -> None:
    noise = paired(0.2, 0.03)
    (row,) = duet(noise, Thresholds(0.01)).rows
    assert (row.benchmark, row.verdict) == ("A, B", "regression")
    old, new = (Report([benchmark("x", each.series)]) for each in noise.benchmarks)
    assert compare(old, new, Thresholds(0.01)).rows[0].verdict == "unsure"
    assert duet(paired(0.2, 0), Thresholds(0.01)).rows[0].verdict == "same"


def test_no_duet() -> None:
    def why(broken: Report) -> str:
        with pytest.raises(BenchmarkError) as error:
            duet(broken)
        return str(error.value)

    assert why(report()) == "not a duet's report: give two reports, or make one by pyvmm duet"
    found = paired(0.1, 0)
    found.benchmarks[1].series["time"].samples.pop()
    assert why(found) == "A, B: time: 30 and 29 runs are no pairs"
    found.benchmarks[1].series["time"].samples.append([])
    assert why(found) == "A, B: time: a run without a value is in no pair"
    found.duet = ["A", "C"]
    assert why(found) == "a duet's report without its benchmark 'C'"


def test_the_table() -> None:
    old = report(time=series(steady(0.1)), ops=series(steady(2e6), "higher", "ops/s"),
                 faults=series(steady(0), unit=""), short=series([1]))  # fmt: skip
    new = report(time=series(steady(0.101)), ops=series(steady(1e6), "higher", "ops/s"),
                 faults=series(steady(9), unit=""), short=series([1]))  # fmt: skip
    assert (
        compare(old, new, names=("o.json", "n.json")).table()
        == """\
benchmark  metric  o.json     n.json     change                   verdict
a          time    100 ms     101 ms     +1.00% [+1.00%, +1.00%]  same
a          ops     2 M ops/s  1 M ops/s  -50.0% [-50.0%, -50.0%]  regression
a          faults  0          9                                   different
a          short   1 s        1 s        +0.00%                   unsure: too few runs

1 regression, 1 different, 1 unsure, 1 same; 99% intervals, threshold 5%"""
    )


def example() -> Comparison:
    old = report(time=series(steady(1)), same=series(steady(1)), user=series(steady(2)))
    new = report(time=series(steady(2)), same=series(steady(1)), user=series(steady(1)))
    old.fingerprint, new.fingerprint = {"cpu": "A"}, {"cpu": "B"}
    return compare(old, new, names=("old.json", "new.json"))


def test_markdown() -> None:
    head = "| benchmark | metric | `old.json` | `new.json` | change | verdict |\n"
    head += "| --- | --- | --- | --- | --- | --- |\n"
    time = "| `a` | `time` | 1 s | 2 s | +100.0% [+100.0%, +100.0%] | **regression** |\n"
    same = "| `a` | `same` | 1 s | 1 s | +0.00% [+0.00%, +0.00%] | same |\n"
    user = "| `a` | `user` | 2 s | 1 s | -50.0% [-50.0%, -50.0%] | improvement |\n"
    assert markdown(example()) == (
        f"### Benchmarks: 1 regression, 1 improvement, 1 same; {SUMMARY}\n\n{head}{time}{user}\n"
        "<details><summary>What else differs</summary>\n\n"
        "- `cpu: A in old.json, B in new.json`\n\n</details>\n"
        f"<details><summary>All metrics (3)</summary>\n\n{head}{time}{same}{user}\n</details>\n"
    )


def test_annotations() -> None:
    assert annotate(example()) == [
        "::error title=Regression::a: time: 1 s to 2 s: +100.0%25 [+100.0%25, +100.0%25]",
        "::warning title=What else differs::cpu: A in old.json, B in new.json",
        "::notice title=Improvement::a: user: 2 s to 1 s: -50.0%25 [-50.0%25, -50.0%25]",
    ]


def test_more_regressions_than_github_shows() -> None:
    worse = example().rows[0]
    lines = annotate(
        Comparison("o", "n", 0.99, [replace(worse, metric=f"m{n}") for n in range(12)])
    )
    each = "1 s to 2 s: +100.0%25 [+100.0%25, +100.0%25]"
    assert lines == [
        *(f"::error title=Regression::a: m{n}: {each}" for n in range(9)),
        "::error title=More regressions::" + "%0A".join(f"a: m{n}: {each}" for n in (9, 10, 11)),
    ]


def test_unsure_is_one_warning() -> None:
    found = compare(report(x=series([1]), y=series([1])), report(x=series([1]), y=series([1])))
    each = "1 s to 1 s: unsure: too few runs"
    assert annotate(found) == [
        f"::warning title=Too much noise%2C too few runs::a: x: {each}%0Aa: y: {each}"
    ]


def test_a_commands_escapes() -> None:
    assert command("error", "1%\r\n,:", "a: b, %\r\n") == (
        "::error title=a%3A b%2C %25%0D%0A::1%25%0D%0A,:"
    )


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("a b", "`a b`"),
        ("*a* <b> @c #1 [d](e) &amp;", "`*a* <b> @c #1 [d](e) &amp;`"),
        ("a|b", "<code>a&#124;b</code>"),
        ("a`b", "<code>a&#96;b</code>"),
        ("a\\|<b>", "<code>a&#92;&#124;&#60;b&#62;</code>"),
        ("a\nb\x1b\u202e", "<code>a&#92;nb&#92;x1b&#92;u202e</code>"),
        ("", "<code></code>"),
        (" ", "<code> </code>"),
        ("x" * 101, f"`{'x' * 99}…`"),
    ],
)
def test_names_in_markdown(name: str, cell: str) -> None:
    assert code(name) == cell


def test_a_hostile_unit() -> None:
    hostile = report("::error::x\n", **{"a|b": series(steady(1), unit="<img src=x>")})
    text = markdown(compare(hostile, hostile))
    assert (
        "| <code>&#58;&#58;error&#58;&#58;x&#92;n</code> | <code>a&#124;b</code>"
        " | `1 <img src=x>` | `1 <img src=x>` |"
    ) in text


def test_a_long_comment_is_cut_where_a_row_ends() -> None:
    found = example()
    worse, same, _ = found.rows
    found.rows = [
        replace(each, metric=f"metric {n}") for n in range(1000) for each in (worse, same)
    ]
    text = markdown(found)
    assert 55_000 < len(text) < 65_536
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith("| `a` |")]
    left = [int(line.split()[0]) for line in lines if " more are left out here" in line]
    assert len(left) == 2
    assert len(rows) + sum(left) == 1000 + 2000
    assert {line.count("|") for line in rows} == {7}


def test_shown() -> None:
    assert shown("a\nb") == "a\\nb"
    assert len(shown("x" * 1000)) == 100


# The command line.


class Files:
    """A folder with reports, in which pyvmm is called."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, name: str, saved: Report) -> None:
        saved.save(self.path / name)

    def call(self, *words: str, **environment: str) -> tuple[int, str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
        done = subprocess.run(
            [Path(sys.executable).parent / "pyvmm", "compare", *words],
            cwd=self.path,
            env=clean | {"PYTHONUTF8": "1"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path)
    made.save("old.json", report(time=series(steady(1)), user=series(noisy(1, 0.2, 1))))
    made.save("new.json", report(time=series(steady(2)), user=series(noisy(1, 0.2, 2))))
    made.save("one.json", report(time=series([1])))
    made.save("other.json", report("b", time=series(steady(1))))
    made.save("duet.json", paired(0.2, 0.1))
    (tmp_path / "text.json").write_text("{}")
    (tmp_path / "nan.json").write_text((tmp_path / "one.json").read_text().replace("1\n", "NaN\n"))
    return made


def test_a_regression(files: Files) -> None:
    code, out, err = files.call("old.json", "new.json", "--metric", "time")
    assert (code, err) == (1, "")
    assert (
        out
        == f"""\
benchmark  metric  old.json  new.json  change                      verdict
a          time    1 s       2 s       +100.0% [+100.0%, +100.0%]  regression

1 regression; {SUMMARY}
"""
    )


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["old.json", "new.json"], 1),
        (["new.json", "old.json"], 0),
        (["old.json", "new.json", "--threshold", "100%"], 0),
        (["old.json", "new.json", "--threshold", "time=100%"], 0),
        (["old.json", "new.json", "--threshold", "100%", "--threshold", "t*=99.9%"], 1),
        (["old.json", "new.json", "--metric", "user"], 0),
        (["old.json", "new.json", "--metric", "user", "--strict"], 1),
        (["old.json", "old.json", "--metric", "time", "--strict"], 0),
        (["duet.json"], 1),
        (["duet.json", "--threshold", "15%"], 0),
    ],
)
def test_exit_codes(files: Files, words: list[str], code: int) -> None:
    assert files.call(*words)[::2] == (code, "")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "give two reports, or one of a duet, not 0"),
        (["a", "b", "c"], 2, "give two reports, or one of a duet, not 3"),
        (["old.json"], 2, "old.json: not a duet's report: give the new report, too"),
        (["a", "b", "--threshold", "5"], 2,
         "--threshold '5': write it as 5%, or as time=2%"),
        (["a", "b", "--threshold", "x=nan%"], 2,
         "--threshold 'x=nan%': write it as 5%, or as time=2%"),
        (["a", "b", "--threshold=-1%"], 2,
         "--threshold '-1%': write it as 5%, or as time=2%"),
        (["a", "b", "--json", "-", "--markdown", "-"], 2,
         "--json - and --markdown -: stdout takes one of them"),
        (["no.json", "new.json"], 3, "no.json: No such file or directory"),
        (["old.json", "text.json"], 3,
         "text.json: not a report: make one by pyvmm bench --json FILE"),
        (["one.json", "nan.json"], 3,
         "nan.json: benchmarks[0]: series.time: samples[0][0]: nan is not a finite number"),
        (["old.json", "other.json"], 3,
         "old.json, other.json: no benchmark and metric in common"),
        (["old.json", "new.json", "--markdown", "no/m.md"], 125,
         "no/m.md: cannot be written: No such file or directory"),
    ],
)  # fmt: skip
def test_errors(files: Files, words: list[str], code: int, message: str) -> None:
    assert files.call(*words) == (code, "", f"pyvmm: {message}\n")


def test_a_single_run_each(files: Files) -> None:
    code, out, err = files.call("one.json", "one.json")
    assert (code, out.splitlines()[-1]) == (3, f"1 unsure; {SUMMARY}")
    few = "pyvmm: warning: a: 1 run in one.json, too few for an interval: make 8 or more\n"
    assert err == few * 2 + (
        "pyvmm: too few runs for an interval, so nothing was judged: make 8 or more, by --runs\n"
    )


def test_files(files: Files) -> None:
    code, out, _ = files.call("old.json", "new.json", "--json", "c.json", "--markdown", "c.md")
    assert (code, out.splitlines()[-1]) == (1, f"1 regression, 1 unsure; {SUMMARY}")
    saved = json.loads((files.path / "c.json").read_text())
    assert (saved["format"], saved["version"]) == ("pyvmm-comparison", 1)
    assert [row["verdict"] for row in saved["rows"]] == ["regression", "unsure"]
    text = (files.path / "c.md").read_text()
    assert text.startswith(f"### Benchmarks: 1 regression, 1 unsure; {SUMMARY}\n")
    assert files.call("old.json", "new.json", "--markdown", "-") == (1, text, "")
    assert files.call("old.json", "new.json", "--json", "-") == (
        1, (files.path / "c.json").read_text(), "",
    )  # fmt: skip


def test_in_github_actions(files: Files) -> None:
    hostile = "::set-env name=A::b"
    for name, value in (("old.json", 1.0), ("new.json", 2.0)):
        files.save(name, report(hostile, time=series(steady(value))))
    summary = files.path / "summary.md"
    summary.write_text("before\n")
    code, out, err = files.call(
        "old.json", "new.json", GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(summary)
    )
    assert (code, err) == (1, "")
    first, *lines = out.splitlines()
    token = first.removeprefix("::stop-commands::")
    assert len(token) == 32
    assert [line for line in lines if line.startswith("::")] == [
        f"{hostile}  time    1 s       2 s       +100.0% [+100.0%, +100.0%]  regression",
        f"::{token}::",
        f"::error title=Regression::{hostile}: time: 1 s to 2 s: +100.0%25 [+100.0%25, +100.0%25]",
    ]
    assert lines[-2] == f"::{token}::"
    files.call("old.json", "new.json", "--markdown", "m.md")
    assert summary.read_text() == "before\n" + (files.path / "m.md").read_text()


def test_no_summary_file(files: Files) -> None:
    _, out, err = files.call("one.json", "one.json", GITHUB_ACTIONS="true")
    assert out.splitlines()[-1] == (
        "::warning title=What else differs::"
        + "%0A".join(["a: 1 run in one.json, too few for an interval: make 8 or more"] * 2)
    )
    assert err == (
        "pyvmm: too few runs for an interval, so nothing was judged: make 8 or more, by --runs\n"
    )
