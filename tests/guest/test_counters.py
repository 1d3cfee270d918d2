"""--counters: from perf_event_open(2) before the walls to the Result, counted exactly.

No machine that the tests know has counters in its CPU; KVM's tracepoints go the same way.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from harness import IMAGES, Host

import pyvmm
from pyvmm import counters

sys.path.append(str(Path(__file__).parents[1] / "kvm"))

from tracepoint import tracepoint

SOFTWARE, DUMMY, NONE = 1, 9, 99  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY
MISSING = f"perf_event_open: ENOENT: {counters.NO_COUNTER}"
PMU = Path("/sys/bus/event_source/devices/cpu").exists()


@pytest.mark.parametrize("jail", ["on", "off"])
@pytest.mark.parametrize("vcpus", [1, 2])
def test_counted(host: Host, monkeypatch: pytest.MonkeyPatch, vcpus: int, jail: str) -> None:
    events = {
        "pio": tracepoint("kvm_pio"), "kvm_exit": tracepoint("kvm_exit"),
        "nothing": (SOFTWARE, NONE), "dummy": (SOFTWARE, DUMMY),
    }  # fmt: skip
    monkeypatch.setenv("TMPDIR", str(host.temporary))
    monkeypatch.setattr(counters, "EVENTS", events)
    result = pyvmm.run(
        IMAGES / "shell", ["sh", "-c", "busybox seq 999 | busybox tail -n 1"],
        kernel="minimal", vcpus=vcpus, jail=jail, counters=True,
    )  # fmt: skip
    assert (result.exit_code, result.stdout) == (0, b"999\n")
    begin, end = result.marks["program"], result.marks["ended"]
    exits = result.counters.pop("kvm_exit")
    # The program writes to no port: what is counted is the mark at its end.
    assert result.counters == {"pio": 1, "dummy": 0}
    assert end["pio"] - begin["pio"] == 1
    if vcpus == 1:  # else others go on while it is noted
        assert exits == end["kvm_exits"] - begin["kvm_exits"]
    assert result.counters_unavailable == {"nothing": MISSING}
    assert [w for w in result.warnings if "vCPUs share" not in w] == []


def test_what_this_cpu_has(host: Host) -> None:
    done = host.run("true", kernel="minimal", counters="", json="result.json")
    (path,) = host.place.glob("run*/result.json")
    found = json.loads(path.read_text())
    if PMU:
        assert found["counters"].keys() | found["counters_unavailable"].keys() >= {"instructions"}
        return
    assert found["counters"] == {}
    assert found["counters_unavailable"] == dict.fromkeys(counters.EVENTS, MISSING)
    names = ", ".join(counters.EVENTS)
    done.check(0, b"", f"pyvmm: {names}: not available here: {MISSING}\n".encode())
