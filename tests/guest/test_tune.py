"""A real host's settings, changed and put back. As root, and only in the kvmbox: a machine that
people work on is not to be changed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.cgroup import Cgroup
from pyvmm.tune import partition, session
from pyvmm.tune.journal import Journal
from pyvmm.tune.recover import pending, recover

KERNEL = Path("/proc/sys/kernel")
FILES = {
    "ASLR": KERNEL / "randomize_va_space",
    "NUMA balancing": KERNEL / "numa_balancing",
    "timer migration": KERNEL / "timer_migration",
    "NMI watchdog": KERNEL / "nmi_watchdog",
    "soft watchdog": KERNEL / "soft_watchdog",
    "swappiness": Path("/proc/sys/vm/swappiness"),
    "KSM": Path("/sys/kernel/mm/ksm/run"),
}
QUIET = dict.fromkeys(FILES, "0") | {"swappiness": "1"}
NOISY = {
    "ASLR": "2", "NUMA balancing": "1", "timer migration": "1", "NMI watchdog": "1",
    "soft watchdog": "1", "swappiness": "60", "KSM": "1",
}  # fmt: skip
LATENCY = Path("/dev/cpu_dma_latency")
RUN = Path("/run/pyvmm")
GROUP = Path("/sys/fs/cgroup/pyvmm-partition")

pytestmark = pytest.mark.skipif(
    not os.path.ismount("/opt/pyvmm") or os.geteuid() != 0,  # where the box has pyvmm
    reason="changes its host: only as root in the kvmbox",
)


def now() -> dict[str, str]:
    return {name: path.read_text().strip() for name, path in FILES.items() if path.exists()}


def here(values: dict[str, str]) -> dict[str, str]:
    """Of these, what this kernel has and takes: a CPU without counters has no NMI watchdog."""
    return {name: value for name, value in values.items() if name in now() and takes(name)}


def takes(name: str) -> bool:
    return name != "NMI watchdog" or HAS_NMI_WATCHDOG


def set_to(values: dict[str, str]) -> None:
    for name, value in values.items():
        if FILES[name].exists():
            try:
                FILES[name].write_text(value)
            except OSError:
                assert name == "NMI watchdog"


def latency() -> int:
    return int.from_bytes(LATENCY.read_bytes()[:4], "little", signed=True)


HAS_NMI_WATCHDOG = False


@pytest.fixture(autouse=True)
def noisy() -> Iterator[None]:
    """A host with its noise on, which is as it was afterwards."""
    global HAS_NMI_WATCHDOG
    before = now()
    set_to(NOISY)
    HAS_NMI_WATCHDOG = now().get("NMI watchdog") == "1"
    yield
    session.restore()
    set_to(before)
    assert now() == before
    assert sorted(os.listdir(RUN)) == ["tune.lock"]


def pyvmm(*words: str) -> subprocess.CompletedProcess[str]:
    code = "from pyvmm.tune.commands import COMMANDS as C; from pyvmm.arguments import parse\n" \
        "import sys; c, v = parse('pyvmm', C, sys.argv[1:]); sys.exit(c.function(v))"  # fmt: skip
    return subprocess.run([sys.executable, "-P", "-c", code, *words], check=False,
                          capture_output=True, text=True)  # fmt: skip


def test_tuned() -> None:
    with session.tuned() as tuning:
        assert here(now()) == here(QUIET)
        assert latency() == 0
        if os.cpu_count() == 1:
            assert (tuning.benchmark, tuning.housekeeping, tuning.cgroup) == ([0], [], "")
            assert tuning.notes == []
        assert [line for line in tuning.changed if line.startswith("swapp")] == [
            "swappiness: 60 -> 1"
        ]
    assert here(now()) == here(NOISY)
    assert latency() != 0


def test_apply_and_restore() -> None:
    applied = pyvmm("tune", "--apply", "--json", "-")
    assert (applied.returncode, applied.stderr) == (
        0,
        "pyvmm: C-states: last only as long as it is held open: see bench --tune "
        "(/dev/cpu_dma_latency)\n",
    )
    changed = {line.partition(":")[0] for line in json.loads(applied.stdout)["changed"]}
    assert changed == set(here(QUIET))
    assert here(now()) == here(QUIET)
    assert not pending()
    restored = pyvmm("tune", "--restore")
    assert (restored.returncode, restored.stderr) == (0, "")
    assert len(restored.stdout.splitlines()) == len(here(QUIET))
    assert here(now()) == here(NOISY)


def test_the_next_command_recovers_from_a_kill() -> None:
    code = (
        "import signal\nfrom pyvmm.tune.session import tuned\n"
        "with tuned():\n    print('on', flush=True)\n    signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"on\n"
        assert (here(now()), latency(), pending()) == (here(QUIET), 0, True)
        assert recover() == []  # it lives
        assert here(now()) == here(QUIET)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert (here(now()), pending()) == (here(QUIET), True)
    assert latency() != 0  # which the kernel itself puts back
    assert recover() == [
        f"put back what a killed pyvmm had changed on this host: {len(here(QUIET))} settings"
    ]
    assert (here(now()), pending()) == (here(NOISY), False)


def test_killed_while_applying() -> None:
    for moment in range(5):
        with subprocess.Popen(
            [sys.executable, "-P", "-c", "from pyvmm.tune.session import *\n"
             "while True:\n    apply(); restore()"],
        ) as child:  # fmt: skip
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(2 + moment / 7)
            child.kill()
        recover()
        session.restore()
        assert here(now()) == here(NOISY)


def test_a_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    """The box has one CPU. isolate() says so; if it tries nevertheless, Linux makes the partition
    and calls it invalid, as its parent has processes and would have no CPU left.
    """
    with Journal() as journal:
        assert partition.isolate(journal, [0]) == ""
        assert journal.lines() == [
            "partition: one core only: none is left for housekeeping (/sys/fs/cgroup)"
        ]
    monkeypatch.setattr(partition, "obstacle", lambda root, cpus: "")
    told, tell = os.pipe()
    killed = os.fork()
    if killed == 0:
        try:
            journal = Journal()
            where = partition.isolate(journal, [0])
            os.mkdir(f"{where}/pyvmm-1-0123456789abcdef")  # a VM's
            cpus = [(GROUP / name).read_text() for name in ("cpuset.cpus", "cpuset.cpus.partition")]
            os.write(tell, json.dumps([where, cpus, journal.lines()]).encode())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(tell)
    with open(told) as said:
        assert json.load(said) == [
            str(GROUP),
            ["0\n", "member\n"],
            [
                "partition: is no partition, others may run on its CPUs: isolated was not taken: "
                f"isolated invalid (Parent unable to distribute cpu downstream) ({GROUP})"
            ],
        ]
    os.waitpid(killed, 0)
    assert GROUP.exists()
    assert recover() == ["put back what a killed pyvmm had changed on this host: 1 setting"]
    assert not GROUP.exists()


@pytest.mark.skipif(os.cpu_count() == 1, reason="one CPU: there is none to isolate")
def test_a_partition_of_the_second_cpu() -> None:
    """Seen to pass in a box made with -smp 2, which QEMU may hang with: so it has but one."""
    mine = os.sched_getaffinity(0)
    before = {path: path.read_text() for path in Path("/proc/irq").glob("*/smp_affinity_list")}
    with session.tuned() as tuning:
        assert (tuning.benchmark, tuning.housekeeping, tuning.cgroup) == ([1], [0], str(GROUP))
        assert (GROUP / "cpuset.cpus.partition").read_text() == "isolated\n"
        assert os.sched_getaffinity(0) == {0}  # the second is nobody's but the partition's
        group = Cgroup(tuning.cgroup)
        group.limit(memory=64 << 20, pids=8, cpus=1)
        assert (group.reason, group.notes) == ("", [])
        child = os.fork()
        if child == 0:
            Path(group.path, "cgroup.procs").write_text("0")
            os._exit(int(os.sched_getaffinity(0) != {1}))
        assert os.waitpid(child, 0)[1] == 0
        group.close()
    assert os.sched_getaffinity(0) == mine
    assert {path: path.read_text() for path in before} == before
    assert not GROUP.exists()


def test_checks() -> None:
    found = pyvmm("tune", "--json", "-")
    assert (found.returncode, found.stderr) == (0, "")
    checks = {check["name"]: check for check in json.loads(found.stdout)}
    assert {name: checks[name]["reading"] for name in here(NOISY) if name != "swappiness"} == {
        name: value for name, value in here(NOISY).items() if name != "swappiness"
    }
    assert {name: checks[name]["verdict"] for name in ("ASLR", "virtualised", "irqbalance")} == {
        "ASLR": "disturbs", "virtualised": "disturbs", "irqbalance": "fine",
    }  # fmt: skip
    possible = "possible, of CPUs 1"
    one = "not possible: one core only: none is left for housekeeping"
    assert checks["cpuset partition"]["reading"] == (one if os.cpu_count() == 1 else possible)
