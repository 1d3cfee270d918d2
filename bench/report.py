"""What the measurements left, as one page: build/bench.md and build/bench.json."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import table
from kvmtrace import Exits

if TYPE_CHECKING:
    from measure import Bench

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
PAGE = ROOT / "docs/performance.md"
CAUSES = 24  # of each list; the rest is summed up


def part(clock: str) -> Path:
    """Where the measurements by one clock are left."""
    return BUILD / f"bench-{clock}.json"


def leave(clock: str, bench: Bench) -> None:
    """Write what was measured by one clock, perhaps in a machine of its own."""
    exits = [[*key, list(found.counts.items())] for key, found in bench.exits.items()]
    _write(clock, bench.rows, exits, bench.trouble)


def leave_rows(name: str, rows: list[table.Row]) -> None:
    """Write what was measured without a VM."""
    _write(name, rows, [], "")


def _write(name: str, rows: list[table.Row], exits: list[Any], trouble: str) -> None:
    found = {"rows": [row.plain() for row in rows], "exits": exits, "trouble": trouble}
    part(name).write_text(json.dumps(found))


def put_together(clocks: list[str]) -> str:
    """Write the page, and return it."""
    parts = [json.loads(part(clock).read_text()) for clock in clocks]
    rows = table.order(table.read(row) for found in parts for row in found["rows"])
    text = [f"{table.markdown(rows)}\n"]
    text += [f"No peer: {why}.\n" for why in {found["trouble"] for found in parts} if why]
    for found in parts:
        text += [_histogram(kernel, vmm, counts) for kernel, vmm, counts in found["exits"]]
    (BUILD / "bench.json").write_text(json.dumps([row.plain() for row in rows], indent=1))
    (BUILD / "bench.md").write_text("\n".join(text))
    return "\n".join(text)


def _histogram(kernel: str, vmm: str, counts: list[Any]) -> str:
    """What each exit was for: one line for each kind."""
    exits = Exits(Counter({(phase, user, cause): n for (phase, user, cause), n in counts}))
    lines = [f"{vmm}, {kernel} kernel:"]
    for user, words in ((True, "to user space"), (False, "within KVM")):
        causes = exits.causes(user=user)
        shown = [f"{n} {cause}" for cause, n in causes[:CAUSES]]
        if causes[CAUSES:]:
            rest = [n for _, n in causes[CAUSES:]]
            shown.append(f"{sum(rest)} of {len(rest)} other kinds")
        lines.append(f"- {sum(n for _, n in causes)} {words}: {', '.join(shown)}")
    return "\n".join(lines) + "\n"


def write_docs() -> None:
    """Put the pages where docs/performance.md has the last ones."""
    for name in ("bench", "bench-peers"):
        if (BUILD / f"{name}.md").exists():
            head, begin, rest = PAGE.read_text().partition(f"<!-- {name}: begin -->\n")
            _, end, tail = rest.partition(f"<!-- {name}: end -->")
            body = (BUILD / f"{name}.md").read_text()
            PAGE.write_text(head + begin + "\n" + body + "\n" + end + tail)
