"""Which CPUs are the benchmark's, for hosts of many shapes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from pyvmm.tune.partition import host_layout, layout, mask

from .host_tree import CPU, HostTree


def pairs(cores: int) -> dict[int, Sequence[int]]:
    """As Linux numbers them: first all cores, then their second threads."""
    return {cpu: (cpu % cores, cpu % cores + cores) for cpu in range(2 * cores)}


def neighbours(cpus: int) -> dict[int, Sequence[int]]:
    """As some hypervisors number them."""
    return {cpu: (cpu & ~1, cpu | 1) for cpu in range(cpus)}


@pytest.mark.parametrize(
    ("cpus", "siblings", "nodes", "best", "rest"),
    [
        ([0], {}, {}, [0], []),
        ([0, 1], {}, {}, [1], [0]),
        ([0, 1], neighbours(2), {}, [0, 1], []),
        ([2, 5, 9], {}, {}, [5, 9], [2]),
        (range(7), {}, {}, [1, 2, 3, 4, 5, 6], [0]),
        (range(8), {}, {}, [2, 3, 4, 5, 6, 7], [0, 1]),
        (range(8), pairs(4), {}, [1, 2, 3, 5, 6, 7], [0, 4]),
        (range(8), neighbours(8), {}, [2, 4, 6, 3, 5, 7], [0, 1]),
        (range(4), pairs(4), {}, [1, 2, 3], [0]),  # SMT is off
        ([1, 2, 3, 5], pairs(4), {}, [2, 3], [1, 5]),
        (range(8), {}, {0: [0, 1, 2, 3], 1: [4, 5, 6, 7]}, [4, 5, 6, 7, 2, 3], [0, 1]),
        (range(6), {}, {0: [0, 1, 2, 3], 1: [4, 5]}, [1, 2, 3, 4, 5], [0]),
        (range(5), {}, {0: [0, 1, 2], 1: [3, 4]}, [1, 2, 3, 4], [0]),  # as many: the first
        (range(8), pairs(4), {0: [0, 1, 4, 5], 1: [2, 3, 6, 7]}, [2, 3, 1, 6, 7, 5], [0, 4]),
    ],
)  # fmt: skip
def test_layout(
    cpus: Sequence[int],
    siblings: dict[int, Sequence[int]],
    nodes: dict[int, list[int]],
    best: list[int],
    rest: list[int],
) -> None:
    assert layout(cpus, siblings, nodes) == (best, rest)


def test_every_cpu_has_one_place() -> None:
    chance = random.Random(1)
    for _ in range(300):
        cores = chance.randrange(1, 40)
        cpus = chance.sample(range(2 * cores), chance.randrange(1, 2 * cores + 1))
        split = chance.randrange(0, cores + 1)
        nodes = {n: [c for c in range(2 * cores) if (c % cores >= split) == n] for n in (0, 1)}
        benchmark, housekeeping = layout(cpus, pairs(cores), nodes)
        assert sorted(benchmark + housekeeping) == sorted(cpus)
        assert not {c % cores for c in benchmark} & {c % cores for c in housekeeping}
        assert benchmark != []


def test_of_a_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = HostTree(tmp_path, monkeypatch)
    assert host_layout(host.path) == ([1, 3], [0, 2])
    host.put("sys/devices/system/node/node0/cpulist", "0-1")
    host.put("sys/devices/system/node/node10/cpulist", "2-3")
    host.put("sys/devices/system/node/node2/cpulist", "")
    for cpu in range(4):
        host.put(f"{CPU}/cpu{cpu}/topology/thread_siblings_list", str(cpu))
    assert host_layout(host.path) == ([2, 3, 1], [0])
    assert host_layout(str(tmp_path / "nowhere")) == ([0], [])


@pytest.mark.parametrize(
    ("cpus", "like", "text"),
    [
        ([0], "f", "1"),
        ([0, 1], "ff", "03"),
        ([0], "ffffffff,ffffffff", "00000000,00000001"),
        ([33], "f,ffffffff", "2,00000000"),
        ([0, 35, 64], "ff,ffffffff,ffffffff", "01,00000008,00000001"),
    ],
)
def test_mask(cpus: list[int], like: str, text: str) -> None:
    assert mask(cpus, like) == text
