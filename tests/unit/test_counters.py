"""What a worker says of the counters, in the Result."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from pyvmm import counters
from pyvmm.errors import GuestError
from pyvmm.results import Result

NO_PMU = (
    "perf_event_open: ENOENT: this machine's CPU shows no such counter; those of most virtual"
    " machines show none"
)


def count(count: int, enabled: int = 100, running: int = 100) -> dict[str, int]:
    return {"count": count, "enabled_ns": enabled, "running_ns": running}


def counter(user: int = 0, **marks: dict[str, int]) -> dict[str, Any]:
    return {"errno": 0, "user": user, "marks": marks}


def refused(number: int) -> dict[str, Any]:
    return {"errno": number, "user": 0, "marks": {}}


@pytest.fixture(autouse=True)
def events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "EVENTS", {"instructions": (0, 1), "cycles": (0, 0)})


def account(*said: dict[str, Any]) -> Result:
    result = Result(marks={name: {"exits": 0} for name in ("init", "program", "ended")})
    counters.account(result, {"counters": list(said)})
    return result


def test_from_the_programs_begin_to_its_end() -> None:
    result = account(
        counter(init=count(7, 1, 1), program=count(10), ended=count(52, 180, 180)),
        counter(user=1, program=count(0, 0, 0), ended=count(3)),
    )
    assert result.counters == {"instructions": 42, "cycles:u": 3}
    assert (result.counters_unavailable, result.warnings) == ({}, [])
    assert result.marks == {
        "init": {"exits": 0, "instructions": 7},
        "program": {"exits": 0, "instructions": 10, "cycles:u": 0},
        "ended": {"exits": 0, "instructions": 52, "cycles:u": 3},
    }
    assert counters.lines(result) == ["instructions: 42", "cycles:u: 3"]


def test_counters_that_were_shared() -> None:
    result = account(
        counter(program=count(10, 100, 50), ended=count(40, 500, 150)),
        counter(program=count(10), ended=count(40, 200, 200)),
    )
    assert result.counters == {"instructions": 120, "cycles": 30}
    assert result.warnings == [
        "instructions: estimated, the CPU's counters were shared: counted 25 % of the time"
    ]
    assert [mark.get("instructions") for mark in result.marks.values()] == [None, 20, 133]


@pytest.mark.parametrize(
    ("ended", "program"),
    [
        pytest.param(count(5, 200, 100), count(5, 100, 100), id="never"),
        pytest.param(count(5), count(5, 200, 200), id="marks in the wrong order"),
        pytest.param(count(4, 200, 200), count(5), id="less"),
    ],
)
def test_nothing_was_counted(ended: dict[str, int], program: dict[str, int]) -> None:
    result = account(
        counter(program=program, ended=ended), counter(program=count(1), ended=count(2, 200, 200))
    )
    assert result.counters == {"cycles": 1}
    assert result.counters_unavailable == {"instructions": counters.NOT_RUNNING}


def test_none_to_be_had() -> None:
    result = account(refused(errno.ENOENT), refused(errno.ENOENT))
    assert result.counters == {}
    assert result.counters_unavailable == {"instructions": NO_PMU, "cycles": NO_PMU}
    assert counters.lines(result) == [f"instructions, cycles: not available here: {NO_PMU}"]


def test_reasons() -> None:
    result = account(refused(errno.EACCES), refused(errno.EMFILE))
    assert result.counters_unavailable == {
        "instructions": "perf_event_open: EACCES: run as root, or set the sysctl"
        " kernel.perf_event_paranoid to 2 or less",
        "cycles": "perf_event_open: EMFILE: Too many open files",
    }
    result = account(refused(4095), counter(program=count(1)))
    assert result.counters_unavailable == {
        "instructions": "perf_event_open: 4095: Unknown error 4095",
        "cycles": "the guest did not mark the program's begin and end",
    }


def test_what_was_not_asked_for() -> None:
    with pytest.raises(GuestError) as error:
        account(refused(errno.ENOENT))
    assert str(error.value) == (
        "the VM's process sent a report of other counters than it was asked for"
    )
