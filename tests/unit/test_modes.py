"""The dip test, against the dip's definition and against simulation."""

from __future__ import annotations

import random
import time
from math import sqrt

import pytest
from scipy.optimize import linprog

from pyvmm.benchmark.modes import LEVELS, NULL, dip, one_mode


def defined(values: list[float]) -> float:
    """The dip by its definition, as linear programs: one for each x that may be the mode.

    G has one value at each x, at the mode two (it may jump there), and all are within t of the step
    function before and after its step. Slopes grow up to the mode and fall from there.
    """
    xs = sorted(set(values))
    k = len(xs)
    below = [sum(v < x for v in values) / len(values) for x in xs]
    to = [sum(v <= x for v in values) / len(values) for x in xs]
    best = 1.0
    for mode in range(k):
        t = k + 1
        rows: list[list[float]] = []
        limits: list[float] = []

        def at_most(limit: float, *terms: tuple[int, float]) -> None:
            row = [0.0] * (k + 2)
            for at, factor in terms:
                row[at] += factor
            rows.append(row)  # noqa: B023
            limits.append(limit)  # noqa: B023

        at_x = [*range(mode), mode, *range(mode + 2, k + 1)]  # before and at, and after
        points = [xs[i] for i in range(mode + 1)] + [xs[i] for i in range(mode, k)]
        low = [*to[:mode], below[mode], *to[mode:]]  # G + t reaches these
        high = [*below[: mode + 1], to[mode], *below[mode + 1 :]]  # G - t does not pass these
        assert len(at_x) == k
        assert len(points) == len(low) == len(high) == k + 1
        for i in range(k + 1):
            at_most(-low[i], (i, -1), (t, -1))
            at_most(high[i], (i, 1), (t, -1))
            if i:
                at_most(0, (i - 1, 1), (i, -1))
        for middle in range(1, k):
            if middle in (mode, mode + 1):
                continue
            side = 1 if middle < mode else -1
            a, b = points[middle] - points[middle - 1], points[middle + 1] - points[middle]
            at_most(
                0,
                (middle, side / a), (middle - 1, -side / a),
                (middle + 1, -side / b), (middle, side / b),
            )  # fmt: skip
        found = linprog([0] * t + [1], A_ub=rows, b_ub=limits, bounds=[(0, 1)] * (t + 1))
        assert found.status == 0
        best = min(best, found.fun)
    return best


@pytest.mark.parametrize("seed", range(15))
def test_dip_is_what_is_defined(seed: int) -> None:
    draw = random.Random(seed)
    n = draw.randint(4, 11)
    values: list[float] = [
        [draw.random() for _ in range(n)],
        [draw.randint(0, n) for _ in range(n)],
        [draw.gauss(3 * (draw.random() < 0.5), 0.5) for _ in range(n)],
    ][seed % 3]  # type: ignore[assignment]
    assert dip(values) == pytest.approx(defined(values), abs=1e-7)


def test_known() -> None:
    assert dip([1.0, 2.0, 3.0, 4.0]) == 1 / 8  # the least that n steps allow: 1/(2n)
    assert dip([0.0, 1.0] * 10) == 0.25  # the most: two atoms
    assert dip([5.0] * 10) == 0.0
    assert one_mode([0.0, 1.0] * 10) == 0.001
    assert one_mode([5.0] * 10) == 1.0
    assert one_mode([1.0, 2.0, 9.0]) == 1.0


@pytest.mark.parametrize("n", [6, 15, 30])
def test_table(n: int) -> None:
    """Simulated again, smaller: each level is reached as often as it says, within four errors.

    Not the first two: of few values, the least dip has a chance of its own.
    """
    draw = random.Random(n + 1000)
    times = 1500
    found = [sqrt(n) * dip([draw.random() for _ in range(n)]) for _ in range(times)]
    for level, limit in list(zip(LEVELS, NULL[n], strict=True))[2:]:
        share = sum(each >= limit for each in found) / times
        assert share == pytest.approx(level, abs=4 * sqrt(level * (1 - level) / times) + 0.005)


@pytest.mark.parametrize("n", [9, 25, 40])
def test_between_rows(n: int) -> None:
    draw = random.Random(n)
    ps = [one_mode([draw.random() for _ in range(n)]) for _ in range(800)]
    assert sum(p < 0.05 for p in ps) / 800 == pytest.approx(0.05, abs=0.03)
    assert sum(p < 0.5 for p in ps) / 800 == pytest.approx(0.5, abs=0.08)


def test_power() -> None:
    """Of 100 samples of 40 with modes 5 deviations apart most are seen; of normal ones none."""
    draw = random.Random(1)
    two = [[draw.gauss(5 * (draw.random() < 0.5), 1) for _ in range(40)] for _ in range(100)]
    one = [[draw.gauss(0, 1) for _ in range(40)] for _ in range(100)]
    assert sum(one_mode(values) < 0.05 for values in two) == 68
    assert sum(one_mode(values) < 0.05 for values in one) == 0


def test_time() -> None:
    draw = random.Random(1)
    values = [draw.random() for _ in range(30)]
    begin = time.process_time()
    one_mode(values)
    assert time.process_time() - begin < 2
