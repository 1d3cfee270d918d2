"""What a VM's early end means, in one line for people."""

from __future__ import annotations

import os

from .errors import GuestError, HostError, PyvmmError

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from typing import Any

KVM_EXIT_INTERNAL_ERROR = 17


def explain(report: dict[str, Any], console: str, otherwise: str) -> PyvmmError:
    """The exception for a VM that ended before its results were complete.

    ``report`` is the worker's, empty if it died; ``otherwise`` says what the caller knows.
    """
    if report.get("end") == "failed":
        kind = HostError if report["error"] == "HostError" else PyvmmError
        return kind(report["message"])
    if report.get("kvm_exit") == KVM_EXIT_INTERNAL_ERROR:
        from .doctor import why_not_linux

        if reason := why_not_linux():
            return HostError(reason)
    return GuestError(
        _reason(report, console, otherwise),
        console=console,
        registers=report.get("registers", ""),
    )


def _reason(report: dict[str, Any], console: str, otherwise: str) -> str:
    import re  # runs end well, mostly

    end = report.get("end")
    panic = re.search(r"Kernel panic - not syncing: (.*)", console)
    if panic and re.search(r"out of memory|deadlocked on memory", panic[1], re.IGNORECASE):
        return f"guest out of memory: {panic[1]} (give it more with --memory)"
    if panic:
        return f"guest kernel panic: {panic[1]}"
    if end == "crash":
        return "guest crashed: triple fault or reboot, with no panic on its console"
    if end == "reset":
        last = console.strip().splitlines()[-1:] or ["no word on its console"]
        return f"guest ended early: {last[0]}"
    if end == "unknown":
        detail = ", ".join(f"{d:#x}" for d in report["detail"])
        return f"KVM exit {report['kvm_exit']} is not understood (detail {detail})"
    if end == "errno":
        return f"KVM_RUN failed: {os.strerror(report['errno'])}"
    return otherwise
