"""The order, number and end of runs, and what is kept of them; no VM is made."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pyvmm.benchmark import runner as module
from pyvmm.benchmark.runner import Runner, Schedule
from pyvmm.benchmark.subject import Subject
from pyvmm.errors import BenchmarkError, UsageError
from pyvmm.results import Result

MARK = {"time_ns": 0, "exits": 1, "kvm_exits": 5}


def result(seconds: float = 1.0, **more: Any) -> Result:
    """Of a run in a VM of its own."""
    made = Result(timings={"program": seconds}, marks={"program": MARK, "ended": MARK})
    for name, value in more.items():
        setattr(made, name, value)
    return made


class Fake:
    """Machines whose runs' results are a script's; an exception in it is raised."""

    def __init__(self, script: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.script, self.made, self.digest = script, 0, ""
        monkeypatch.setattr(module, "Machine", self.machine)

    def machine(self, *_words: object, **_options: object) -> Any:
        self.made += 1
        return self

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def wait(self) -> Result:
        said = self.script.pop(0)
        if isinstance(said, BaseException):
            raise said
        assert isinstance(said, Result)
        return said

    again = wait


def start(names: str = "a", **schedule: Any) -> Runner:
    subjects = [Subject(name, "image", None) for name in names]
    return Runner(subjects, Schedule(**{"warmup": 0, "seed": 1} | schedule))


def times(runner: Runner) -> list[list[list[float]]]:
    return [each.series["time"].samples if each.series else [] for each in runner.report.benchmarks]


@pytest.mark.parametrize(("mode", "machines"), [("fresh-vm", 3), ("same-vm", 1)])
def test_warm_ups_do_not_count(mode: str, machines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake([result(9), result(1), result(2)], monkeypatch)
    runner = start(runs=2, warmup=1, mode=mode)
    runner.run()
    assert times(runner) == [[[1], [2]]]
    assert [run.warmup for run in runner.report.benchmarks[0].runs] == [True, False, False]
    assert fake.made == machines


def test_another_image_under_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake([result(1)], monkeypatch)
    fake.digest = "sha256:1"
    with pytest.raises(BenchmarkError) as error:
        start().run()
    assert str(error.value) == "run 1 of a: the image has changed meanwhile: sha256:1"


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(143), BenchmarkError("no")])
def test_an_end_within_a_pair(end: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the pair nothing is kept: what is left can be judged."""
    Fake([result(), result(), result(), end], monkeypatch)
    runner = start("ab", runs=5, together=True)
    with pytest.raises(type(end)):
        runner.run()
    assert times(runner) == [[[1.0]], [[1.0]]]
    assert [len(each.runs) for each in runner.report.benchmarks] == [1, 1]


def test_an_end_without_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    Fake([result(), result(), result(), KeyboardInterrupt()], monkeypatch)
    runner = start("ab", runs=5)
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    assert sorted(len(samples) for samples in times(runner)) == [1, 2]


def test_until_the_interval_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    Fake([result(1.0)] * 10, monkeypatch)
    runner = start(runs=1, until_ci=0.01)
    runner.run()
    assert len(times(runner)[0]) == 10
    assert runner.report.warnings == []


def test_until_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it was not reached is said."""
    Fake([result(1.0 + n) for n in range(12)], monkeypatch)
    runner = start(runs=1, until_ci=0.01, max_runs=12)
    runner.run()
    assert len(times(runner)[0]) == 12
    assert runner.report.warnings == [
        "a: after 12 runs (--max-runs) the interval is not within 0.01 of the median"
    ]


def test_pairs_until_the_interval_of_their_ratio_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """However far apart the pairs are."""
    Fake([result(1.0 + n // 2) for n in range(20)], monkeypatch)
    runner = start("ab", runs=1, until_ci=0.01, together=True)
    runner.run()
    assert times(runner) == [[[1.0 + n] for n in range(10)]] * 2


@pytest.mark.parametrize("names", ["a", "abc"])
def test_rounds_of_one_and_of_three(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As calibrate() makes them."""
    Fake([result()] * 2 * len(names), monkeypatch)
    runner = start(names, runs=2, together=True)
    runner.run()
    assert times(runner) == [[[1.0], [1.0]]] * len(names)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"truncated": ["stdout"]}, "run 1 of a: stdout: longer than --max-output, cut there"),
        ({"out_of_memory": True, "exit_code": 137},
         "run 1 of a: the guest ran out of memory and killed a process: give it more (--memory)"),
        ({"exit_code": 1, "stderr": b"why\n"},
         "run 1 of a: the program ended with 1, saying 'why'"),
        ({"timed_out": True}, "run 1 of a: timed out; give it longer by --timeout"),
    ],
)  # fmt: skip
def test_a_run_that_is_none(
    bad: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fake([result(**bad)], monkeypatch)
    with pytest.raises(BenchmarkError) as error:
        start().run()
    assert str(error.value) == message


def test_a_counter_that_a_run_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark goes on, and says why it has none."""
    have = {"counters": {"instructions": 7, "cycles": 9}}
    lack = {"counters": {"cycles": 9}, "counters_unavailable": {"instructions": "others"}}
    Fake([result(**have), result(**lack), result(**have)], monkeypatch)
    runner = start(runs=3)
    (one,) = runner.run().benchmarks
    assert one.series["cycles"].samples == [[9]] * 3
    assert "instructions" not in one.series
    assert one.unavailable == {"instructions": "not in every run: others"}


def test_exits_that_kvm_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = {name: MARK | {"kvm_exits": 0} for name in ("program", "ended")}
    Fake([result(marks=marks)], monkeypatch)
    (one,) = start(runs=1).run().benchmarks
    assert one.unavailable == {"exits": "this host's KVM does not count them: needs Linux 5.14"}
    assert one.series["user_exits"].samples == [[0]]


def test_a_signal_ends_runs_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not waited for."""
    stopped = threading.Semaphore(0)

    class Slow(Fake):
        def wait(self) -> Result:
            assert stopped.acquire(timeout=60)
            raise BenchmarkError("stopped")

        def stop(self) -> None:
            stopped.release()

    def interrupted(runs: list[Any]) -> None:
        while not all(run.running() for run in runs):
            pass
        while fake.made < 2:
            pass
        raise KeyboardInterrupt

    fake = Slow([], monkeypatch)
    monkeypatch.setattr(module, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start("ab", runs=1, together=True, at_once=True).run()


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"runs": 6, "max_runs": 5}, "at most 5 runs, and at least 6: --max-runs"),
        ({"runs": 0}, "0 runs: must be 1 or more"),
    ],
)
def test_what_cannot_be_meant(schedule: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Schedule(**schedule).check()
    assert str(error.value) == message
