"""KVM's tracepoints as events of perf: they count exactly, on every machine with KVM."""

from __future__ import annotations

import subprocess

import pytest

TYPE = 2  # linux/perf_event.h: PERF_TYPE_TRACEPOINT
PLACE = "/sys/kernel/tracing"


def tracepoint(name: str) -> tuple[int, int]:
    """Type and config of ``kvm/NAME``."""
    # In a mount namespace of its own: nothing stays mounted.
    mount = f"test -d {PLACE}/events || mount -t tracefs tracefs {PLACE}"
    script = f"{{ {mount}; }} && cat {PLACE}/events/kvm/{name}/id"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"kvm:{name} is not to be counted here: {done.stderr.strip()}")
    return TYPE, int(done.stdout)
