"""A run's phases as a table for people."""

from __future__ import annotations

from .results import Result

PHASES = (
    ("prepare", "image and kernel found, disk ready"),
    ("spawn", "worker process started"),
    ("vmm", "worker up, VM built, until the first guest instruction"),
    ("kernel", "guest kernel, until init runs"),
    ("agent", "init, until the program is let go"),
    ("program", "the program (guest's clock)"),
    ("collect", "outputs and results brought back"),
)


def table(result: Result) -> str:
    """One line a phase: milliseconds, name, meaning; then the exits."""
    lines = [
        f"{result.timings[name] * 1000:10.1f} ms  {name:8} {meaning}"
        for name, meaning in PHASES
        if name in result.timings
    ]
    lines.append(f"{result.timings['total'] * 1000:10.1f} ms  total")
    exits = result.exits
    if exits:
        kinds = ", ".join(f"{count} {kind}" for kind, count in exits.items() if kind != "kvm")
        lines.append(f"exits to user space: {kinds}; all: {exits['kvm'] or 'unknown'}")
    return "\n".join(lines)
