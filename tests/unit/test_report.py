"""A worker's report, from one that may have been taken over."""

from __future__ import annotations

from typing import Any

import pytest

from pyvmm import report
from pyvmm.errors import GuestError
from pyvmm.quick_json import dumps

COUNT = {"count": 7, "enabled_ns": 9, "running_ns": 8}
COUNTER: dict[str, Any] = {"errno": 0, "user": 1, "marks": {"init": COUNT}}
MARK = {"time_ns": 5, "exits": 1, "kvm_exits": 2}
ENDED: dict[str, Any] = {
    "end": "reset", "kvm_exit": 2, "errno": 0, "detail": [0, 0, 0],
    "times": {"ready": 1, "made": 2, "loaded": 3, "start": 4},
    "exits": {"serial": 0, "pio": 1, "mmio": 3, "signal": 0, "other": 0},
    "kvm_exits": 9, "marks": {"init": MARK}, "counters": [],
}  # fmt: skip
CRASHED = ENDED | {"end": "crash", "registers": "rip=0"}
FAILED = {"end": "failed", "error": "HostError", "message": "no"}
WALLS = {"walls": {"root": "empty, read-only"}}


@pytest.mark.parametrize(
    "said", [ENDED, ENDED | {"counters": [COUNTER] * 2}, CRASHED, FAILED, WALLS]
)
def test_reports(said: dict[str, Any]) -> None:
    assert report.read(dumps(said).encode()) == said


def test_none() -> None:
    assert report.read(b"") == {}


@pytest.mark.parametrize(
    "said",
    [
        b"\xff", b"[" * 100_000, b"null", b"[]", b"{}", b'"reset"', b"1" * 5000,
        *(
            dumps(each).encode()
            for each in (
                ENDED | {"end": 1},
                ENDED | {"end": "failed"},
                ENDED | {"end": "crash"},
                ENDED | {"end": "else"},
                ENDED | {"registers": "rip=0"},
                ENDED | {"more": 1},
                ENDED | WALLS,
                ENDED | {"kvm_exits": True},
                ENDED | {"kvm_exits": 1 << 64},
                ENDED | {"kvm_exits": -1},
                ENDED | {"kvm_exits": 1.5},
                ENDED | {"errno": 1 << 40},
                ENDED | {"detail": {}},
                ENDED | {"detail": ["0"]},
                ENDED | {"times": []},
                ENDED | {"times": {"ready": 1}},
                ENDED | {"times": ENDED["times"] | {"begin": 1}},
                ENDED | {"exits": {}},
                ENDED | {"marks": {"init": 1}},
                ENDED | {"marks": {"init": {}}},
                ENDED | {"marks": {"begin": MARK}},
                ENDED | {"counters": [{}]},
                ENDED | {"counters": [COUNTER | {"user": True}]},
                ENDED | {"counters": [COUNTER | {"marks": {"init": {"count": 7}}}]},
                ENDED | {"counters": [COUNTER | {"marks": {"init": COUNT | {"count": -1}}}]},
                FAILED | {"message": None},
                FAILED | {"end": "errno"},
                {"walls": {"root": None}},
                {name: ENDED[name] for name in ENDED if name != "marks"},
            )
        ),
    ],
)  # fmt: skip
def test_what_is_none(said: bytes) -> None:
    with pytest.raises(GuestError) as error:
        report.read(said)
    text = "the VM's process sent a report that is none: it may have been taken over"
    assert str(error.value) == text
