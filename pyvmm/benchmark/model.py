"""What a benchmark brought back: the Report, and its JSON file.

A Report has Benchmarks (one for each image and set of parameters); a Benchmark has Runs and Series;
a Series is one metric, with the values of every measured run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from statistics import median
from typing import Any, Literal, Self, TypeVar, get_type_hints

from ..errors import BenchmarkError
from ..whole_file import write_text

FORMAT = "pyvmm-benchmark"
VERSION = 1
LARGEST = 1e100  # of a value: sums, squares and pictures of such numbers are numbers still

T = TypeVar("T")
Better = Literal["lower", "higher", ""]
Mode = Literal["fresh-vm", "same-vm"]


@dataclass
class Series:
    """One metric of one benchmark, over its measured runs."""

    name: str
    """``"time"``, ``"instructions"``; of a program's own benchmarks ``"NAME/MEASURE"``"""
    unit: str
    """``"s"``, ``"ns"``, ``"B"``, ``"ops/s"``, …; ``""`` for a count"""
    better: Better
    """which way is good; ``""``: not known, never a regression"""
    source: str
    """who measured: ``guest``, ``kvm``, ``perf``, or the adapter's name"""
    samples: list[list[float]] = field(default_factory=list)
    """for each measured run, in order, its values: one, or as many as the program's tool took"""

    @property
    def values(self) -> list[float]:
        """What statistics take as independent: each run's median; of a single run, its values.

        Values from one run share its machine state, so that many of them are not many runs'
        (Kalibera and Jones, Rigorous Benchmarking in Reasonable Time, 2013, section 3).
        """
        if len(self.samples) == 1:
            return list(self.samples[0])
        return [median(sample) for sample in self.samples if sample]


@dataclass
class Run:
    """One run of the program, warm-ups too."""

    warmup: bool
    exit_code: int
    at: float
    """when it began: seconds since the report's ``started``"""
    seconds: float
    """all of it by the host's clock, boot and collection too"""
    order: int
    """its place in the order in which all of the report's runs were made, from 0"""
    warnings: list[str] = field(default_factory=list)


@dataclass
class Benchmark:
    """One image, command and set of parameters."""

    name: str
    """unique in its report"""
    image: str
    digest: str
    """of the image's manifest"""
    command: list[str]
    params: dict[str, str] = field(default_factory=dict)
    mode: Mode = "fresh-vm"
    options: dict[str, str] = field(default_factory=dict)
    """of the VM, as ``{"vcpus": "2", "memory": "512M"}``"""
    adapter: str = ""
    """which read the program's own metrics; ``""`` if none"""
    runs: list[Run] = field(default_factory=list)
    series: dict[str, Series] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    """metrics that could not be had here, with the reason"""
    main: str = "time"
    """the series that is shown first and that ``--until-ci`` looks at"""


@dataclass
class Report:
    """All that ``pyvmm bench`` or ``pyvmm duet`` brought back."""

    benchmarks: list[Benchmark] = field(default_factory=list)
    started: str = ""
    """ISO 8601, UTC"""
    fingerprint: dict[str, str] = field(default_factory=dict)
    """host and settings: what must be equal for two reports to be comparable"""
    duet: list[str] = field(default_factory=list)
    """``["A", "B"]`` if their runs are pairs, the i-th of the one with the i-th of the other"""
    confidence: float = 0.95
    warnings: list[str] = field(default_factory=list)

    def benchmark(self, name: str) -> Benchmark:
        """That of this name, or KeyError."""
        for each in self.benchmarks:
            if each.name == name:
                return each
        raise KeyError(name)

    def to_json(self) -> str:
        """The report's file."""
        return json.dumps({"format": FORMAT, "version": VERSION} | asdict(self), indent=1) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file. Raises PyvmmError."""
        write_text(os.fspath(path), self.to_json())

    @classmethod
    def from_json(cls, text: str | bytes, name: str = "report") -> Self:
        """Read it back. Raises BenchmarkError, with ``name``, for what is no report."""
        try:
            document = json.loads(text)
        except ValueError as e:
            raise BenchmarkError(f"{name}: not JSON: {e}") from None
        except RecursionError:
            raise BenchmarkError(f"{name}: not a report: nested too deep") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise BenchmarkError(f"{name}: not a report: make one by pyvmm bench --json FILE")
        if document.get("version") != VERSION:
            raise BenchmarkError(
                f"{name}: a report of version {document.get('version')}, this pyvmm reads {VERSION}"
            )
        body = {key: value for key, value in document.items() if key not in ("format", "version")}
        report = _read(cls, body, name)
        names: set[str] = set()
        for number, each in enumerate(report.benchmarks):
            if each.name in names:
                raise BenchmarkError(f"{name}: benchmarks[{number}]: another {each.name!r}")
            names.add(each.name)
        return report

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a report's file. Raises BenchmarkError."""
        try:
            with open(path, "rb") as file:
                return cls.from_json(file.read(), os.fspath(path))
        except OSError as e:
            raise BenchmarkError(f"{os.fspath(path)}: {e.strerror}") from None


_PLAIN: dict[Any, tuple[type, ...]] = {
    str: (str,), bool: (bool,), int: (int,), float: (int, float),
}  # fmt: skip


def _read(kind: type[T], value: Any, where: str) -> T:
    """``value`` as one of the classes above, every field of the type it says."""
    hints = get_type_hints(kind)
    if not isinstance(value, Mapping):
        raise BenchmarkError(f"{where}: not an object")
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    if extra := value.keys() - known:
        raise BenchmarkError(f"{where}: unknown field {min(extra)!r}")
    for name, each in known.items():
        if name not in value and each.default is each.default_factory is MISSING:
            raise BenchmarkError(f"{where}: no field {name!r}")
    return kind(
        **{name: _field(hints[name], each, f"{where}: {name}") for name, each in value.items()}
    )


def _field(hint: Any, value: Any, where: str) -> Any:
    origin = getattr(hint, "__origin__", None)
    arguments: tuple[Any, ...] = getattr(hint, "__args__", ())
    if hint in _PLAIN:
        if type(value) not in _PLAIN[hint]:
            raise BenchmarkError(f"{where}: {value!r} is not a {hint.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise BenchmarkError(f"{where}: {value!r} is not a finite number")
        if isinstance(value, int | float) and abs(value) > LARGEST:
            raise BenchmarkError(f"{where}: a number above {LARGEST:g}")
        return value
    if origin is Literal:
        if value not in arguments:
            raise BenchmarkError(
                f"{where}: {value!r} is not one of {', '.join(map(repr, arguments))}"
            )
        return value
    if origin is list and isinstance(value, list):
        return [_field(arguments[0], each, f"{where}[{n}]") for n, each in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _field(arguments[1], each, f"{where}.{key}") for key, each in value.items()}
    if origin in (list, dict):
        raise BenchmarkError(f"{where}: not {'a list' if origin is list else 'an object'}")
    return _read(hint, value, where)
