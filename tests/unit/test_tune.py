"""Settings changed and put back, on a made-up host."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm import cli
from pyvmm.errors import HostError, UsageError
from pyvmm.tune import commands, journal, session
from pyvmm.tune.journal import Busy, Journal
from pyvmm.tune.recover import JOURNAL, pending, recover
from pyvmm.tune.session import apply, restore, tuned

from .host_tree import CPU, TOP, HostTree

CHANGED = {
    **{f"{CPU}/cpu{n}/cpufreq/scaling_governor": "performance" for n in range(4)},
    f"{CPU}/intel_pstate/no_turbo": "1",
    f"{CPU}/smt/control": "off",
    "proc/irq/10/smp_affinity_list": "0,2",
    "proc/irq/9/smp_affinity_list": "0,2",
    "proc/irq/default_smp_affinity": "5",
    "proc/sys/kernel/nmi_watchdog": "0",
    "proc/sys/kernel/numa_balancing": "0",
    "proc/sys/kernel/randomize_va_space": "0",
    "proc/sys/kernel/soft_watchdog": "0",
    "proc/sys/kernel/timer_migration": "0",
    "proc/sys/vm/swappiness": "1",
    "sys/devices/virtual/workqueue/cpumask": "5",
    "sys/kernel/mm/ksm/run": "0",
}
LINES = [
    "IRQ affinity: f -> 5",
    "work queues: f -> 5",
    "IRQ affinity: 0-3 -> 0,2",
    "IRQ affinity: 3 -> 0,2",
    "SMT siblings: on -> off",
    "governor: powersave -> performance (4 times)",
    "turbo: 0 -> 1",
    "ASLR: 2 -> 0",
    "NUMA balancing: 1 -> 0",
    "timer migration: 1 -> 0",
    "NMI watchdog: 1 -> 0",
    "soft watchdog: 1 -> 0",
    "swappiness: 60 -> 1",
    "KSM: 1 -> 0",
]
SWAPPINESS = "proc/sys/vm/swappiness"


def backwards(line: str) -> str:
    name, _, values = line.partition(": ")
    values, times, count = values.partition(" (")
    old, _, new = values.partition(" -> ")
    return f"{name}: {new} -> {old}{times}{count}"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostTree:
    return HostTree(tmp_path, monkeypatch)


def latency_note(host: HostTree) -> str:
    return (
        "C-states: last only as long as it is held open: see bench --tune "
        f"({host.path}/dev/cpu_dma_latency)"
    )


# ---- for a time ----


def test_tuned(host: HostTree) -> None:
    group = f"{TOP}/pyvmm-partition"
    with tuned(host.path) as tuning:
        changes = host.changes()
        inside = {path: changes.pop(path) for path in list(changes) if path.startswith(group)}
        assert changes == CHANGED | {"dev/cpu_dma_latency": "\0\0\0\0"}
        assert inside[f"{group}/cpuset.cpus"] == "1,3"
        assert inside[f"{group}/cpuset.cpus.partition"] == "isolated"
        assert sorted(inside[f"{group}/cgroup.subtree_control"].split()) == [
            "cpu", "io", "memory", "pids",
        ]  # fmt: skip
        assert (tuning.changed, tuning.notes) == ([*LINES, "partition: none -> made"], [])
        assert (tuning.benchmark, tuning.housekeeping) == ([1, 3], [0, 2])
        assert tuning.cgroup == f"{host.path}/{group}"
        assert pending(host.path)
        assert host.ours() == ["tune.journal", "tune.lock"]
    # What the device forgets when it is closed, a file does not.
    assert host.changes() == {"dev/cpu_dma_latency": "\0\0\0\0"}
    assert tuning.notes == []
    assert not pending(host.path)
    assert host.ours() == ["tune.lock"]


def test_an_error_inside_puts_back(host: HostTree) -> None:
    host.remove("dev/cpu_dma_latency")
    del host.original["dev/cpu_dma_latency"]
    notes = []

    def fail() -> None:
        with tuned(host.path) as tuning:
            notes.extend(tuning.notes)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert notes == [
        f"C-states: cannot be held: No such file or directory ({host.path}/dev/cpu_dma_latency)"
    ]
    assert host.changes() == {}


def test_one_core_has_no_partition(host: HostTree) -> None:
    host.put(f"{CPU}/online", "0")
    with tuned(host.path) as tuning:
        assert (tuning.benchmark, tuning.housekeeping, tuning.cgroup) == ([0], [], "")
        assert host.get("proc/irq/default_smp_affinity") == "f"


def test_what_does_not_disturb_is_left(host: HostTree) -> None:
    host.put(SWAPPINESS, "0")
    host.put("sys/kernel/mm/ksm/run", "2")
    host.put(f"{CPU}/smt/active", "0")
    host.remove("proc/sys/kernel/numa_balancing")
    with tuned(host.path) as tuning:
        assert host.get(SWAPPINESS) == "0"
        assert host.get("sys/kernel/mm/ksm/run") == "2"
        assert host.get(f"{CPU}/smt/control") == "on"
        names = {line.partition(":")[0] for line in tuning.changed}
        assert not names & {"swappiness", "KSM", "SMT siblings", "NUMA balancing"}


# ---- what is refused ----


def test_what_cannot_be_written_is_noted(host: HostTree) -> None:
    for n in range(4):
        path = f"{CPU}/cpu{n}/cpufreq/scaling_governor"
        host.refused[path] = OSError(errno.EROFS, os.strerror(errno.EROFS))
    host.refused["proc/irq/9/smp_affinity_list"] = OSError(errno.EIO, os.strerror(errno.EIO))
    host.reads[SWAPPINESS] = "7"
    with tuned(host.path) as tuning:
        assert tuning.notes == [
            f"IRQ affinity: cannot be set: Input/output error "
            f"({host.path}/proc/irq/9/smp_affinity_list)",
            f"governor: cannot be set: Read-only file system "
            f"({host.path}/{CPU}/cpu0/cpufreq/scaling_governor and 3 more)",
            f"swappiness: does not take 1: it reads 7 ({host.path}/{SWAPPINESS})",
        ]
        assert host.get(f"{CPU}/cpu0/cpufreq/scaling_governor") == "powersave"


def test_a_partition_that_is_not_taken(host: HostTree) -> None:
    group = f"{TOP}/pyvmm-partition"
    host.reads[f"{group}/cpuset.cpus.partition"] = "isolated invalid (Parent is no root)"
    with tuned(host.path) as tuning:
        assert tuning.notes == [
            "partition: is no partition, others may run on its CPUs: isolated was not taken: "
            f"isolated invalid (Parent is no root) ({host.path}/{group})"
        ]
        assert tuning.cgroup == f"{host.path}/{group}"


def test_a_partition_that_is_only_a_root(host: HostTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """As before Linux 6.1."""
    from pyvmm.tune import partition

    def write(name: str, text: str) -> None:
        if text == "isolated":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        host._write(name, text)

    monkeypatch.setattr(partition, "write", write)
    with tuned(host.path) as tuning:
        group = f"{TOP}/pyvmm-partition"
        assert host.get(f"{group}/cpuset.cpus.partition") == "root"
        assert tuning.notes == [
            "partition: is a root one: isolated was not taken: Invalid argument "
            f"({host.path}/{group})"
        ]


@pytest.mark.parametrize(
    ("controllers", "why"),
    [("cpu memory", "no cgroup2 here has the cpuset controller"), (None, "no cgroup2 here")],
)
def test_no_cpuset_controller(host: HostTree, controllers: str | None, why: str) -> None:
    if controllers:
        host.put(f"{TOP}/cgroup.controllers", controllers)
    else:
        host.remove(f"{TOP}/cgroup.controllers")
    with tuned(host.path) as tuning:
        assert tuning.cgroup == ""
        assert tuning.notes == [f"partition: {why} ({host.path}/{TOP})"]


def test_somebody_elses_cgroup_of_that_name(host: HostTree) -> None:
    group = f"{TOP}/pyvmm-partition"
    host.put(f"{group}/precious", "1")
    with tuned(host.path) as tuning:
        assert tuning.cgroup == ""
        assert tuning.notes == [f"partition: is there, and is none of ours ({host.path}/{group})"]
    assert host.get(f"{group}/precious") == "1"


def test_without_a_journal_nothing_is_changed(host: HostTree) -> None:
    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(HostError) as caught, tuned(host.path):
            pass
    assert str(caught.value) == (
        f"{host.path}/{JOURNAL}: cannot be written: No space left on device"
    )
    assert host.changes() == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights, which it does not have")
def test_who_is_not_root(host: HostTree) -> None:
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setuid(65534)
            Journal(host.path)
        except HostError as e:
            os.write(tell, str(e).encode())
        finally:
            os._exit(0)
    os.close(tell)
    os.waitpid(pid, 0)
    with open(told) as said:
        assert said.read() == (
            f"{host.path}/run/pyvmm: Permission denied: tuning needs root, and a /run to write"
        )


# ---- one at a time ----


def test_two_at_once(host: HostTree, monkeypatch: pytest.MonkeyPatch) -> None:
    with tuned(host.path):
        before = host.snapshot()
        text = (
            f"another pyvmm tunes this host ({host.path}/run/pyvmm/tune.lock is locked): wait for "
            "its end, or run without --tune; nothing was changed"
        )
        with pytest.raises(Busy) as caught:
            Journal(host.path, wait=0.1)
        assert str(caught.value) == text
        assert pending(host.path)
        assert recover(host.path) == []  # its owner lives
        assert host.snapshot() == before


# ---- for good ----


def test_apply_and_restore(host: HostTree) -> None:
    assert apply(host.path) == (LINES, [latency_note(host)])
    assert host.changes() == CHANGED
    assert host.ours() == ["tune.applied", "tune.lock"]
    assert not pending(host.path)
    assert apply(host.path) == ([], [latency_note(host)])
    with tuned(host.path) as tuning:  # finds but the partition to do
        assert tuning.changed == ["partition: none -> made"]
    del host.original["dev/cpu_dma_latency"]
    host.remove("dev/cpu_dma_latency")
    assert host.changes() == CHANGED
    back = [backwards(line) for line in reversed(LINES)]
    assert restore(host.path) == (back, [])
    assert host.changes() == {}
    assert host.ours() == ["tune.lock"]
    assert restore(host.path) == ([], [])


def test_what_somebody_else_set_since_is_left(host: HostTree) -> None:
    apply(host.path)
    host.put(SWAPPINESS, "30")
    host.put("sys/kernel/mm/ksm/run", "1")  # the old value
    host.remove("proc/irq/10/smp_affinity_list")
    changed, notes = restore(host.path)
    assert notes == [
        f"swappiness: left as it is: set to 30 by somebody else since ({host.path}/{SWAPPINESS})"
    ]
    assert len(changed) == len(LINES) - 3
    assert host.changes() == {SWAPPINESS: "30", "proc/irq/10/smp_affinity_list": "-"}
    assert restore(host.path) == ([], [])


def test_what_cannot_be_put_back_is_tried_again(host: HostTree) -> None:
    apply(host.path)
    host.refused[SWAPPINESS] = OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    note = f"swappiness: cannot be put back: Device or resource busy ({host.path}/{SWAPPINESS})"
    assert restore(host.path)[1] == [note]
    assert host.changes() == {SWAPPINESS: "1"}
    assert not pending(host.path)
    host.refused.clear()
    assert restore(host.path) == (["swappiness: 1 -> 60"], [])
    assert host.changes() == {}


# ---- after a kill ----


def left_behind(host: HostTree) -> None:
    """As SIGKILL in the middle leaves it."""
    with Journal(host.path) as held:
        held.set("swappiness", SWAPPINESS, "1")
        held.set("ASLR", "proc/sys/kernel/randomize_va_space", "0")


def test_recover(host: HostTree) -> None:
    left_behind(host)
    assert pending(host.path)
    assert recover(host.path) == [
        "put back what a killed pyvmm had changed on this host: 2 settings"
    ]
    assert host.changes() == {}
    assert not pending(host.path)
    assert recover(host.path) == []


def test_the_next_tuned_recovers(host: HostTree) -> None:
    left_behind(host)
    assert apply(host.path)[0] == LINES
    restore(host.path)
    assert host.changes() == {}


def test_a_reboot_voids_it(host: HostTree) -> None:
    left_behind(host)
    host.put("proc/sys/kernel/random/boot_id", "b1")
    assert recover(host.path) == []
    assert host.get(SWAPPINESS) == "1"
    assert host.ours() == ["tune.lock"]


@pytest.mark.parametrize("text", ["", '{"boot', '{"boot": "b0"}\n{"name": "swapp'])
def test_a_line_without_its_end(host: HostTree, text: str) -> None:
    left_behind(host)
    restore(host.path)
    Path(host.path, JOURNAL).write_text(text)
    assert recover(host.path) == []
    assert host.ours() == ["tune.lock"]


@pytest.mark.parametrize(
    "text", ["x\n", "[]\n", "{}\n", '{"boot": "b0"}\n{}\n', '{"boot": "b0"}\n[1]\n', "\xff\n"]
)
def test_a_damaged_one(host: HostTree, text: str) -> None:
    left_behind(host)
    Path(host.path, JOURNAL).write_text(text)
    assert recover(host.path) == [
        f"journal: is damaged, and was moved to the same name with .damaged ({host.path}/{JOURNAL})"
    ]
    assert host.ours() == ["tune.journal.damaged", "tune.lock"]


def test_every_command_looks_for_the_same_file() -> None:
    assert f"/{JOURNAL}" == cli.UNDONE


def test_looking_imports_nothing() -> None:
    code = (
        "import os, sys, pyvmm; before = set(sys.modules)\n"
        "import pyvmm.tune.recover; pyvmm.tune.recover.pending()\n"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], check=True, capture_output=True,
                          text=True, cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.stdout == "['pyvmm.tune', 'pyvmm.tune.recover']\n"


# ---- the command ----


def values(**options: object) -> object:
    given = {"apply": False, "restore": False, "json": None, "words": []} | options
    return type("Values", (), given)()


def test_command(
    host: HostTree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (command,) = commands.COMMANDS
    monkeypatch.setattr(session, "apply", lambda: apply(host.path))
    monkeypatch.setattr(session, "restore", lambda: restore(host.path))
    assert command.function(values(apply=True)) == 0  # type: ignore[arg-type]
    assert capsys.readouterr() == ("\n".join(LINES) + "\n", f"pyvmm: {latency_note(host)}\n")
    assert command.function(values(restore=True, json="-")) == 0  # type: ignore[arg-type]
    out, err = capsys.readouterr()
    back = [backwards(line) for line in reversed(LINES)]
    assert (json.loads(out), err) == ({"changed": back, "notes": []}, "")
    assert command.function(values(restore=True)) == 0  # type: ignore[arg-type]
    assert capsys.readouterr() == ("nothing to put back\n", "")


def test_command_that_cannot_be_meant() -> None:
    (command,) = commands.COMMANDS
    with pytest.raises(UsageError) as caught:
        command.function(values(apply=True, restore=True))  # type: ignore[arg-type]
    assert str(caught.value) == "--apply or --restore, not both"


def test_wait_is_short() -> None:
    assert journal.WAIT == 2.0
