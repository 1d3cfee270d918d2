"""pyvmm's command line and library, as the one who is measured."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from subject import IDLE, MEMORY_MIB, TRUE, Run, Subject

NAME = "pyvmm"
LOOP = """
import sys, time
import pyvmm
image, kernel, memory, count = sys.argv[1:]
for _ in range(int(count)):
    begin = time.monotonic()
    pyvmm.run(image, ["/bin/true"], kernel=kernel, memory=int(memory))
    print(time.monotonic() - begin)
"""


def _command(subject: Subject, *options: str) -> list[str]:
    beside = Path(sys.executable).with_name("pyvmm")
    pyvmm = str(beside) if beside.exists() else shutil.which("pyvmm") or "pyvmm"
    arguments = ["--image", str(subject.image), "--kernel", subject.name]
    return [pyvmm, "run", *arguments, "--memory", f"{MEMORY_MIB}M", *options, "--"]


def run(subject: Subject, *options: str) -> Run:
    """Run /bin/true once. Its --json (which costs us a little) tells when END was there."""
    with tempfile.NamedTemporaryFile() as report:
        command = [*_command(subject, "--json", report.name, *options), *TRUE]
        begin = time.monotonic()
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        ended = time.monotonic()
        result = json.loads(Path(report.name).read_bytes())
    timings, marks = result["timings"], result["marks"]
    have = "collect" in timings and "ended" in marks
    end = marks["ended"]["time_ns"] / 1e9 + timings["collect"] if have else ended
    return Run(begin, end, ended)


def loop(subject: Subject, count: int) -> list[float]:
    """Seconds that pyvmm.run() of /bin/true took in one process, but for the first time."""
    arguments = [str(subject.image), subject.name, str(MEMORY_MIB << 20), str(count)]
    command = [sys.executable, "-I", "-c", LOOP, *arguments]  # -I: the installed pyvmm, not this
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    return [float(line) for line in done.stdout.split()[1:]]


def output(subject: Subject, argv: Sequence[str]) -> str:
    """What a program says."""
    done = subprocess.run(
        [*_command(subject), *argv], check=True, text=True, stdout=subprocess.PIPE
    )
    return done.stdout


@contextmanager
def idle(subject: Subject) -> Iterator[int]:
    """Keep a guest that sleeps; gives the process id of its VMM."""
    with subprocess.Popen([*_command(subject), *IDLE], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            yield _worker(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)


def _worker(command: int) -> int:
    """The process below the command's that holds the VM."""
    parents: dict[int, int] = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            try:
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended since
            parents[int(directory.name)] = int(fields[1])
    for pid in parents:
        above = pid
        while above in parents and above != command:
            above = parents[above]
        if above == command and _holds_vm(pid):
            return pid
    raise SystemExit(f"bench: pyvmm (process {command}) has no worker; here is {os.getpid()}")


def _holds_vm(pid: int) -> bool:
    links = Path(f"/proc/{pid}/fd").iterdir()
    return any(os.readlink(link) == "anon_inode:kvm-vm" for link in links)
