"""What changed between two reports, or between the two sides of a duet, and whether it matters.

The verdict on a metric follows from the ratio of its medians, new to old:

- **regression**: it differs from 1 (statistics.differs) on the bad side, by more than the
  threshold;
- **improvement**: the same on the good side;
- **different**: the same of a metric of which no good side is known; or, by ranks alone, of one
  that is or was 0 and so has no ratio. It fails nothing;
- **same**: it is within the threshold, and noise does not hide a change of that size: it would be
  found four times in five;
- **unsure**: all else, also what has too few runs for an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from statistics import NormalDist, median

from ..errors import BenchmarkError
from .comparison import Comparison, Difference, Row, Verdict, counted
from .model import Benchmark, Better, Report, Series
from .ranks import mann_whitney, wilcoxon
from .statistics import ALARM, POWER, Ratio, differs, least_runs, paired_ratio, ratio

CONFIDENCE = 0.99
"""of the ratios' intervals: that to which statistics.differs holds p, too"""
THRESHOLD = 0.05


@dataclass(frozen=True)
class Thresholds:
    """How much worse a metric may become: 0.05 is 5 % of what it was."""

    default: float = THRESHOLD
    metrics: Mapping[str, float] = field(default_factory=dict)
    """by a metric's name or a pattern of names; the last that fits counts"""

    def of(self, metric: str) -> float:
        """That of a metric."""
        found = self.default
        for pattern, threshold in self.metrics.items():
            if fits(metric, pattern):
                found = threshold
        return found


def compare(
    old: Report,
    new: Report,
    thresholds: Thresholds | None = None,
    metrics: Sequence[str] = (),
    names: tuple[str, str] = ("old", "new"),
) -> Comparison:
    """Two reports, benchmark by benchmark; ``metrics``: only those that fit one of these patterns.

    Raises BenchmarkError if they have nothing in common.
    """
    found, limits = Comparison(*names, CONFIDENCE), thresholds or Thresholds()
    found.differences = _differences(old.fingerprint, new.fingerprint)
    after = {benchmark.name: benchmark for benchmark in new.benchmarks}
    common: set[str] = set()
    for benchmark in old.benchmarks:
        if other := after.pop(benchmark.name, None):
            found.differences += _settings(benchmark, other)
            common |= _add(found, benchmark, other, limits, metrics, _independent)
        else:
            found.only_old.append(benchmark.name)
    found.only_new += after
    return _checked(found, limits, metrics, common)


def duet(
    report: Report, thresholds: Thresholds | None = None, metrics: Sequence[str] = ()
) -> Comparison:
    """The two sides of a duet, pair by pair. Raises BenchmarkError if it is none."""
    if len(report.duet) != 2:
        raise BenchmarkError("not a duet's report: give two reports, or make one by pyvmm duet")
    try:
        old, new = (report.benchmark(name) for name in report.duet)
    except KeyError as e:
        raise BenchmarkError(f"a duet's report without its benchmark {e}") from None
    found, limits = Comparison(old.name, new.name, CONFIDENCE), thresholds or Thresholds()
    common = _add(found, old, new, limits, metrics, _paired)
    return _checked(found, limits, metrics, common)


def fits(metric: str, pattern: str) -> bool:
    """Whether a metric is meant by its name or by a pattern, as ``*/time``."""
    return metric == pattern or fnmatchcase(metric, pattern)


def _add(
    found: Comparison,
    old: Benchmark,
    new: Benchmark,
    thresholds: Thresholds,
    metrics: Sequence[str],
    judge: Callable[[Series, Series], Ratio | float],
) -> set[str]:
    """The rows of a benchmark, its main metric first; and what there is to say of it.

    Returns the metrics that both have, also those that were not asked for.
    """
    label = old.name if old.name == new.name else f"{old.name}, {new.name}"
    for name in sorted(old.series | new.series, key=lambda name: name != new.main):
        if metrics and not any(fits(name, pattern) for pattern in metrics):
            continue
        before, after = _filled(old, name), _filled(new, name)
        if not before or not after:
            if before:
                found.only_old.append(f"{old.name}: {name}")
            elif after:
                found.only_new.append(f"{new.name}: {name}")
            continue
        if before.unit != after.unit:
            found.warnings.append(
                f"{label}: {name}: in {before.unit or 'no unit'} in {found.old},"
                f" in {after.unit or 'no unit'} in {found.new}: not compared"
            )
            continue
        try:
            change = judge(before, after)
        except BenchmarkError as e:
            raise BenchmarkError(f"{label}: {name}: {e}") from None
        found.rows.append(_row(label, before, after, change, thresholds.of(name)))
    found.warnings += _runs(label, old, found.old) + _runs(label, new, found.new)
    return {name for name in old.series if _filled(old, name) and _filled(new, name)}


def _runs(label: str, benchmark: Benchmark, where: str) -> list[str]:
    """What there is to say against a benchmark's runs."""
    lines = []
    made = [run for run in benchmark.runs if not run.warmup]
    if failed := sum(run.exit_code != 0 for run in made):
        lines.append(f"{label}: {failed} of {counted(len(made), 'run')} failed in {where}")
    main = _filled(benchmark, benchmark.main)
    least = least_runs(CONFIDENCE)
    if main and len(main.values) < least:
        had = counted(len(main.samples), "run")
        lines.append(f"{label}: {had} in {where}, too few for an interval: make {least} or more")
    elif main and len(main.samples) == 1:
        lines.append(f"{label}: a single run in {where}: what differs from run to run is not seen")
    return lines


def _row(label: str, before: Series, after: Series, change: Ratio | float, threshold: float) -> Row:
    old, new = median(before.values), median(after.values)
    found = change if isinstance(change, Ratio) else None
    detectable = _detectable(found) if found else None
    verdict: Verdict
    if isinstance(change, Ratio):
        verdict = _verdict(after.better, change, threshold, detectable)
    else:
        verdict = "different" if change < ALARM else "same" if old == new else "unsure"
    return Row(
        label, after.name, after.unit, after.better, old, new, found, threshold, detectable,
        verdict,
    )  # fmt: skip


def _verdict(better: Better, change: Ratio, threshold: float, detectable: float | None) -> Verdict:
    within = abs(change.value - 1) <= threshold
    if not within and differs(change):
        if not better:
            return "different"
        return "regression" if (change.value > 1) == (better == "lower") else "improvement"
    return "same" if within and detectable is not None and detectable <= threshold else "unsure"


def _detectable(change: Ratio) -> float | None:
    """The least change that would be found four times in five, by the interval's width."""
    if not change.interval:
        return None
    half = (change.interval.high - change.interval.low) / 2
    return half / NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * POWER


def _independent(old: Series, new: Series) -> Ratio | float:
    """Their ratio; of what has none, p."""
    if _positive(old, new):
        return ratio(old.values, new.values, CONFIDENCE)
    return mann_whitney(old.values, new.values)


def _paired(old: Series, new: Series) -> Ratio | float:
    """The same of pairs."""
    if len(old.samples) != len(new.samples):
        raise BenchmarkError(f"{len(old.samples)} and {len(new.samples)} runs are no pairs")
    if not all(old.samples + new.samples):
        raise BenchmarkError("a run without a value is in no pair")
    # Of a single pair, too, the medians: what its two runs took inside are no pairs.
    first, second = ([median(sample) for sample in each.samples] for each in (old, new))
    if _positive(old, new):
        return paired_ratio(first, second, CONFIDENCE)
    return wilcoxon([b - a for a, b in zip(first, second, strict=True)])


def _positive(*series: Series) -> bool:
    return not any(value <= 0 for each in series for value in each.values)


def _filled(benchmark: Benchmark, name: str) -> Series | None:
    """A series that has values."""
    found = benchmark.series.get(name)
    return found if found and found.values else None


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[Difference]:
    return [
        Difference(key, old.get(key, ""), new.get(key, ""))
        for key in {**old, **new}
        if old.get(key, "") != new.get(key, "")
    ]


def _settings(old: Benchmark, new: Benchmark) -> Iterator[Difference]:
    """Not the image, the command and the adapter: what they are is often what is compared."""
    for each in _differences(old.options | {"mode": old.mode}, new.options | {"mode": new.mode}):
        yield Difference(f"{old.name}: {each.key}", each.old, each.new)


def _checked(
    found: Comparison, thresholds: Thresholds, metrics: Sequence[str], common: set[str]
) -> Comparison:
    """Refused if there is nothing to judge, or something was asked for that is not there."""
    for pattern in (*metrics, *thresholds.metrics) if common else ():
        if not any(fits(name, pattern) for name in common):
            raise BenchmarkError(f"no metric {pattern!r} in common; there are {_listed(common)}")
    if not found.rows:
        raise BenchmarkError(f"{found.old}, {found.new}: no benchmark and metric in common")
    return found


def _listed(names: set[str], most: int = 10) -> str:
    return ", ".join(sorted(names)[:most]) + ", …" * (len(names) > most)
