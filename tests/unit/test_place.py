"""Where benchmarks' VMs go on a host of a known number of CPUs."""

from __future__ import annotations

import pytest

from pyvmm import placement
from pyvmm.benchmark import place
from pyvmm.benchmark.place import settle
from pyvmm.errors import HostError, UsageError
from pyvmm.options import Options

BEST, OTHERS = [2, 3, 4, 5, 6, 7], [0, 1]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 GiB in huge pages."""

    def check(_size: str, memory: int, _node: int | None, _sysfs: str) -> None:
        if memory > 1 << 30:
            raise HostError("too few")

    monkeypatch.setattr(placement, "_check_pages", check)


@pytest.mark.usefixtures("host")
def test_vcpus_get_the_last_cpus() -> None:
    vms: list[Options] = [{"vcpus": 2}, {}]
    assert settle(vms, BEST, OTHERS, alive=1, at_once=False) == []
    common = {"prefault": True, "hugepages": "2M"}
    assert vms == [
        {"vcpus": 2, "cpus": "2,3,0,1", **common},
        {"cpus": "2,0,1", **common},
    ]


@pytest.mark.usefixtures("host")
def test_at_once_each_has_its_own() -> None:
    vms: list[Options] = [{"vcpus": 2}, {"vcpus": 2}]
    assert settle(vms, BEST, OTHERS, alive=2, at_once=True) == []
    assert [vm["cpus"] for vm in vms] == ["2,3,0,1", "4,5,0,1"]


@pytest.mark.usefixtures("host")
def test_no_cpu_left() -> None:
    vms: list[Options] = [{"vcpus": 8}]
    assert settle(vms, BEST, OTHERS, alive=1, at_once=False) == [
        "no CPU is left beside 8 for vCPUs: pyvmm's own work runs on them, too"
    ]
    assert vms[0]["cpus"] == "2,3,4,5,6,7,1,0"


@pytest.mark.usefixtures("host")
def test_more_vcpus_than_cpus() -> None:
    vms: list[Options] = [{"vcpus": 9}]
    assert settle(vms, BEST, OTHERS, alive=1, at_once=False) == []
    assert "cpus" not in vms[0]
    with pytest.raises(UsageError) as error:
        settle([{"vcpus": 5}, {"vcpus": 4}], BEST, OTHERS, alive=2, at_once=True)
    assert str(error.value) == "VMs at once with 9 vCPUs in all: there are 8 CPUs"


@pytest.mark.usefixtures("host")
def test_what_is_said_stays() -> None:
    said: Options = {"cpus": "3", "prefault": False, "hugepages": "1G"}
    vms = [Options(**said), Options(numa_node=0)]
    assert settle(vms, BEST, OTHERS, alive=1, at_once=False) == []
    assert vms == [said, {"numa_node": 0, "prefault": True, "hugepages": "2M"}]


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(("memory", "alive"), [("3G", 1), ("512M", 3), ("65M", 1)])
def test_too_few_huge_pages(memory: str, alive: int) -> None:
    vms: list[Options] = [{"memory": memory}]
    settle(vms, BEST, OTHERS, alive=alive, at_once=False)
    assert "hugepages" not in vms[0]


@pytest.mark.usefixtures("host")
def test_no_others() -> None:
    """Of a cpuset partition's CPUs those left over do the rest."""
    vms: list[Options] = [{"vcpus": 2}]
    assert settle(vms, BEST, [], alive=1, at_once=False) == []
    assert vms[0]["cpus"] == "2,3,4,5,6,7"


@pytest.mark.usefixtures("host")
def test_at_once_a_list_is_shared_out() -> None:
    vms: list[Options] = [{"cpus": "4-7"}, {"cpus": "4-7"}]
    assert settle(vms, BEST, OTHERS, alive=2, at_once=True) == []
    assert [vm["cpus"] for vm in vms] == ["4,6,7", "5,6,7"]
    with pytest.raises(UsageError) as error:
        settle([{"cpus": "0"}, {"cpus": "0"}], BEST, OTHERS, alive=2, at_once=True)
    assert str(error.value) == "VMs at once with 2 vCPUs in all: there are 1 CPUs"


@pytest.mark.usefixtures("host")
def test_a_kernel_that_cannot_prefault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "can_prefault", lambda: False)
    vms: list[Options] = [{}]
    assert settle(vms, BEST, OTHERS, alive=1, at_once=False) == [
        "guest memory is not there before the clock starts: needs Linux 5.14"
    ]
    assert vms[0]["prefault"] is False
