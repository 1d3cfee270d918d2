"""A report as a web page: whole, self-contained, and safe whatever the names are."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from pyvmm.benchmark.html import html
from pyvmm.benchmark.model import Report, Series
from pyvmm.benchmark.svg import DOTS_MAX
from pyvmm.errors import printable

from . import reports

EMPTY = {"meta"}


class Page(HTMLParser):
    """Its elements, attributes and text; fails at an end that has no beginning."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(data)


def test_page() -> None:
    report = reports.report(reports.benchmark(), reports.benchmark("other", 0.5))
    report.warnings = ["turbo is on"]
    page = Page(html(report))
    begin = page.text.index("sort, other", 1)
    assert page.text[begin : begin + 3] == [
        "sort, other", "2026-11-23T10:00:00+00:00", "turbo is on"
    ]  # fmt: skip
    head = page.text.index("metric")
    assert page.text[head : head + 15] == [
        "metric", "benchmark", "median", "95 % interval", "values", "range",
        "time", "sort", "1.375 s", "1.125 s to 1.750 s", "9",
        "other", "1.875 s", "1.625 s to 2.250 s", "9",
    ]  # fmt: skip
    assert page.tags.count("details") == 5
    assert page.tags.count("circle") == 2 * 2 * (9 + 9 + 3 + 2 + 1)
    for fact in ("Model <x> & Co", "performance", "python:3.13", "this host's KVM has no PMU"):
        assert fact in page.text
    assert "9, after 1 to warm up" in page.text


def test_compared() -> None:
    report = reports.report(reports.benchmark(), reports.benchmark("other", 0.125))
    (independent,) = (line for line in Page(html(report)).text if line.startswith("other is"))
    assert independent.startswith("other is 1.091 times sort: ")
    report.duet = ["sort", "other"]
    (paired,) = (line for line in Page(html(report)).text if line.startswith("other is"))
    assert paired.partition(", p ")[0] == "other is 1.091 times sort: 1.071 to 1.111 at 96.09 %"


@pytest.mark.parametrize("report", [Report(), reports.report(), reports.hostile()])
def test_fetches_and_runs_nothing(report: Report) -> None:
    page = Page(html(report))
    assert set(page.tags) <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "ul", "li",
        "div", "table", "tr", "th", "td", "details", "summary", "svg", "g", "text", "line",
        "circle", "polyline",
    }  # fmt: skip
    assert page.attributes <= {
        "lang", "charset", "http-equiv", "content", "name", "class", "open", "viewbox", "width",
        "role", "x", "y", "text-anchor", "cx", "cy", "r", "x1", "x2", "y1", "y2", "points",
    }  # fmt: skip
    assert "url(" not in html(report)
    assert html(report).count("default-src 'none'; style-src 'unsafe-inline'") == 1


def test_hostile() -> None:
    page = html(reports.hostile())
    page.encode()
    text = Page(page).text
    assert printable(reports.HOSTILE) in text
    assert page.replace("\n", "").isprintable()


def test_many_values() -> None:
    """The page stays small."""
    benchmark = reports.benchmark()
    values = [float(n) for n in range(4_000)]
    benchmark.series = {"time": Series("time", "s", "lower", "guest", [values])}
    page = html(reports.report(benchmark))
    assert page.count("<circle") == 2 * DOTS_MAX
    assert len(page) < 200_000
