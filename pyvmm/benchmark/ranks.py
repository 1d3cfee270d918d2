"""Tests by rank: p-values that do not ask what shape the noise has.

Two-sided all. Exact where no values tie and both samples are small, by counting the orders that are
as extreme or more; else by the normal approximation, with the correction for ties. Sources and
limits are in docs/statistics.md.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from math import comb, erfc, factorial, sqrt

EXACT = 50  # values of a sample up to which counting takes milliseconds


def mann_whitney(old: Sequence[float], new: Sequence[float]) -> float:
    """p of two independent samples: that a value of one is as likely above as below the other's."""
    n, m = len(old), len(new)
    ranks, ties = _ranks([*old, *new])
    pairs_won = sum(ranks[:n]) - n * (n + 1) / 2  # U
    fewer = min(pairs_won, n * m - pairs_won)
    if not ties and max(n, m) <= EXACT:
        ways = _ways(((m + i, i) for i in range(1, n + 1)), int(fewer))
        return min(1.0, 2 * ways / comb(n + m, n))
    variance = n * m / 12 * (n + m + 1 - ties / ((n + m) * (n + m - 1)))
    return _normal(n * m / 2 - fewer - 0.5, variance)


def wilcoxon(differences: Sequence[float]) -> float:
    """p of the differences of pairs, by signed ranks: that they lie evenly around 0.

    Differences of exactly 0 say nothing and are left out, as Wilcoxon did.
    """
    kept = [each for each in differences if each]
    n = len(kept)
    ranks, ties = _ranks([abs(each) for each in kept])
    above = sum(rank for rank, each in zip(ranks, kept, strict=True) if each > 0)
    fewer = min(above, n * (n + 1) / 2 - above)
    if not ties and n <= EXACT:
        ways = _ways(((2 * i, i) for i in range(1, n + 1)), int(fewer))
        return min(1.0, 2 * ways * 0.5**n)
    variance = n * (n + 1) * (2 * n + 1) / 24 - ties / 48
    return _normal(n * (n + 1) / 4 - fewer - 0.5, variance)


def mann_kendall(values: Sequence[float]) -> float:
    """p of values in the order they were taken: that they neither rise nor fall.

    It is Kendall's tau between value and order.
    """
    n = len(values)
    seen: list[float] = []
    rises = falls = 0
    for value in values:
        rises += bisect_left(seen, value)
        falls += len(seen) - bisect_right(seen, value)
        insort(seen, value)
    _, ties = _ranks(values)
    if not ties and n <= EXACT:
        ways = _ways(((i, 1) for i in range(2, n + 1)), min(rises, falls))
        return min(1.0, 2 * ways / factorial(n))
    tied_pairs = n * (n - 1) / 2 - rises - falls  # sum of t(t-1)/2
    variance = (n * (n - 1) * (2 * n + 5) - 2 * ties - 6 * tied_pairs) / 18
    return _normal(abs(rises - falls), variance)


def _ranks(values: Sequence[float]) -> tuple[list[float], int]:
    """The rank of each, the mean of theirs for values that tie; the sum of t^3-t over ties of t."""
    ordered = sorted(values)
    rank: dict[float, float] = {}
    ties = begin = 0
    while begin < len(ordered):
        end = bisect_right(ordered, ordered[begin], begin)
        rank[ordered[begin]] = (begin + 1 + end) / 2
        ties += (end - begin) ** 3 - (end - begin)
        begin = end
    return [rank[value] for value in values], ties


def _ways(factors: Iterable[tuple[int, int]], most: int) -> int:
    """In how many ways a statistic comes out at ``most`` or less.

    The count of each outcome is a coefficient of the product of (1-q^a)/(1-q^b): with (m+i, i) of
    pairs won, with (2i, i) of signed ranks, with (i, 1) of pairs out of order.
    """
    counts = [1] + [0] * most
    for a, b in factors:
        for at in range(most, a - 1, -1):
            counts[at] -= counts[at - a]
        for at in range(b, most + 1):
            counts[at] += counts[at - b]
    return sum(counts)


def _normal(distance: float, variance: float) -> float:
    """Two-sided p of a statistic this far from its mean."""
    return erfc(max(distance, 0.0) / sqrt(2 * variance)) if variance > 0 else 1.0
