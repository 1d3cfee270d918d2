"""Quantities for people, base units for files."""

from __future__ import annotations

import pytest

from pyvmm.benchmark.units import base, number, quantity


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("s", ("s", 1.0)), ("ms", ("s", 1e-3)), ("us", ("s", 1e-6)), ("µs", ("s", 1e-6)),
        ("ns", ("s", 1e-9)), ("B", ("B", 1.0)), ("KiB", ("B", 1024.0)), ("MB", ("B", 1e6)),
        ("ops/s", ("ops/s", 1.0)), ("", ("", 1.0)),
    ],
)  # fmt: skip
def test_base(unit: str, expected: tuple[str, float]) -> None:
    assert base(unit) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (1.0, "1"), (1.5, "1.500"), (12.3456, "12.35"), (9.99996, "10.00"),
        (1234.5, "1234"), (-2.0, "-2"), (0.00123456, "0.001235"), (1e9, "1.000e+09"),
        (1e-9, "1.000e-09"), (999999.9, "1.000e+06"),
    ],
)  # fmt: skip
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.5, "s", "1.500 s"), (0.0123, "s", "12.30 ms"), (820.0, "ns", "820 ns"),
        (8.2e-10, "s", "0.8200 ns"), (0.0, "s", "0 s"), (0.0, "B", "0 B"), (90.0, "B", "90 B"),
        (512.0, "KiB", "512 KiB"), (1.5 * 2**30, "B", "1.500 GiB"), (99999.0, "", "99999"),
        (3.2e9, "", "3.200 G"), (250000.0, "ops/s", "250 k ops/s"), (1e7, "%", "1.000e+07 %"),
        (-0.5, "ms", "-500 µs"), (12.5, "ops/s", "12.50 ops/s"),
    ],
)  # fmt: skip
def test_quantity(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text
