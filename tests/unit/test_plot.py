"""A report as a picture, by matplotlib."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from pyvmm.benchmark import plot
from pyvmm.benchmark.model import Report
from pyvmm.errors import BenchmarkError, HostError, PyvmmError, UsageError

from . import reports


@pytest.mark.parametrize("name", ["a.pdf", "svg", "a.svg.gz"])
def test_kinds(name: str) -> None:
    with pytest.raises(UsageError) as error:
        plot.plot(reports.report(), name)
    assert str(error.value) == f"{name}: not a kind of picture; give a .svg or .png"


def test_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(HostError) as error:
        plot.check("a.svg")
    assert str(error.value) == "pictures need matplotlib: pip install 'pyvmm[plot]'"


def test_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(BenchmarkError) as error:
        plot.plot(Report(), tmp_path / "a.svg")
    assert str(error.value) == "nothing to draw: the report has no values"


def test_png(tmp_path: Path) -> None:
    """One benchmark is two pictures, each 675 dots wide; more are three."""
    pytest.importorskip("matplotlib")
    two = reports.report(reports.benchmark(), reports.benchmark("other", 0.5))
    for report, width in ((reports.report(), 1350), (two, 2025)):
        plot.plot(report, tmp_path / "a.PNG")
        data = (tmp_path / "a.PNG").read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(data[16:20]) == width


@pytest.mark.parametrize("report", [reports.report(), reports.hostile()])
def test_svg(report: Report, tmp_path: Path) -> None:
    """The same report is the same file."""
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        plot.plot(report, tmp_path / name)
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    axes = [each.get("id") for each in root.iter() if (each.get("id") or "").startswith("axes_")]
    assert axes == ["axes_1", "axes_2"]
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_no_place(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "no" / "a.svg"
    with pytest.raises(PyvmmError) as error:
        plot.plot(reports.report(), path)
    assert str(error.value) == f"{path}: cannot be written: No such file or directory"
