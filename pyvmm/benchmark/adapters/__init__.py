"""Metrics that the program prints or writes: one module for each tool's format (docs/metrics.md).

A reader looks at all streams and files, adds what it recognises as its tool's, and leaves the rest
alone. All of it may be hostile: what is wrong with it is a BenchmarkError and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...errors import BenchmarkError, UsageError
from ..model import Series
from . import bmf, criterion, go, google_benchmark, hyperfine, jmh, pyperf, pytest_benchmark
from .found import MAX_TEXT, Adapter, Found, Text
from .patterns import SOURCE, compile_all, search

_ADAPTERS = {
    each.ADAPTER.name: each.ADAPTER
    for each in (
        pytest_benchmark, hyperfine, pyperf, google_benchmark, criterion, go, jmh, bmf,
    )
}  # fmt: skip
NAMES = tuple(_ADAPTERS)


def check(adapter: str | None, patterns: Sequence[str]) -> None:
    """Raises UsageError for an adapter that is none, or a ``NAME=REGEX`` that cannot be meant."""
    if adapter is not None and adapter not in _ADAPTERS:
        raise UsageError(f"--adapter {adapter}: must be one of {', '.join(NAMES)}")
    compile_all(patterns)


def read(
    texts: Mapping[str, bytes], adapter: str | None, patterns: Sequence[str]
) -> tuple[str, list[Series]]:
    """The metrics of one run, each with one list of values, and the name of the adapter.

    ``texts`` are what the program left: ``stdout``, ``stderr``, and files by their paths. Without
    ``adapter`` the format is recognised; if there is none the name is ``metric`` with ``patterns``
    (``--metric``) and ``""`` without. Raises BenchmarkError for an adapter or a pattern without
    data, for data of two tools, and for values that are not finite numbers.
    """
    check(adapter, patterns)
    shown = [Text(name, data) for name, data in texts.items() if len(data) <= MAX_TEXT]
    if adapter is None:
        found = _recognise(shown)
    else:
        found = _found(_ADAPTERS[adapter], shown)
        if not found.series:
            raise BenchmarkError(
                f"{adapter}: no data of it in {_listed(texts)}: {_ADAPTERS[adapter].mend}"
            )
    own = Found(SOURCE)
    for pattern in compile_all(patterns):
        search(pattern, shown, own)
    if both := found.series.keys() & own.series.keys():
        raise BenchmarkError(f"--metric {min(both)}: {found.source} has a metric of this name")
    return found.source or (SOURCE if patterns else ""), [
        *found.series.values(), *own.series.values(),
    ]  # fmt: skip


def _recognise(texts: Sequence[Text]) -> Found:
    found = [each for adapter in _ADAPTERS.values() if (each := _found(adapter, texts)).series]
    if len(found) > 1:
        names = " and ".join(each.source for each in found)
        raise BenchmarkError(f"there is data of {names}: choose one by --adapter")
    return found[0] if found else Found("")


def _found(adapter: Adapter, texts: Sequence[Text]) -> Found:
    found = Found(adapter.name)
    adapter.read(texts, found)
    return found


def _listed(texts: Mapping[str, bytes]) -> str:
    return ", ".join(
        f"{name} (too large)" if len(data) > MAX_TEXT else name for name, data in texts.items()
    )
