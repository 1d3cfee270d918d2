"""What a report says of its host, read from a tree of files."""

from __future__ import annotations

from pathlib import Path

from pyvmm.benchmark.fingerprint import _facts

CPUINFO = """\
processor\t: 0
model name\t: A CPU @ 3 GHz
microcode\t: 0x1a
flags\t\t: fpu hypervisor

processor\t: 1
model name\t: A CPU @ 3 GHz

"""


def test_facts(tmp_path: Path) -> None:
    cpu = tmp_path / "sys/devices/system/cpu"
    for path, text in (
        (tmp_path / "proc/cpuinfo", CPUINFO),
        (cpu / "vulnerabilities/l1tf", "Not affected\n"),
        (cpu / "cpu0/cpufreq/scaling_governor", "powersave\n"),
        (cpu / "cpu1/cpufreq/scaling_governor", "performance\n"),
        (cpu / "smt/control", "on\n"),
        (tmp_path / "proc/sys/kernel/randomize_va_space", "2\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert dict(_facts(tmp_path)) == {
        "CPU": "A CPU @ 3 GHz",
        "CPUs": "2",
        "microcode": "0x1a",
        "virtualised": "yes",
        "mitigation l1tf": "Not affected",
        "governor": "performance, powersave",
        "ASLR": "2",
        "SMT": "on",
    }


def test_a_host_that_tells_nothing(tmp_path: Path) -> None:
    assert dict(_facts(tmp_path)) == {"CPU": "unknown", "CPUs": "1", "virtualised": "no"}
