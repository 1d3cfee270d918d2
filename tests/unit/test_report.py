"""A worker's report, from one that may have been taken over."""

from __future__ import annotations

from typing import Any

import pytest

from pyvmm import report
from pyvmm.errors import GuestError
from pyvmm.quick_json import dumps

ENDED: dict[str, Any] = {
    "end": "reset", "kvm_exit": 2, "errno": 0, "detail": [0, 0, 0], "times": {"ready": 1},
    "exits": {"mmio": 3}, "kvm_exits": 9, "marks": {"init": {"time_ns": 5, "exits": 1}},
    "walls": {"root": "empty, read-only"},
}  # fmt: skip
FAILED = {"end": "failed", "error": "HostError", "message": "no"}


@pytest.mark.parametrize("said", [ENDED, ENDED | {"registers": "rip=0"}, FAILED])
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
                ENDED | {"more": 1},
                ENDED | {"kvm_exits": True},
                ENDED | {"kvm_exits": 1 << 64},
                ENDED | {"kvm_exits": -(1 << 63) - 1},
                ENDED | {"kvm_exits": 1.5},
                ENDED | {"detail": {}},
                ENDED | {"detail": ["0"]},
                ENDED | {"times": []},
                ENDED | {"times": {"ready": "1"}},
                ENDED | {"marks": {"init": 1}},
                ENDED | {"walls": {"root": None}},
                FAILED | {"message": None},
                {name: ENDED[name] for name in ENDED if name != "walls"},
            )
        ),
    ],
)  # fmt: skip
def test_what_is_none(said: bytes) -> None:
    with pytest.raises(GuestError) as error:
        report.read(said)
    text = "the VM's process sent a report that is none: it may have been taken over"
    assert str(error.value) == text
