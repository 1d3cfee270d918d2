"""Where a run's time went: its phases, and a picture of them for a terminal."""

from __future__ import annotations

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from typing import Any

    from .results import Result

# Each phase ends at an instant that caller, worker or guest has noted, and begins where the last
# one ended.
PHASES = (
    ("python", "begin", "interpreter and imports (its CPU time)"),
    ("prepare", "prepared", "image and kernel found, disk ready"),
    ("spawn", "spawned", "files opened and handed to a worker"),
    ("worker", "ready", "until the worker has made a VM, meanwhile"),
    ("memory", "made", "guest RAM reserved"),
    ("load", "loaded", "kernel and initramfs copied into it"),
    ("devices", "start", "devices and vCPUs made"),
    ("kernel", "init", "first guest instruction until init runs"),
    ("agent", "program", "init, until the program is let go"),
    ("program", "ended", "the program"),
    ("collect", "end", "outputs and results brought back"),
)
WIDTH = 40
EIGHTHS = " ▏▎▍▌▋▊▉█"


def phases(times: dict[str, float]) -> list[dict[str, Any]]:
    """The phases that the instants ``times`` (CLOCK_MONOTONIC, seconds) bound.

    ``process`` is when the program that asked for the run began, ``begin`` when it had; without the
    first there is no phase ``python``.
    """
    found: list[dict[str, Any]] = []
    zero = last = times.get("process", times["begin"])
    for name, end, _ in PHASES:
        if end not in times or (name == "python" and "process" not in times):
            continue
        found.append({"name": name, "at": last - zero, "seconds": times[end] - last})
        last = times[end]
    return found


def picture(result: Result, *, ascii_only: bool = False) -> str:
    """One line a phase: milliseconds, name, a bar, meaning; then the exits."""
    meanings = {name: meaning for name, _, meaning in PHASES}
    total = max((p["at"] + p["seconds"] for p in result.timeline), default=0) or 1.0
    lines = []
    for phase in result.timeline:
        bar = _bar(phase["at"] / total, phase["seconds"] / total, ascii_only)
        name = phase["name"]
        lines.append(f"{phase['seconds'] * 1000:9.1f} ms  {name:8} {bar} {meanings[name]}")
    lines.append(f"{total * 1000:9.1f} ms  total")
    exits = result.exits
    if exits:
        kinds = ", ".join(f"{count} {kind}" for kind, count in exits.items() if kind != "kvm")
        lines.append(f"exits to user space: {kinds}; all: {exits['kvm'] or 'unknown'}")
    return "\n".join(lines)


def _bar(at: float, share: float, ascii_only: bool) -> str:
    """``share`` of the width from ``at`` on, to an eighth of a column, and always to be seen."""
    begin = min(int(at * WIDTH), WIDTH - 1)
    eighths = max(1, min(round((at + share) * WIDTH * 8), WIDTH * 8) - begin * 8)
    full, part = divmod(eighths, 8)
    blocks = "#" * max(1, round(eighths / 8)) if ascii_only else "█" * full + EIGHTHS[part].strip()
    return f"{' ' * begin}{blocks}".ljust(WIDTH)
