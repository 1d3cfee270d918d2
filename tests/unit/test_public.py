"""The public surface."""

from __future__ import annotations

import importlib.util

import pyvmm


def test_every_name_is_there_and_stays_what_it_is() -> None:
    """A submodule of the same name would take its place once it is imported."""
    for name in pyvmm.__all__:
        first = getattr(pyvmm, name)
        assert getattr(pyvmm, name) is first
        assert importlib.util.find_spec(f"pyvmm.{name}") is None


def test_run_is_a_function() -> None:
    for _ in range(2):
        assert callable(pyvmm.run)
