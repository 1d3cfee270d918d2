"""What tools do not write: finite numbers or one line come of it, in time that its size bounds."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import pytest

from pyvmm.benchmark import adapters
from pyvmm.errors import BenchmarkError

OUTPUTS = Path(__file__).parent / "tool_outputs"
ALL = {
    str(path.relative_to(OUTPUTS)): path.read_bytes()
    for pattern in ("*/*.json", "*/*.txt", "criterion/output/**/*.json")
    for path in sorted(OUTPUTS.glob(pattern))
}
CRITERION = {name: data for name, data in ALL.items() if name.startswith("criterion/output")}


def survive(shown: dict[str, bytes], adapter: str | None) -> None:
    """Finite numbers, or one line (an error's message always is one)."""
    try:
        _, series = adapters.read(shown, adapter, [])
    except BenchmarkError:
        return
    for each in series:
        assert each.name.isprintable()
        assert all(math.isfinite(value) for value in each.samples[0])


DEEP: Any = []
for _ in range(800):
    DEEP = [DEEP]
NASTY: tuple[Any, ...] = (
    None, True, "", "\ud800", "x" * 2000, 0, -1, 10**400, 1e308, math.nan, math.inf, [], {}, DEEP,
    [None], [{}], {"": {}}, [[1, "2"], 3], {"value": {}},
)  # fmt: skip


def spoilt(document: Any, choose: random.Random) -> Any:
    """A copy with one place changed."""
    if isinstance(document, (list, dict)) and document and choose.random() > 0.15:
        copy = document.copy()
        key = choose.choice(range(len(copy)) if isinstance(copy, list) else list(copy))
        if choose.random() < 0.1:
            del copy[key]
        else:
            copy[key] = spoilt(copy[key], choose)
        return copy
    return choose.choice(NASTY)


def mangled(data: bytes, choose: random.Random) -> bytes:
    """Cut, doubled, or with other bytes in it."""
    a, b = sorted(choose.choices(range(len(data)), k=2))
    b = min(b, a + 200)
    nasty = (b"", data[a:b] * 2, b"NaN", b"1e999", b"\xff\xfe", b"\0", b"[" * 5000, b"9" * 5000,
             b"{", b"}", b" " * 5000, b"\xe2\x80\xa8", b"-", b"ns/op", b"time: [")  # fmt: skip
    return data[:a] + choose.choice(nasty) + data[b:]


@pytest.mark.parametrize("name", ALL)
def test_mutations(name: str) -> None:
    choose = random.Random(name)
    adapter, data = name.partition("/")[0], ALL[name]
    document = json.loads(data) if name.endswith(".json") else None
    # estimates.json is looked at where there is no sample.json
    alone = adapter != "criterion" or name.endswith("estimates.json")
    others = {} if alone else CRITERION
    for _ in range(60):
        survive(others | {name: mangled(data, choose)}, choose.choice([None, adapter]))
        if document is not None:
            changed = spoilt(spoilt(document, choose), choose)
            survive(others | {name: json.dumps(changed).encode()}, choose.choice([None, adapter]))


def test_many_matches() -> None:
    with pytest.raises(BenchmarkError) as error:
        adapters.read({"stdout": b"7" * 2_000_000, "/o": b"7" * 2_000_000}, None, ["x=(7)"])
    assert str(error.value) == "metric: more than 1000000 values in one run"


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 1_000_000,
        b'{"a":' * 1_000_000,
        b'{"a":\n' * 100_000,
        b"{\n" * 100_000,
        b"9" * 1_000_000,
        b"\n" * 1_000_000,
        b" " * 1_000_000,
        b"a " * 500_000,
        b"Benchmark" + b" 1" * 500_001,
        b"Benchmark Time CPU Iterations\n" + b"1 ns " * 200_000,
        b"time: [" * 200_000,
        b"time: [" + b"1 ns " * 200_000 + b"]",
        b"BenchmarkA 1 2 ns/op\n" * 50_000,
        json.dumps({f"{n}": {"latency": {"value": n}} for n in range(50_000)}).encode(),
        json.dumps({"results": [{"command": "a", "mean": 1}] * 50_000}).encode(),
        bytes(range(256)) * 4000,
    ],
    ids=lambda data: repr(data[:12]),
)
def test_much(data: bytes) -> None:
    """Work grows as the text does: each takes a second or two, quadratic would take hours."""
    begin = time.process_time()
    survive({"stdout": data}, None)
    assert time.process_time() - begin < 20
