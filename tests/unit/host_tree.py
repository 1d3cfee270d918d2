"""A made-up host: the files below a root that pyvmm.tune uses, and a kernel for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm import delegation
from pyvmm.tune import journal, partition

CPU = "sys/devices/system/cpu"
TOP = "sys/fs/cgroup"
FILES = {
    "proc/sys/kernel/random/boot_id": "b0",
    "proc/sys/kernel/randomize_va_space": "2",
    "proc/sys/kernel/numa_balancing": "1",
    "proc/sys/kernel/timer_migration": "1",
    "proc/sys/kernel/nmi_watchdog": "1",
    "proc/sys/kernel/soft_watchdog": "1",
    "proc/sys/vm/swappiness": "60",
    "sys/kernel/mm/ksm/run": "1",
    f"{CPU}/online": "0-3",
    f"{CPU}/smt/control": "on",
    f"{CPU}/smt/active": "1",
    f"{CPU}/intel_pstate/no_turbo": "0",
    "proc/irq/default_smp_affinity": "f",
    "sys/devices/virtual/workqueue/cpumask": "f",
    "proc/irq/9/smp_affinity_list": "0-3",
    "proc/irq/10/smp_affinity_list": "3",
    f"{TOP}/cgroup.controllers": "cpuset cpu io memory pids",
    f"{TOP}/cgroup.subtree_control": "cpuset cpu io memory pids",
    **{f"{CPU}/cpu{n}/cpufreq/scaling_governor": "powersave" for n in range(4)},
    **{f"{CPU}/cpu{n}/topology/thread_siblings_list": f"{n % 2},{n % 2 + 2}" for n in range(4)},
}
GROUP = ("cgroup.controllers", "cgroup.subtree_control", "cgroup.procs", "cgroup.events",
         "cpuset.cpus", "cpuset.cpus.partition")  # fmt: skip


class HostTree:
    """``path`` is the root. What is written is taken whole or not at all, as by the kernel."""

    def __init__(self, place: Path, patch: pytest.MonkeyPatch) -> None:
        self.path = str(place / "host")
        self.part = str(place / "part")
        self.refused: dict[str, OSError] = {}
        """files that cannot be written, and why"""
        self.reads: dict[str, str] = {}
        """files that, once written, read otherwise"""
        for path, text in FILES.items():
            self.put(path, text)
        self.put("dev/cpu_dma_latency", "any")  # with its newline, an int32's four bytes
        self.original = self.snapshot()
        for module in (journal, partition, delegation):
            patch.setattr(module, "write", self._write)
        mkdir, rmdir = os.mkdir, os.rmdir
        top = os.path.join(self.path, TOP)

        def new_group(path: str, mode: int = 0o777) -> None:
            mkdir(path, mode)
            if str(path).startswith(top):
                for name in GROUP:
                    Path(path, name).touch()

        def old_group(path: str) -> None:
            if path.startswith(top):  # a real cgroup's files are no obstacle
                for name in os.listdir(path):
                    os.unlink(os.path.join(path, name))
            rmdir(path)

        patch.setattr(os, "mkdir", new_group)
        patch.setattr(os, "rmdir", old_group)

    def put(self, path: str, text: str) -> None:
        full = Path(self.path, path)
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_text(text + "\n")

    def get(self, path: str) -> str:
        return Path(self.path, path).read_text().strip()

    def remove(self, path: str) -> None:
        Path(self.path, path).unlink()

    def _write(self, name: str, text: str, directory: int | None = None) -> None:
        assert directory is None
        path = os.path.relpath(name, self.path)
        if path in self.refused:
            raise self.refused[path]
        os.stat(name)
        if name.endswith("subtree_control"):
            text = " ".join({*Path(name).read_text().split(), text[1:]})
            if path in FILES:
                return  # all are on, already
        Path(self.part).write_text(self.reads.get(path, text) + "\n")
        os.rename(self.part, name)

    def snapshot(self) -> dict[str, bytes]:
        """All files but pyvmm's own."""
        return {
            str(path.relative_to(self.path)): path.read_bytes()
            for path in Path(self.path).rglob("*")
            if path.is_file() and path.relative_to(self.path).parts[0] != "run"
        }

    def changes(self) -> dict[str, str]:
        """What differs from the beginning, by path; "-" for what is gone."""
        now = self.snapshot()
        return {
            path: now[path].decode().strip() if path in now else "-"
            for path in sorted(now | self.original)
            if now.get(path) != self.original.get(path)
        }

    def ours(self) -> list[str]:
        """The names in /run/pyvmm."""
        return sorted(os.listdir(os.path.join(self.path, "run/pyvmm")))
