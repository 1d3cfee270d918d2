"""``pyvmm tune``: what on this host disturbs a benchmark; setting it; putting it back."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from ..arguments import Command, Option, Values
from ..cli import say
from ..errors import PyvmmError, UsageError
from . import session
from .checks import Check, checks


def _tune(a: Values) -> int:
    if a.apply and a.restore:
        raise UsageError("--apply or --restore, not both")
    if a.apply or a.restore:
        return _change(a)
    found = list(checks())
    if a.json:
        _write(a.json, [asdict(check) for check in found])
    if a.json != "-":
        print(table(found))
    return 0


def _change(a: Values) -> int:
    changed, notes = session.apply() if a.apply else session.restore()
    if a.json:
        _write(a.json, {"changed": changed, "notes": notes})
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


def _write(path: str, what: Any) -> None:
    text = json.dumps(what, indent=2) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as e:
        raise PyvmmError(f"{path}: cannot be written: {e.strerror}") from None


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
