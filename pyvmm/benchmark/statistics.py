"""What a benchmark's values say: how sure, how steady, and whether two samples differ.

Deterministic: the bootstrap's seed is fixed. Each method's source, and when it misleads, is in
docs/statistics.md.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from ..errors import BenchmarkError
from .modes import one_mode
from .ranks import mann_kendall, mann_whitney, wilcoxon

RESAMPLES = 9999
SEED = 1
ALARM = 0.01  # p below which something is said: of 100 comparisons of equals 1 is an alarm, not 5
FAR = 3.5  # deviations from the median from which on a value is an outlier
NORMAL = 1.4826  # a normal distribution's standard deviation, in median absolute deviations
POWER = 3.8  # standard errors of a difference, if 8 of 10 comparisons are to find it
LOST = 3  # so many runs fewer is a small sample worth
LEAST = 6  # runs of each, from which on a comparison can find a difference
FIRST_LOOK = 10  # runs before which `until` says nothing
GROWTH = 1.25  # and how many times as many at each later look


@dataclass(frozen=True)
class Interval:
    """A confidence interval, ends included."""

    low: float
    high: float
    confidence: float
    """the level really reached, at least that asked for"""


@dataclass(frozen=True)
class Summary:
    """One sample. Units are the values' own, where not said."""

    n: int
    median: float
    interval: Interval | None
    """of the median; None: too few values, see least_runs"""
    mean: float
    deviation: float
    """sample standard deviation; 0 of a single value, of which it says nothing"""
    mad: float
    """median absolute deviation from the median, not scaled"""
    cv: float
    """deviation/mean; infinite if only the mean is 0"""
    minimum: float
    maximum: float
    outliers: tuple[int, ...]
    """indexes of values; nothing above leaves them out"""
    drift: float
    """p that the values neither rise nor fall in their order"""
    modes: float
    """p that they have one mode; small: two or more"""
    detectable: float | None
    """the smallest relative difference that a comparison of two such samples would find with power
    0.8; None: too few values, or a median that nothing is relative to"""


@dataclass(frozen=True)
class Ratio:
    """How many times the old value the new one is."""

    value: float
    interval: Interval | None
    """None: too few values"""
    p: float
    """that the two do not differ"""


def summarize(values: Sequence[float], confidence: float = 0.95) -> Summary:
    """All that is said of one sample, in the order it was taken. Raises BenchmarkError."""
    _check(values)
    middle, mean = median(values), fmean(values)
    deviation = stdev(values) if len(values) > 1 else 0.0
    return Summary(
        n=len(values),
        median=middle,
        interval=median_interval(values, confidence),
        mean=mean,
        deviation=deviation,
        mad=_mad(values, middle),
        cv=0.0 if not deviation else deviation / abs(mean) if mean else math.inf,
        minimum=min(values),
        maximum=max(values),
        outliers=_outliers(values, middle),
        drift=mann_kendall(values),
        modes=one_mode(values),
        detectable=_detectable(len(values), middle, _spread(values, middle)),
    )


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Between which of the values the median of all runs that could be made lies.

    Exact, whatever the distribution: the k-th smallest and the k-th largest, where k is the largest
    that reaches ``confidence``. None if even minimum and maximum do not.
    """
    _check(values)
    _check_confidence(confidence)
    n = len(values)
    k = n // 2 + 1
    heads = math.comb(n, n // 2) / 2**n  # chance of k heads of n fair coins, once k is n // 2
    reached = 0.0  # chance of k to n-k heads: that so many values are below the true median
    while reached < confidence:
        k -= 1
        if k == 0:
            return None
        reached += heads if 2 * k == n else 2 * heads
        heads *= k / (n - k + 1)
    ordered = sorted(values)
    return Interval(ordered[k - 1], ordered[n - k], reached)


def least_runs(confidence: float = 0.95) -> int:
    """The fewest values that give a median an interval: 6 for 0.95, 8 for 0.99."""
    _check_confidence(confidence)
    return 1 + math.ceil(-math.log2(1 - confidence))


def until(values: Sequence[float], relative: float, confidence: float = 0.95) -> bool:
    """Whether enough runs are made: half the median's interval is at most ``relative`` of it.

    Who stops at the first interval that is short enough prefers those that are short by luck. So it
    looks only at 10 runs, 13, 17, 22 and so on, a quarter more each time, and says False at others.
    """
    n = len(values)
    look = FIRST_LOOK
    while look < n:
        look = math.ceil(look * GROWTH)
    interval = median_interval(values, confidence) if look == n else None
    return interval is not None and interval.high - interval.low <= 2 * relative * median(values)


def runs_for(values: Sequence[float], relative: float) -> int | None:
    """How many runs of each a comparison needs to find this relative difference with power 0.8.

    By the spread of ``values``, of which there should be ten or more. None: their median is not
    above 0. Raises BenchmarkError.
    """
    _check(values)
    if not relative > 0:
        raise BenchmarkError(f"a difference to be found must be above 0, not {relative}")
    middle = median(values)
    if middle <= 0:
        return None
    wanted = 2 * (POWER * _spread(values, middle) / (relative * middle)) ** 2
    return max(LEAST, math.ceil(wanted) + LOST)


def ratio(old: Sequence[float], new: Sequence[float], confidence: float = 0.95) -> Ratio:
    """Two independent samples: the ratio of their medians. Raises BenchmarkError.

    The interval is a percentile bootstrap's, p Mann-Whitney's.
    """
    _check_positive(old, "old")
    _check_positive(new, "new")
    value = median(new) / median(old)
    p = mann_whitney(old, new)
    if min(len(old), len(new)) < least_runs(confidence):
        return Ratio(value, None, p)
    generator = random.Random(SEED)
    drawn = zip(_resampled(new, generator), _resampled(old, generator), strict=True)
    ratios = sorted(a / b for a, b in drawn)
    outside = round((1 - confidence) / 2 * (RESAMPLES + 1))
    return Ratio(value, Interval(ratios[outside - 1], ratios[-outside], confidence), p)


def paired_ratio(old: Sequence[float], new: Sequence[float], confidence: float = 0.95) -> Ratio:
    """Pairs, the i-th of the one with the i-th of the other. Raises BenchmarkError.

    The median of their ratios, with its exact interval; p is the signed ranks' of their logarithms.
    """
    _check_positive(old, "old")
    _check_positive(new, "new")
    if len(old) != len(new):
        raise BenchmarkError(f"no pairs: {len(old)} values and {len(new)}")
    ratios = [b / a for a, b in zip(old, new, strict=True)]
    p = wilcoxon([math.log(each) for each in ratios])
    return Ratio(median(ratios), median_interval(ratios, confidence), p)


def differs(ratio: Ratio, threshold: float = 0.0) -> bool:
    """Whether the two differ by more than ``threshold``: 0.05 is 5 % more, or as much less.

    Both must say so: the interval, all of it beyond the threshold, and p, which is below 0.01. With
    p below 0.05, 100 comparisons of equals would raise 5 alarms on average and often more.
    """
    if not 0 <= threshold < math.inf:
        raise BenchmarkError(f"a threshold is 0 or more, not {threshold}")
    if ratio.interval is None or ratio.p >= ALARM:
        return False
    return ratio.interval.low > 1 + threshold or ratio.interval.high < 1 / (1 + threshold)


def _resampled(values: Sequence[float], generator: random.Random) -> list[float]:
    """The medians of samples drawn from ``values`` with replacement, RESAMPLES of them.

    A draw of n is n uniform numbers that say which value each is, and its median is what the middle
    ones say. Of n uniform numbers the k-th has a beta distribution, so only that is drawn.
    """
    n = len(values)
    half = n // 2
    ordered = sorted(values)
    ordered.append(ordered[-1])  # for a uniform number that is rounded to 1
    beta, uniform = generator.betavariate, generator.random
    if n % 2:
        return [ordered[int(n * beta(half + 1, half + 1))] for _ in range(RESAMPLES)]
    medians = []
    for _ in range(RESAMPLES):
        rest = 1 - beta(half, half + 1)  # what the half-th leaves to those above it
        after = rest * uniform() ** (1 / half)  # and the least of these to the others
        medians.append((ordered[int(n * (1 - rest))] + ordered[int(n * (1 - after))]) / 2)
    return medians


def _outliers(values: Sequence[float], middle: float) -> tuple[int, ...]:
    spread = _spread(values, middle)
    return tuple(i for i, value in enumerate(values) if abs(value - middle) > FAR * spread)


def _mad(values: Sequence[float], middle: float) -> float:
    return median(abs(value - middle) for value in values)


def _spread(values: Sequence[float], middle: float) -> float:
    """The standard deviation that normal noise with this much absolute deviation would have.

    By its median; if that is 0, as more than half of the values are equal, by its mean.
    """
    mean = fmean(abs(value - middle) for value in values)
    return NORMAL * _mad(values, middle) or math.sqrt(math.pi / 2) * mean


def _detectable(n: int, middle: float, spread: float) -> float | None:
    if n < LEAST or middle <= 0:
        return None
    return POWER * spread / middle * math.sqrt(2 / (n - LOST))


def _check(values: Sequence[float]) -> None:
    if not values:
        raise BenchmarkError("no values to judge")
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise BenchmarkError(f"value {i + 1} of {len(values)} is {value}: not a finite number")


def _check_positive(values: Sequence[float], name: str) -> None:
    _check(values)
    for i, value in enumerate(values):
        if value <= 0:
            raise BenchmarkError(
                f"value {i + 1} of {len(values)} ({name}) is {value}: a ratio needs values above 0"
            )


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise BenchmarkError(f"a confidence is between 0 and 1, as 0.95, not {confidence}")
