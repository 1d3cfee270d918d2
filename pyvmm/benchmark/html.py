"""A report as one web page: tables and pictures, nothing fetched, no script."""

from __future__ import annotations

from collections.abc import Iterable

from .estimates import Estimate, by_metric, estimates, to_first
from .model import Benchmark, Report
from .remarks import remarks
from .svg import bar, distributions, order, text
from .units import number, quantity

# Colours that the colour-blind tell apart (Okabe and Ito, 2008), lighter in the dark.
STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --dim: #59636e; --line: #d1d9e0;
  --paper: #fff; --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b14a85; --c4: #9a6700;
  --c5: #3d7ea6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9198a1; --line: #3d444d;
  --paper: #0d1117; --c0: #56b4e9; --c1: #f0883e; --c2: #3fb98f; --c3: #e29bc6; --c4: #e3b341;
  --c5: #8ec9e8; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
h3, caption { font-size: 1rem; font-weight: 600; text-align: left; margin: 1rem 0 .3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: break-word; }
td { max-width: 18rem; } .facts td { max-width: 45rem; }
th { color: var(--dim); font-weight: 500; }
td.number, th.number { text-align: right; } .number, .interval { white-space: nowrap; }
td svg { max-width: none; }
.dim { color: var(--dim); }
summary { cursor: pointer; font-weight: 600; margin-top: .6rem; }
svg { max-width: 100%; height: auto; vertical-align: middle; font-size: 12px; }
svg text { fill: var(--dim); } g text { fill: currentColor; }
line { stroke: currentColor; } line.grid { stroke: var(--line); }
line.range { stroke-width: 1.5; opacity: .5; } line.interval { stroke-width: 6; opacity: .55; }
line.median { stroke-width: 2.5; }
circle { fill: currentColor; opacity: .6; }
polyline { fill: none; stroke: currentColor; stroke-width: 1; opacity: .35; }
""" + "".join(f".c{n} {{ color: var(--c{n}); }}\n" for n in range(6))


def html(report: Report) -> str:
    """The page. Names in it may be an image's or a guest's: they are escaped.

    The policy in its head lets a browser run and fetch nothing, even if one of them were not.
    """
    groups = by_metric(estimates(report))
    names = ", ".join(each.name for each in report.benchmarks)
    if (count := len(report.benchmarks)) > 3:
        names = f"{count} benchmarks"
    mains = {each.main for each in report.benchmarks}
    body = [
        f"<h1>{text(names) or 'No benchmark'}</h1>",
        f'<p class="dim">{text(report.started)}</p>' if report.started else "",
        _list([*report.warnings, *_remarks(report)]),
        _results(report, groups),
        *(_metric(report, group, group[0].series.name in mains) for group in groups),
        "<h2>Benchmarks</h2>",
        *(_benchmark(each) for each in report.benchmarks),
        "<h2>Host and settings</h2>",
        _facts(report.fingerprint.items()),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(names)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _remarks(report: Report) -> list[str]:
    many = len(report.benchmarks) > 1
    return [
        f"{each.name}: {remark}" if many else remark
        for each in report.benchmarks
        for remark in remarks(each, report.confidence)
    ]


def _results(report: Report, groups: list[list[Estimate]]) -> str:
    head = (
        "<tr><th>metric</th><th>benchmark</th><th class=number>median</th>"
        f"<th>{report.confidence * 100:.4g} % interval</th><th class=number>values</th>"
        "<th>range</th></tr>"
    )
    rows = []
    for group in groups:
        axis = (
            min(min(each.values) for each in group),
            max(max(each.values) for each in group),
        )
        for n, each in enumerate(group):
            rows.append(
                f"<tr><td>{text(each.series.name) if not n else ''}</td>"
                f"<td>{text(each.benchmark.name)}</td>"
                f"<td class=number>{text(quantity(each.median, each.unit))}</td>"
                f"<td class=interval>{_interval(each)}</td><td class=number>{len(each.values)}</td>"
                f'<td class="c{n % 6}">{bar(each, axis)}</td></tr>'
            )
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>' if rows else ""


def _interval(each: Estimate) -> str:
    if not each.interval:
        return ""
    low, high = (text(quantity(end, each.unit)) for end in (each.interval.low, each.interval.high))
    return each.plus_minus() if low == high else f"{low} to {high}"


def _metric(report: Report, group: list[Estimate], shown: bool) -> str:
    compared = []
    for each, ratio in to_first(report, group) if shown else ():
        line = f"{each.benchmark.name} is {number(ratio.value)} times {group[0].benchmark.name}"
        if interval := ratio.interval:
            ends = f"{number(interval.low)} to {number(interval.high)}"
            line += f": {ends} at {interval.confidence * 100:.4g} %"
        compared.append(f"{line}, p {ratio.p:.2g}")
    return (
        f"<details{' open' if shown else ''}><summary>{text(group[0].series.name)}</summary>"
        f"{_list(compared)}<h3>Values, median and its interval</h3>{distributions(group)}"
        f"<h3>In the order of the runs</h3>{order(group)}</details>"
    )


def _benchmark(benchmark: Benchmark) -> str:
    warmups = sum(run.warmup for run in benchmark.runs)
    facts = {
        "image": benchmark.image,
        "digest": benchmark.digest,
        "command": " ".join(benchmark.command),
        "runs": f"{len(benchmark.runs) - warmups}, after {warmups} to warm up",
        "mode": benchmark.mode,
        "adapter": benchmark.adapter,
    }
    pairs = [(name, fact) for name, fact in facts.items() if fact]
    pairs += [(f"parameter {name}", value) for name, value in benchmark.params.items()]
    pairs += [(f"option {name}", value) for name, value in benchmark.options.items()]
    pairs += [(f"no {name}", reason) for name, reason in benchmark.unavailable.items()]
    for run in benchmark.runs:
        pairs += [(f"run {run.order}", warning) for warning in run.warnings]
    return f"<h3>{text(benchmark.name)}</h3>{_facts(pairs)}"


def _facts(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th>{text(name)}</th><td>{text(fact)}</td></tr>" for name, fact in pairs)
    return f'<div class="scroll facts"><table>{rows}</table></div>' if rows else ""


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""
