"""What disturbs a benchmark, as read from made-up hosts."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from pyvmm.arguments import parse
from pyvmm.tune import checks as module
from pyvmm.tune import commands
from pyvmm.tune.checks import Check, checks, steal
from pyvmm.tune.commands import table

from .host_tree import CPU, TOP, HostTree

APPLY = "pyvmm tune --apply"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostTree:
    monkeypatch.setattr(module, "SAMPLE", 0)
    return HostTree(tmp_path, monkeypatch)


def check(host: HostTree, name: str) -> Check:
    (found,) = [check for check in checks(host.path) if check.name == name]
    return found


TABLE = """\
disturbs  SMT siblings        on
                              two CPUs share one core's units and caches
                              mend: pyvmm tune --apply
disturbs  governor            powersave (4 CPUs)
                              the clock follows the load
                              mend: pyvmm tune --apply
disturbs  turbo               0
                              the clock follows the temperature and what other cores do
                              mend: pyvmm tune --apply
disturbs  ASLR                2
                              each process has another memory layout
                              mend: pyvmm tune --apply
disturbs  NUMA balancing      1
                              pages are unmapped and moved at work
                              mend: pyvmm tune --apply
disturbs  timer migration     1
                              busy CPUs get the timers of idle ones
                              mend: pyvmm tune --apply
disturbs  NMI watchdog        1
                              takes a hardware counter of each CPU, and its NMIs
                              mend: pyvmm tune --apply
disturbs  soft watchdog       1
                              wakes up on every CPU
                              mend: pyvmm tune --apply
fine      swappiness          60, and no swap
disturbs  KSM                 1
                              memory is scanned, merged, and copied when written
                              mend: pyvmm tune --apply
unknown   C-states            absent
                              no cpuidle here: the hypervisor may have some
unknown   huge pages          absent
                              this kernel has no transparent huge pages
disturbs  IRQ affinity        2 of 2 may arrive on the benchmark's CPUs, 1,3
                              interrupts stop the guest
                              mend: pyvmm tune --apply
fine      irqbalance          does not run
disturbs  isolated CPUs       isolcpus none, nohz_full none
                              the timer tick and other processes' threads run on all CPUs
                              mend: boot with isolcpus=1,3 nohz_full=1,3 rcu_nocbs=1,3
fine      cpuset partition    possible, of CPUs 1,3
unknown   load                ?
                              /proc/loadavg cannot be read
unknown   thermal throttling  absent
                              this host does not count it
unknown   virtualised         ?
                              /proc/cpuinfo has no flags
unknown   clock source        ?
                              /sys/devices/system/clocksource/clocksource0/current_clocksource \
cannot be read
unknown   KVM halt polling    absent
                              no KVM module with this parameter
unknown   hardware counters   absent
                              this kernel has no perf events
unknown   steal time          ?
                              /proc/stat did not move"""


def test_table(host: HostTree) -> None:
    assert table(list(checks(host.path))) == TABLE


@pytest.mark.parametrize(
    ("name", "path", "text", "reading", "verdict"),
    [
        ("SMT siblings", f"{CPU}/smt/control", "off", "off", "fine"),
        ("SMT siblings", f"{CPU}/smt/control", "forceoff", "forceoff", "fine"),
        ("SMT siblings", f"{CPU}/smt/control", "notsupported", "notsupported", "fine"),
        ("SMT siblings", f"{CPU}/smt/active", "0", "on", "fine"),
        ("turbo", f"{CPU}/intel_pstate/no_turbo", "1", "1", "fine"),
        ("swappiness", "proc/sys/vm/swappiness", "0", "0, and no swap", "fine"),
        ("KSM", "sys/kernel/mm/ksm/run", "2", "2", "fine"),
        ("huge pages", module.HUGE, "[always] madvise never", "always", "fine"),
        ("huge pages", module.HUGE, "always [madvise] never", "madvise", "fine"),
        ("huge pages", module.HUGE, "always madvise [never]", "never", "disturbs"),
        ("C-states", f"{CPU}/cpuidle/current_driver", "none", "none", "fine"),
        ("irqbalance", "proc/77/comm", "irqbalance", "runs, pid 77", "disturbs"),
        ("irqbalance", "proc/77/comm", "irqbalance-ui", "does not run", "fine"),
        ("load", "proc/loadavg", "0.49 1 1 1/1 1", "0.49 in the last minute, on 4 CPUs", "fine"),
        ("load", "proc/loadavg", "0.61 0 0 1/1 1", "0.61 in the last minute, on 4 CPUs",
         "disturbs"),
        ("thermal throttling", f"{CPU}/cpu3/thermal_throttle/core_throttle_count", "0",
         "0 times since boot", "fine"),
        ("thermal throttling", f"{CPU}/cpu3/thermal_throttle/package_throttle_count", "12",
         "12 times since boot", "disturbs"),
        ("virtualised", "proc/cpuinfo", "processor : 0\nflags : fpu vme", "no", "fine"),
        ("virtualised", "proc/cpuinfo", "flags : fpu hypervisor", "yes", "disturbs"),
        ("clock source", module.CLOCK, "tsc", "tsc", "fine"),
        ("clock source", module.CLOCK, "hpet", "hpet", "disturbs"),
        ("clock source", module.CLOCK, "kvm-clock", "kvm-clock", "disturbs"),
        ("KVM halt polling", "sys/module/kvm/parameters/halt_poll_ns", "200000", "200000 ns",
         "fine"),
        ("KVM halt polling", "sys/module/kvm/parameters/halt_poll_ns", "0", "0 ns", "disturbs"),
        ("hardware counters", "proc/sys/kernel/perf_event_paranoid", "-1",
         "perf_event_paranoid -1", "fine"),
        ("hardware counters", "proc/sys/kernel/perf_event_paranoid", "2",
         "perf_event_paranoid 2", "disturbs"),
        ("cpuset partition", f"{TOP}/cgroup.controllers", "cpu memory",
         "not possible: no cgroup2 here has the cpuset controller", "disturbs"),
        ("cpuset partition", f"{CPU}/online", "0",
         "not possible: one core only: none is left for housekeeping", "disturbs"),
    ],
)  # fmt: skip
def test_reading(
    host: HostTree, name: str, path: str, text: str, reading: str, verdict: str
) -> None:
    host.put(path, text)
    found = check(host, name)
    assert (found.reading, found.verdict) == (reading, verdict)
    assert bool(found.why and found.mend) == (verdict == "disturbs")


def test_absent_is_fine_where_the_kernel_has_no_such_thing(host: HostTree) -> None:
    host.remove("proc/sys/kernel/numa_balancing")
    host.remove(f"{CPU}/intel_pstate/no_turbo")
    assert check(host, "NUMA balancing") == Check("NUMA balancing", "absent")
    why = "no cpufreq here: firmware or hypervisor set the clock"
    assert check(host, "turbo") == Check("turbo", "absent", "unknown", why)


def test_turbo_by_its_other_name(host: HostTree) -> None:
    host.remove(f"{CPU}/intel_pstate/no_turbo")
    host.put(f"{CPU}/cpufreq/boost", "1")
    why = "the clock follows the temperature and what other cores do"
    assert check(host, "turbo") == Check("turbo", "1", "disturbs", why, APPLY)
    host.put(f"{CPU}/cpufreq/boost", "0")
    assert check(host, "turbo") == Check("turbo", "0")


def test_one_cpu_of_four(host: HostTree) -> None:
    for cpu in range(3):
        host.put(f"{CPU}/cpu{cpu}/cpufreq/scaling_governor", "performance")
    assert check(host, "governor") == Check(
        "governor", "performance (3 CPUs), powersave (1 CPUs)", "disturbs",
        "the clock follows the load", APPLY,
    )  # fmt: skip


def test_swap(host: HostTree) -> None:
    host.put("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 9 0 -2")
    assert check(host, "swappiness") == Check(
        "swappiness", "60", "disturbs", "idle guest memory goes to the swap early", APPLY
    )
    host.put("proc/sys/vm/swappiness", "1")
    assert check(host, "swappiness") == Check("swappiness", "1")


def test_c_states(host: HostTree) -> None:
    host.put(f"{CPU}/cpuidle/current_driver", "intel_idle")
    for state, latency in enumerate((0, 2, 890)):
        host.put(f"{CPU}/cpu1/cpuidle/state{state}/latency", str(latency))
        host.put(f"{CPU}/cpu1/cpuidle/state{state}/disable", "0")
    found = check(host, "C-states")
    assert (found.reading, found.verdict) == ("intel_idle, up to 890 us to wake up", "disturbs")
    host.put(f"{CPU}/cpu1/cpuidle/state2/disable", "1")
    assert check(host, "C-states").reading == "intel_idle, up to 2 us to wake up"
    Path(host.path, "dev/cpu_dma_latency").write_bytes(struct.pack("=i", 0))
    assert check(host, "C-states") == Check(
        "C-states", "intel_idle, up to 2 us to wake up, held at 0"
    )


def test_interrupts(host: HostTree) -> None:
    host.put("proc/irq/9/smp_affinity_list", "0,2")
    found = check(host, "IRQ affinity")
    assert found.reading == "1 of 2 may arrive on the benchmark's CPUs, 1,3"
    host.put("proc/irq/10/smp_affinity_list", "2")
    assert check(host, "IRQ affinity") == Check(
        "IRQ affinity", "0 of 2 may arrive on the benchmark's CPUs, 1,3"
    )


def test_isolated(host: HostTree) -> None:
    host.put(f"{CPU}/isolated", "1,3")
    host.put(f"{CPU}/nohz_full", "(null)")
    assert check(host, "isolated CPUs").reading == "isolcpus 1,3, nohz_full none"
    host.put(f"{CPU}/nohz_full", "1,3")
    assert check(host, "isolated CPUs") == Check("isolated CPUs", "isolcpus 1,3, nohz_full 1,3")


def test_hypervisor_by_name(host: HostTree) -> None:
    host.put("proc/cpuinfo", "flags\t\t: fpu hypervisor")
    host.put("sys/class/dmi/id/sys_vendor", "QEMU")
    host.put("sys/class/dmi/id/product_name", "Standard PC")
    assert check(host, "virtualised").reading == "yes, by QEMU Standard PC"


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], [2, 2, 3, 4, 5, 6, 7, 8], 0.0),
        ([1, 2, 3, 4, 5, 6, 7, 8], [2, 2, 3, 6, 5, 6, 7, 9], 0.25),
        ([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8], None),
        ([1, 2, 3, 4], [2, 2, 3, 4], None),  # before Linux 2.6.11
        ([], [], None),
    ],
)
def test_steal(before: list[int], after: list[int], share: float | None) -> None:
    assert steal(before, after) == share


def test_unreadable(host: HostTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "look", lambda root, path: None)
    assert check(host, "ASLR") == Check(
        "ASLR", "?", "unknown", f"{host.path}/proc/sys/kernel/randomize_va_space cannot be read"
    )


def test_command(
    host: HostTree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "checks", lambda: checks(host.path))
    file = os.path.join(host.path, "out.json")
    for words in ([], ["--json", "-"], ["--json", file]):
        command, values = parse("pyvmm", commands.COMMANDS, ["tune", *words])
        assert command.function(values) == 0
    out = capsys.readouterr().out
    assert out.startswith(TABLE + "\n[\n")
    assert out.endswith("]\n" + TABLE + "\n")
    said = json.loads(Path(file).read_text())
    assert [Check(**each) for each in said] == list(checks(host.path))
    assert said[3] == {
        "name": "ASLR", "reading": "2", "verdict": "disturbs",
        "why": "each process has another memory layout", "mend": APPLY,
    }  # fmt: skip


def test_of_this_host() -> None:
    """Whatever it is, without root and without an error."""
    assert len({check.name for check in checks()}) == TABLE.count("\n") + 1 - (
        TABLE.count("\n    ")
    )
