"""What must be alike for two reports to be comparable: the host, its settings, the guest."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

from .. import __version__, kernel

VULNERABILITIES = "sys/devices/system/cpu/vulnerabilities"
SETTINGS = (
    ("clock source", "sys/devices/system/clocksource/clocksource0/current_clocksource"),
    ("transparent huge pages", "sys/kernel/mm/transparent_hugepage/enabled"),
    ("ASLR", "proc/sys/kernel/randomize_va_space"),
    ("SMT", "sys/devices/system/cpu/smt/control"),
    ("turbo off (intel_pstate)", "sys/devices/system/cpu/intel_pstate/no_turbo"),
    ("boost (cpufreq)", "sys/devices/system/cpu/cpufreq/boost"),
    ("isolated CPUs", "sys/devices/system/cpu/isolated"),
    ("NUMA balancing", "proc/sys/kernel/numa_balancing"),
)


def take(
    guest_kernel: str | None,
    root: str | os.PathLike[str] = "/",
    tell: Callable[[str], None] | None = None,
) -> dict[str, str]:
    """Fact by fact, in words; what this host does not tell is left out.

    ``tell`` is called with a line if the kernel must be fetched.
    """
    return dict(_facts(Path(root))) | {
        "host kernel": platform.release(),
        "guest kernel": _kernel(guest_kernel, tell),
        "pyvmm": __version__,
        "python": platform.python_version(),
    }


def _facts(root: Path) -> Iterator[tuple[str, str]]:
    cpu = _cpuinfo(root / "proc/cpuinfo")
    yield "CPU", cpu.get("model name", "unknown")
    yield "CPUs", str(cpu["processors"])
    if "microcode" in cpu:
        yield "microcode", cpu["microcode"]
    yield "virtualised", "yes" if "hypervisor" in cpu.get("flags", "").split() else "no"
    for path in sorted((root / VULNERABILITIES).glob("*")):
        if text := _text(path):
            yield f"mitigation {path.name}", text
    governors = {
        _text(path) for path in root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
    }
    if governors - {""}:
        yield "governor", ", ".join(sorted(governors - {""}))
    for name, where in SETTINGS:
        if text := _text(root / where):
            yield name, text


def _cpuinfo(path: Path) -> dict[str, str]:
    """The first CPU's lines, and how many there are."""
    text = _text(path)
    first, *others = text.split("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    return facts | {"processors": str(1 + sum(bool(each.strip()) for each in others))}


def _kernel(name: str | None, tell: Callable[[str], None] | None) -> str:
    found = kernel.find(name, progress=tell)
    return f"{found.name} {found.version}"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
