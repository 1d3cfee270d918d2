"""The rank tests, against scipy's."""

from __future__ import annotations

import random

import pytest
from scipy import stats

from pyvmm.benchmark import ranks

SIZES = [(1, 1), (2, 3), (5, 5), (8, 30), (30, 30), (50, 50), (51, 50), (100, 7)]


def sample(draw: random.Random, n: int, tied: bool) -> list[float]:
    return [draw.randint(-5, 9) if tied else draw.gauss(0.3, 1) for _ in range(n)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_mann_whitney(n: int, m: int, tied: bool, seed: int) -> None:
    draw = random.Random(seed)
    old, new = sample(draw, n, tied), sample(draw, m, tied)
    exact = max(n, m) <= ranks.EXACT and len({*old, *new}) == n + m
    method = "exact" if exact else "asymptotic"
    if len({*old, *new}) == 1:
        assert ranks.mann_whitney(old, new) == 1.0  # scipy's is not a number
        return
    p = stats.mannwhitneyu(old, new, method=method).pvalue
    assert ranks.mann_whitney(old, new) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 20, 50, 51, 120])
def test_wilcoxon(n: int, tied: bool, seed: int) -> None:
    differences = sample(random.Random(seed), n, tied)
    kept = [each for each in differences if each]
    if not kept:
        assert ranks.wilcoxon(differences) == 1.0
        return
    exact = len(kept) <= ranks.EXACT and len({abs(each) for each in kept}) == len(kept)
    p = stats.wilcoxon(kept, correction=True, method="exact" if exact else "asymptotic").pvalue
    assert ranks.wilcoxon(differences) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("n", [2, 3, 5, 8, 20, 50, 51, 120])
def test_mann_kendall(n: int, tied: bool, seed: int) -> None:
    values = sample(random.Random(seed), n, tied)
    exact = n <= ranks.EXACT and len(set(values)) == n
    if len(set(values)) == 1:
        assert ranks.mann_kendall(values) == 1.0
        return
    method = "exact" if exact else "asymptotic"
    p = stats.kendalltau(range(n), values, method=method).pvalue
    assert ranks.mann_kendall(values) == pytest.approx(p, rel=1e-9)


def test_known() -> None:
    """By hand: of 252 ways to choose 5 of 10, of 2^8 signs, of 5! orders, 2 are as extreme."""
    assert ranks.mann_whitney([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(2 / 252)
    assert ranks.wilcoxon([1, 2, 3, 4, 5, 6, 7, 8]) == 2 / 2**8
    assert ranks.mann_kendall([1, 2, 3, 4, 5]) == 2 / 120


def test_nothing() -> None:
    assert ranks.wilcoxon([]) == 1.0
    assert ranks.wilcoxon([0.0, 0.0]) == 1.0
    assert ranks.mann_kendall([1.0]) == 1.0
    assert ranks.mann_whitney([3.0] * 5, [3.0] * 5) == 1.0
