"""A run's phases and their picture."""

from __future__ import annotations

import pytest

from pyvmm.results import Result
from pyvmm.timeline import PHASES, phases, picture

TIMES = {
    "process": 9.0, "begin": 10.0, "prepared": 10.5, "spawned": 10.5, "ready": 11.0, "made": 11.25,
    "loaded": 11.5, "start": 12.0, "init": 14.0, "program": 14.5, "ended": 16.5, "end": 17.0,
}  # fmt: skip


def test_each_begins_where_the_last_ended() -> None:
    found = phases(TIMES)
    assert [p["name"] for p in found] == [name for name, _, _ in PHASES]
    assert [p["at"] for p in found] == [0, 1, 1.5, 1.5, 2, 2.25, 2.5, 3, 5, 5.5, 7.5]
    assert [p["seconds"] for p in found] == [1, 0.5, 0, 0.5, 0.25, 0.25, 0.5, 2, 0.5, 2, 0.5]


def test_what_was_not_reached_is_left_out() -> None:
    few = {name: TIMES[name] for name in ("begin", "prepared", "spawned", "end")}
    assert phases(few) == [
        {"name": "prepare", "at": 0, "seconds": 0.5},
        {"name": "spawn", "at": 0.5, "seconds": 0},
        {"name": "collect", "at": 0.5, "seconds": 6.5},
    ]


@pytest.mark.parametrize("ascii_only", [False, True])
def test_picture(ascii_only: bool) -> None:
    result = Result(timeline=phases(TIMES), exits={"serial": 2, "pio": 1, "kvm": 9})
    block = "#" if ascii_only else "█"
    lines = picture(result, ascii_only=ascii_only).splitlines()
    assert lines[0] == f"   1000.0 ms  python   {block * 5:40} {PHASES[0][2]}"
    kernel = " " * 15 + block * 10
    assert lines[7] == f"   2000.0 ms  kernel   {kernel:40} {PHASES[7][2]}"
    assert lines[-2:] == ["   8000.0 ms  total", "exits to user space: 2 serial, 1 pio; all: 9"]
    # A phase of no time is still to be seen: until its end, half a column on.
    assert lines[2][23:63] == f"{' ' * 7 + ('#' if ascii_only else '▌'):40}"


def test_bars_never_leave_their_columns() -> None:
    odd = {"begin": 0.0, "prepared": 0.0, "spawned": 99.999, "end": 100.0}
    for line in picture(Result(timeline=phases(odd))).splitlines()[:-1]:
        assert len(line[23:63]) == 40
        assert line[63] == " "
