"""What ``make.sh`` runs under pytest-benchmark."""

from typing import Any

import pytest


@pytest.mark.parametrize("size", [10, 1000])
def test_sort(benchmark: Any, size: int) -> None:
    benchmark.pedantic(sorted, (range(size),), rounds=5, iterations=10)


def test_join(benchmark: Any) -> None:
    benchmark.pedantic("".join, ("abc",), rounds=3, iterations=10)
