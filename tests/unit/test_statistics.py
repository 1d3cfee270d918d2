"""What is said of samples: against scipy, and by simulation of what it promises."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import numpy
import pytest
from scipy import stats

from pyvmm.benchmark import statistics
from pyvmm.benchmark.statistics import (
    Interval,
    Ratio,
    differs,
    least_runs,
    median_interval,
    paired_ratio,
    ratio,
    runs_for,
    summarize,
    until,
)
from pyvmm.errors import BenchmarkError


def slow(draw: random.Random, n: int, noise: float = 0.05) -> list[float]:
    return [math.exp(noise * draw.gauss(0, 1)) for _ in range(n)]


# The median's interval


@pytest.mark.parametrize("confidence", [0.6, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [*range(2, 32), 100, 1001, 20_000])
def test_median_interval(n: int, confidence: float) -> None:
    values = slow(random.Random(n), n)
    interval = median_interval(values, confidence)
    expected = stats.quantile_test(values, q=0, p=0.5).confidence_interval(confidence)
    if interval is None:
        assert n < least_runs(confidence)
        assert math.isnan(expected.low)
        assert math.isnan(expected.high)
        return
    assert n >= least_runs(confidence)
    assert (interval.low, interval.high) == (expected.low, expected.high)
    k = sorted(values).index(interval.low) + 1
    reached = stats.binom.cdf(n - k, n, 0.5) - stats.binom.cdf(k - 1, n, 0.5)
    narrower = stats.binom.cdf(n - k - 1, n, 0.5) - stats.binom.cdf(k, n, 0.5)
    assert interval.confidence == pytest.approx(reached, abs=1e-9)
    assert reached >= confidence > narrower


@pytest.mark.parametrize(("confidence", "runs"), [(0.9, 5), (0.9375, 5), (0.95, 6), (0.99, 8)])
def test_least_runs(confidence: float, runs: int) -> None:
    assert least_runs(confidence) == runs
    assert median_interval(range(runs - 1), confidence) is None
    assert median_interval(range(runs), confidence) == Interval(0, runs - 1, 1 - 2 / 2**runs)


@pytest.mark.parametrize("n", [6, 10, 25])
def test_median_interval_covers(n: int) -> None:
    """As often as it says, within four errors, of noise that is all to one side."""
    draw = random.Random(n)
    intervals = [median_interval([draw.expovariate(1) for _ in range(n)]) for _ in range(2000)]
    share = sum(i is not None and i.low <= math.log(2) <= i.high for i in intervals) / 2000
    assert intervals[0] is not None
    says = intervals[0].confidence
    assert share == pytest.approx(says, abs=4 * math.sqrt(says * (1 - says) / 2000))


# One sample


@pytest.mark.parametrize("seed", range(20))
def test_summary(seed: int) -> None:
    draw = random.Random(seed)
    values = slow(draw, draw.randint(2, 60))
    summary = summarize(values)
    assert summary.n == len(values)
    assert summary.median == pytest.approx(numpy.median(values), rel=1e-12)
    assert summary.interval == median_interval(values)
    assert summary.mean == pytest.approx(numpy.mean(values), rel=1e-12)
    assert summary.deviation == pytest.approx(numpy.std(values, ddof=1), rel=1e-12)
    assert summary.mad == pytest.approx(stats.median_abs_deviation(values), rel=1e-12)
    assert summary.cv == pytest.approx(stats.variation(values, ddof=1), rel=1e-12)
    assert (summary.minimum, summary.maximum) == (min(values), max(values))
    method = "exact" if len(values) <= 50 else "asymptotic"
    drift = stats.kendalltau(range(len(values)), values, method=method).pvalue
    assert summary.drift == pytest.approx(drift, rel=1e-9)


def test_summary_of_few_and_of_equals() -> None:
    one = summarize([3.0])
    assert (one.n, one.median, one.interval, one.deviation, one.mad, one.cv) == (
        1,
        3,
        None,
        0,
        0,
        0,
    )
    assert (one.outliers, one.drift, one.modes, one.detectable) == ((), 1.0, 1.0, None)
    same = summarize([7.0] * 10)
    assert (same.interval, same.cv, same.outliers) == (Interval(7, 7, 0.978515625), 0.0, ())
    assert (same.drift, same.modes, same.detectable) == (1.0, 1.0, 0.0)
    assert summarize([0.0] * 10).detectable is None
    assert summarize([-1.0, 1.0]).cv == math.inf


def test_outliers() -> None:
    assert summarize([10.0, 11, 12, 13, 14, 12, 30]).outliers == (6,)
    assert summarize([1.0, 10, 11, 12, 13, 14, 12]).outliers == (0,)
    assert summarize([10.0, 11, 12, 13, 14, 12, 15]).outliers == ()
    assert summarize([5.0] * 9 + [9]).outliers == (9,)  # the median deviation is 0


@pytest.mark.parametrize(("n", "share"), [(6, 0.16), (10, 0.12), (30, 0.09), (100, 0.09)])
def test_outliers_of_normal_noise(n: int, share: float) -> None:
    """As docs/statistics.md says: how many samples without any have some named."""
    draw = random.Random(n)
    samples = [[draw.gauss(9, 1) for _ in range(n)] for _ in range(1000)]
    some = [bool(statistics._outliers(each, numpy.median(each))) for each in samples]
    assert sum(some) / 1000 == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("n", [10, 20, 40])
def test_detectable(n: int) -> None:
    """Of differences as large as is said, about 8 of 10 are found."""
    draw = random.Random(n)
    said = [summarize(slow(draw, n, 0.02)).detectable or 0 for _ in range(300)]
    factor = 1 + sorted(said)[150]
    found = [_found(slow(draw, n, 0.02), slow(draw, n, 0.02), factor) for _ in range(150)]
    assert sum(found) / 150 == pytest.approx(0.8, abs=0.08)


def _found(old: list[float], new: list[float], factor: float) -> bool:
    return differs(ratio(old, [factor * each for each in new]))


@pytest.fixture(autouse=True)
def _fewer_resamples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulations make hundreds of bootstraps."""
    if request.function in (test_detectable, test_alarms, test_ratio_covers):
        monkeypatch.setattr(statistics, "RESAMPLES", 399)


def test_runs_for() -> None:
    """The inverse of what is detectable."""
    values = slow(random.Random(1), 30, 0.02)
    for n in (6, 10, 30, 500):
        detectable = statistics._detectable(n, 1.0, 0.02)
        assert detectable is not None
        deviation_of_02 = [1 - 0.02 / 1.4826] * 2 + [1.0] + [1 + 0.02 / 1.4826] * 2
        assert runs_for(deviation_of_02, detectable * (1 + 1e-9)) == n
    assert runs_for(values, 1.0) == 6
    assert runs_for([7.0] * 10, 0.01) == 6
    assert runs_for([0.0] * 10, 0.01) is None


# When to stop


def test_until_looks() -> None:
    looks = [n for n in range(1, 100) if until([1.0] * n, 0.01)]
    assert looks == [10, 13, 17, 22, 28, 35, 44, 55, 69, 87]


def test_until() -> None:
    values = [99.0] * 5 + [101.0] * 5
    assert until(values, 0.01)
    assert not until(values, 0.0099)
    assert not until([-each for each in values], 0.01)
    assert not until(values, 0.01, 0.999)  # 10 runs have no such interval


def test_until_covers_less() -> None:
    """Stopped at the look that pleased, 95 % become 93 % or so; stopped at any run, 91 %."""
    draw = random.Random(1)
    held = [0, 0]
    for _ in range(400):
        values = slow(draw, 300, 0.03)
        stops: list[Callable[[list[float]], bool]] = [
            lambda taken: until(taken, 0.01),
            lambda taken: _short(taken, 0.01),
        ]
        for which, stop in enumerate(stops):
            end = next((n for n in range(6, 300) if stop(values[:n])), 300)
            interval = median_interval(values[:end])
            assert interval is not None
            held[which] += interval.low <= 1 <= interval.high
    assert held[0] / 400 == pytest.approx(0.93, abs=0.02)
    assert held[1] / 400 == pytest.approx(0.91, abs=0.03)


def _short(values: list[float], relative: float) -> bool:
    interval = median_interval(values)
    return interval is not None and interval.high - interval.low <= 2 * relative


# Two samples


@pytest.mark.parametrize(("n", "m"), [(9, 9), (10, 10), (30, 30), (31, 12)])
def test_ratio(n: int, m: int) -> None:
    draw = random.Random(n)
    old, new = slow(draw, n), slow(draw, m)
    found = ratio(old, new)
    assert found.value == pytest.approx(numpy.median(new) / numpy.median(old), rel=1e-12)
    assert found.p == pytest.approx(stats.mannwhitneyu(old, new, method="exact").pvalue, rel=1e-9)
    expected = stats.bootstrap(
        (old, new),
        lambda a, b, axis: numpy.median(b, axis) / numpy.median(a, axis),
        n_resamples=20_000,
        method="percentile",
        rng=numpy.random.default_rng(1),
    ).confidence_interval
    assert found.interval is not None
    assert found.interval.low == pytest.approx(expected.low, abs=0.004)
    assert found.interval.high == pytest.approx(expected.high, abs=0.004)
    assert found.interval.confidence == 0.95
    assert found == ratio(old, new)  # no luck in it


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_resampled(n: int) -> None:
    """Medians drawn at once have the distribution of medians of drawn samples."""
    draw = random.Random(n)
    values = slow(draw, n)
    ours = statistics._resampled(values, random.Random(1))
    plain = [numpy.median(draw.choices(values, k=n)) for _ in range(statistics.RESAMPLES)]
    assert stats.ks_2samp(ours, plain).statistic < 0.025


@pytest.mark.parametrize("n", [6, 10, 25])
def test_ratio_covers(n: int) -> None:
    draw = random.Random(n)
    intervals = [ratio(slow(draw, n), slow(draw, n)).interval for _ in range(150)]
    held = sum(i is not None and i.low <= 1 <= i.high for i in intervals)
    assert 0.93 <= held / 150 <= 1


@pytest.mark.parametrize("seed", range(10))
def test_paired_ratio(seed: int) -> None:
    draw = random.Random(seed)
    n = draw.randint(6, 60)
    old, new = slow(draw, n), slow(draw, n)
    found = paired_ratio(old, new)
    ratios = numpy.divide(new, old)
    assert found.value == pytest.approx(numpy.median(ratios), rel=1e-12)
    assert found.interval == median_interval(list(ratios))
    method = "exact" if n <= 50 else "asymptotic"
    p = stats.wilcoxon(numpy.log(ratios), correction=True, method=method).pvalue
    assert found.p == pytest.approx(p, rel=1e-9)


def test_too_few() -> None:
    assert ratio([1.0] * 5, [2.0] * 99).interval is None
    assert paired_ratio([1.0] * 5, [2.0] * 5).interval is None
    assert ratio([1.0], [2.0]) == Ratio(2.0, None, 1.0)
    assert paired_ratio([1.0], [2.0]) == Ratio(2.0, None, 1.0)
    assert paired_ratio([1.0] * 8, [2.0] * 8).interval == Interval(2, 2, 0.9921875)


def test_differs() -> None:
    def say(low: float, high: float, p: float, threshold: float = 0.0) -> bool:
        return differs(Ratio(math.sqrt(low * high), Interval(low, high, 0.95), p), threshold)

    assert say(1.01, 1.02, 0.009)
    assert not say(1.01, 1.02, 0.01)
    assert not say(1.0, 1.02, 0.001)
    assert not say(0.98, 1.02, 0.001)
    assert say(0.98, 0.99, 0.001)
    assert not say(1.04, 1.07, 0.001, 0.05)
    assert say(1.051, 1.07, 0.001, 0.05)
    assert not say(0.9, 1 / 1.05, 0.001, 0.05)
    assert say(0.9, 0.952, 0.001, 0.05)
    assert not differs(Ratio(2.0, None, 0.0))


# Alarms


def noisy(draw: random.Random, pairs: int) -> tuple[list[float], list[float]]:
    """Pairs in random order on a bad host: neighbours (10 %), a drift of 30 %, 2 % of each run's
    own; one run in ten in a burst of 20 %, three in ten in a mode that is 8 % slower."""
    old: list[float] = []
    new: list[float] = []
    for i in range(pairs):
        shared = (1 + 0.3 * i / pairs) * slow(draw, 1, 0.1)[0]
        for runs in (old, new):
            time = shared * slow(draw, 1, 0.02)[0]
            time *= 1 + draw.expovariate(5) if draw.random() < 0.1 else 1
            time *= 1.08 if draw.random() < 0.3 else 1
            runs.append(time)
    return old, new


@pytest.mark.parametrize("pairs", [8, 20, 100])
def test_duet_alarms(pairs: int) -> None:
    """Of 100 comparisons of a program with itself at most 5 say that it differs, ten times."""
    for seed in range(10):
        draw = random.Random(seed)
        alarms = sum(differs(paired_ratio(*noisy(draw, pairs))) for _ in range(100))
        assert alarms <= 5


@pytest.mark.parametrize("n", [8, 21])
def test_alarms(n: int) -> None:
    draw = random.Random(n)
    assert sum(differs(ratio(slow(draw, n), slow(draw, n))) for _ in range(100)) <= 5


@pytest.mark.parametrize(
    ("pairs", "bad_host", "least"), [(20, False, 80), (30, False, 97), (100, True, 80)]
)
def test_duet_finds(pairs: int, bad_host: bool, least: int) -> None:
    """A true 3 %: among 10 % of shared noise and 2 % of own by 30 pairs, on the bad host by 100."""
    draw = random.Random(pairs)
    found = 0
    for _ in range(100):
        if bad_host:
            old, new = noisy(draw, pairs)
        else:
            shared = slow(draw, pairs, 0.1)
            old = [each * slow(draw, 1, 0.02)[0] for each in shared]
            new = [each * slow(draw, 1, 0.02)[0] for each in shared]
        found += differs(paired_ratio(old, [1.03 * each for each in new]))
    assert found >= least


# What cannot be judged


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: summarize([]), "no values to judge"),
        (lambda: summarize([1.0, math.nan]), "value 2 of 2 is nan: not a finite number"),
        (lambda: median_interval([math.inf]), "value 1 of 1 is inf: not a finite number"),
        (
            lambda: ratio([1.0, 0.0], [1.0]),
            "value 2 of 2 (old) is 0.0: a ratio needs values above 0",
        ),
        (
            lambda: paired_ratio([1.0], [-1.0]),
            "value 1 of 1 (new) is -1.0: a ratio needs values above 0",
        ),
        (lambda: paired_ratio([1.0], [1.0, 2.0]), "no pairs: 1 values and 2"),
        (lambda: ratio([1.0], []), "no values to judge"),
        (
            lambda: median_interval([1.0], 95),
            "a confidence is between 0 and 1, as 0.95, not 95",
        ),
        (lambda: least_runs(1.0), "a confidence is between 0 and 1, as 0.95, not 1.0"),
        (lambda: differs(Ratio(1, None, 1), -0.1), "a threshold is 0 or more, not -0.1"),
        (lambda: runs_for([1.0], 0.0), "a difference to be found must be above 0, not 0.0"),
    ],
)
def test_errors(call: Callable[[], object], text: str) -> None:
    with pytest.raises(BenchmarkError) as error:
        call()
    assert str(error.value) == text


def test_time() -> None:
    """As long as some million random numbers take; resamples drawn whole: a hundred times that."""
    values = slow(random.Random(1), 30)
    draw = random.Random(1)
    begin = time.process_time()
    for _ in range(1_000_000):
        draw.random()
    middle = time.process_time()
    ratio(values, values)
    assert time.process_time() - middle < 20 * (middle - begin)
