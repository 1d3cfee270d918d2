"""pyvmm bench, duet and compare with real guests: real tools' numbers, real reports."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from harness import IMAGES, Host

import pyvmm
from pyvmm.benchmark.model import Report
from pyvmm.benchmark.statistics import summarize

SHELL = IMAGES / "shell"
TOOLS = IMAGES / "trees" / "benchmarks"
SMALL = ("--memory", "128M", "--kernel", "minimal")
COUNTERS = {"instructions", "cycles", "branches", "branch_misses", "cache_misses"}
OWN = {
    "time", "user", "system", "peak_memory", "minor_faults", "major_faults", "voluntary_switches",
    "involuntary_switches", "block_in", "block_out", "steal",
}  # fmt: skip


def bench(host: Host, *words: str | Path, code: int = 0) -> tuple[Report | None, str]:
    """What was measured, and what was said on stderr but for progress."""
    path = host.place / f"report{host.runs}.json"
    done = host.pyvmm("bench", "--json", path, *SMALL, *words).finish()
    said = "".join(
        line
        for line in done.err.decode().splitlines(keepends=True)
        if "layer" not in line and "writing" not in line and "no CPU is left" not in line
    )
    assert (done.code, said if code else "") == (code, said if code else ""), said
    return (Report.load(path) if path.exists() else None), said


def test_what_is_measured(host: Host) -> None:
    report, _ = bench(
        host, "--runs", "3", "--warmup", "1", "--name", "shell", SHELL,
        "--metric", r"score=score (\S+)", "--", "sh", "-c", "echo score 42; echo score 44",
    )  # fmt: skip
    assert report
    (one,) = report.benchmarks
    assert (one.name, one.image, one.mode) == ("shell", str(SHELL), "fresh-vm")
    assert one.command == ["sh", "-c", "echo score 42; echo score 44"]
    assert [(run.warmup, run.exit_code, run.order) for run in one.runs] == [
        (True, 0, 0), (False, 0, 1), (False, 0, 2), (False, 0, 3),
    ]  # fmt: skip
    assert one.series["score"].samples == [[42.0, 44.0]] * 3
    assert one.series.keys() | one.unavailable.keys() >= OWN | {"score", "exits", "user_exits"}
    assert {len(series.samples) for series in one.series.values()} == {3}
    assert all(value > 0 for value in one.series["time"].values)
    assert all(0 <= value < 1000 for value in one.series["user_exits"].values)
    assert (summarize(one.series["time"].values).interval is None) is True  # of three runs
    facts = {"CPU", "host kernel", "guest kernel", "clock source", "pyvmm"}
    assert facts <= report.fingerprint.keys()


@pytest.mark.parametrize(
    ("command", "output", "adapter", "names"),
    [
        (
            ["hyperfine", "-N", "--runs", "3", "--export-json", "/tmp/h.json", "true", "sleep 0"],
            "/tmp/h.json",
            "hyperfine",
            {"true": 3, "sleep 0": 3},
        ),
        (
            ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider",
             "--benchmark-json=/tmp/b.json", "test_speed.py"],
            "/tmp/b.json",
            "pytest-benchmark",
            {"test_speed.py::test_sum": 5},
        ),
        (
            ["google-benchmark", "--benchmark_format=json"],
            None,
            "google-benchmark",
            {"BM_sum/10/iterations:100": 1, "BM_sum/1000/iterations:100": 1},
        ),
    ],
    ids=["hyperfine", "pytest-benchmark", "google-benchmark"],
)  # fmt: skip
def test_real_tools(
    host: Host, command: list[str], output: str | None, adapter: str, names: dict[str, int]
) -> None:
    outputs = ["--output", output] if output else []
    report, _ = bench(
        host, "--runs", "2", "--warmup", "0", "--memory", "256M", *outputs, TOOLS, "--", *command
    )
    assert report
    (one,) = report.benchmarks
    assert one.adapter == adapter
    own = {name: series for name, series in one.series.items() if series.source == adapter}
    assert {name: len(own[name].samples[0]) for name in names} == names
    assert all(len(series.samples) == 2 for series in own.values())


def test_the_same_vm(host: Host) -> None:
    report, _ = bench(
        host, "--same-vm", "--runs", "6", "--param", "n=1,2", SHELL,
        "--metric", "n=n=(.*)", "--", "sh", "-c", "echo n={n}",
    )  # fmt: skip
    assert report
    assert [each.name for each in report.benchmarks] == ["shell [n=1]", "shell [n=2]"]
    for each, n in zip(report.benchmarks, (1.0, 2.0), strict=True):
        assert each.mode == "same-vm"
        assert each.series["n"].samples == [[n]] * 6
        interval = summarize(each.series["time"].values).interval
        assert interval
        assert interval.low <= interval.high
        assert each.unavailable["exits"].endswith("(--fresh-vm)")
    orders = sorted(run.order for each in report.benchmarks for run in each.runs)
    assert orders == list(range(14))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--", "sh", "-c", "echo why >&2; exit 7"], 3,
         "pyvmm: run 1 of shell: the program ended with 7, saying 'why'\n"),
        (["--", "none"], 3,
         'pyvmm: run 1 of shell: exec: "none": executable file not found in $PATH\n'),
        (["--timeout", "0.5", "--", "sleep", "9"], 3,
         "pyvmm: run 1 of shell: timed out; give it longer by --timeout\n"),
        (["--output", "/none", "--", "true"], 3,
         "pyvmm: run 1 of shell: output /none: No such file or directory\n"),
        (["--main", "speed", "--", "true"], 3,
         "pyvmm: run 1 of shell: no metric 'speed'; there are "),
        (["--runs", "0", "--", "true"], 2, "pyvmm: 0 runs: must be 1 or more\n"),
        (["--adapter", "none", "--", "true"], 2,
         "pyvmm: --adapter none: must be one of pytest-benchmark, hyperfine, pyperf, "
         "google-benchmark, criterion, go, jmh, bmf\n"),
        (["--adapter", "hyperfine", "--", "true"], 3,
         "pyvmm: run 1 of shell: hyperfine: no data of it in stdout, stderr: "
         "run it with --export-json FILE, and pyvmm with --output FILE\n"),
        (["--metric", "x=x=(.*)", "--", "echo", "x=nan"], 3,
         "pyvmm: run 1 of shell: metric: x: nan is not a finite number\n"),
        (["--metric", "x=x=(.*)", "--", "true"], 3,
         "pyvmm: run 1 of shell: --metric x: nothing matches 'x=(.*)' in stdout, stderr\n"),
        (["--json", "/none/x", "--", "true"], 2, "pyvmm: /none/x: cannot be written\n"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured(host: Host, words: list[str], code: int, said: str) -> None:
    report, found = bench(host, "--runs", "1", "--warmup", "0", SHELL, *words, code=code)
    assert (report, found[: len(said)]) == (None, said)
    assert found.count("\n") == 1


def test_runs_before_a_failure_are_kept(host: Host) -> None:
    """The third run of one VM fails."""
    script = "echo >>/n; test $(wc -l </n) != 3"
    report, said = bench(
        host, "--same-vm", "--runs", "5", "--warmup", "0", SHELL, "--", "sh", "-c", script, code=3
    )
    assert said == (
        "pyvmm: run 3 of shell: the program ended with 1\n"
        "pyvmm: warning: ended early: these are the runs until then\n"
    )
    assert report
    assert len(report.benchmarks[0].series["time"].samples) == 2


def test_duet_and_compare(host: Host) -> None:
    """What sleeps for a second is slower; the report compared with itself is not."""
    old, new = host.place / "old.json", host.place / "new.json"
    for path, program in ((old, ["true"]), (new, ["sleep", "1"])):
        done = host.pyvmm(
            "bench", "--same-vm", "--runs", "8", "--json", path, *SMALL, SHELL,
            "--", *program,
        ).finish()  # fmt: skip
        assert done.code == 0
    assert host.pyvmm("compare", "--metric", "time", old, new).finish().code == 1
    assert host.pyvmm("compare", "--metric", "time", old, old).finish().code == 0
    pair = host.place / "pair.json"
    done = host.pyvmm(
        "duet", "--runs", "8", "--json", pair, *SMALL, SHELL, SHELL, "--", "true"
    ).finish()
    assert done.code == 0
    report = Report.load(pair)
    assert report.duet == ["A shell", "B shell"]
    assert [len(each.series["time"].samples) for each in report.benchmarks] == [8, 8]
    # In every pair both ran, in an order of its own.
    orders = [[run.order // 2 for run in each.runs] for each in report.benchmarks]
    assert orders == [list(range(9))] * 2


def test_by_the_library(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(host.temporary))
    seen = []
    report = pyvmm.bench(
        SHELL, ["true"], runs=2, warmup=0, memory="128M", kernel="minimal",
        progress=lambda each: seen.append(len(each.runs)),
    )  # fmt: skip
    assert seen == [1, 2]
    assert len(report.benchmarks[0].series["time"].values) == 2
    assert json.loads(report.to_json())["format"] == "pyvmm-benchmark"


def test_calibrate(host: Host) -> None:
    done = host.pyvmm("bench", "--calibrate", "--runs", "12", *SMALL).finish()
    lines = done.out.decode().splitlines()
    assert done.code in (0, 1)  # what this host can see is its own
    assert lines[0].startswith("12 runs of the same work: ")
    assert lines[1].startswith(("least change to be seen by as many of each: ", "  "))
    counts = [line.partition(": ") for line in lines if line.startswith("runs of each to see ")]
    assert [name for name, _, _ in counts] == [f"runs of each to see {n}%" for n in (5, 2, 1)]
    assert sorted(int(count) for _, _, count in counts) == [int(count) for _, _, count in counts]


def test_tuned_meanwhile(host: Host) -> None:
    """Swappiness is 1 while it runs, and what it was before afterwards."""
    setting = Path("/proc/sys/vm/swappiness")
    before = setting.read_text()
    running = host.pyvmm(
        "bench", "--tune", "--runs", "1", "--warmup", "0", *SMALL, SHELL, "--", "sleep", "5"
    )
    while (found := setting.read_text()) == before and running.process.poll() is None:
        time.sleep(0.05)
    assert (found, before) == ("1\n", "60\n"), running.text()
    assert running.finish().code == 0
    assert setting.read_text() == before


PLUGIN = """
import pytest

@pytest.mark.vm(image={image!r}, memory="128M", kernel="minimal")
class TestIt:
    def test_run(self, vm):
        assert vm(["echo", "x"]).stdout == b"x\\n"

    @pytest.mark.vm(vcpus=2)
    def test_marks_add(self, vm):
        assert vm(["nproc"]).stdout == b"2\\n"

    def test_speed(self, benchmark_vm):
        report = benchmark_vm(["true"], runs=2, warmup=0)
        assert report.benchmarks[0].name == "test_it.py::TestIt::test_speed"

def test_no_image(vm):
    vm(["true"])
"""


def test_pytest_plugin(host: Host) -> None:
    import subprocess
    import sys

    (host.place / "test_it.py").write_text(PLUGIN.format(image=str(SHELL)))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "--benchmark-vm-json=b.json", "test_it.py"],
        cwd=host.place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("1 failed, 3 passed"), done.stdout
    assert "UsageError: which image? Say @pytest.mark.vm(image=…), or image=…" in done.stdout
    document = json.loads((host.place / "b.json").read_text())
    (one,) = document["benchmarks"]
    assert (one["name"], one["stats"]["rounds"]) == ("test_it.py::TestIt::test_speed", 2)
