"""``pyvmm tune``: what on this host disturbs a benchmark; setting it; putting it back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from ..arguments import Command, Option, Values
from ..cli import say
from ..errors import UsageError
from ..whole_file import write_text
from . import session
from .checks import Check, checks


def _tune(a: Values) -> int:
    if a.apply and a.restore:
        raise UsageError("--apply or --restore, not both")
    if a.apply or a.restore:
        return _change(a)
    found = list(checks())
    if a.json:
        write_text(a.json, _json([asdict(check) for check in found]))
    if a.json != "-":
        print(table(found))
    return 0


def _change(a: Values) -> int:
    changed, notes = session.apply() if a.apply else session.restore()
    if a.json:
        write_text(a.json, _json({"changed": changed, "notes": notes}))
    if a.json != "-":
        for line in changed or ["nothing to change" if a.apply else "nothing to put back"]:
            print(line)
    for note in notes:
        say(note)
    return 0


def table(found: list[Check]) -> str:
    """Name, reading and verdict; below what disturbs, how and the mend."""
    wide = max(len(check.name) for check in found)
    lines = []
    for check in found:
        lines.append(f"{check.verdict:8}  {check.name:{wide}}  {check.reading}")
        if check.why:
            lines.append(f"{'':{wide + 12}}{check.why}")
        if check.mend:
            lines.append(f"{'':{wide + 12}}mend: {check.mend}")
    return "\n".join(lines)


def _json(what: Any) -> str:
    return json.dumps(what, indent=2) + "\n"


COMMANDS = (
    Command(
        "tune",
        "Say what on this host disturbs a benchmark, and the mend.",
        _tune,
        (
            Option("--apply", "", "set what can be, until --restore (root)", False),
            Option("--restore", "", "put back what --apply, or a killed bench, changed", False),
            Option("--json", "FILE", "as JSON; - is stdout"),
        ),
    ),
)  # fmt: skip
