"""What the formats share."""

from __future__ import annotations

import json
from collections.abc import Sized
from typing import TypeVar

from ...errors import BenchmarkError
from ..estimates import Estimate, estimates
from ..model import Report

T = TypeVar("T", bound=Sized)


def measured(report: Report) -> list[Estimate]:
    """The report's estimates. Raises BenchmarkError if it has none."""
    return some(estimates(report), "has no values")


def some(found: T, lacks: str) -> T:
    """``found``, unless it is empty. Raises BenchmarkError: the report ``lacks`` what it takes."""
    if not found:
        raise BenchmarkError(f"nothing to export: the report {lacks}")
    return found


def dumps(document: object) -> str:
    """A JSON file."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
