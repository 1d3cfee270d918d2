"""pyvmm's command line, as the one who is measured."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from subject import IDLE, MEMORY_MIB, Run, Subject

NAME = "pyvmm"


def _command(subject: Subject, *options: str) -> list[str]:
    beside = Path(sys.executable).with_name("pyvmm")
    pyvmm = str(beside) if beside.exists() else shutil.which("pyvmm") or "pyvmm"
    arguments = ["--image", str(subject.image), "--kernel", subject.name]
    return [pyvmm, "run", *arguments, "--memory", f"{MEMORY_MIB}M", *options, "--"]


def run(subject: Subject) -> Run:
    """Run /bin/true once. Its --json (which costs us a little) tells when END was there."""
    with tempfile.NamedTemporaryFile() as report:
        command = [*_command(subject, "--json", report.name), "/bin/true"]
        begin = time.monotonic()
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        ended = time.monotonic()
        result = json.loads(Path(report.name).read_bytes())
    timings, marks = result["timings"], result["marks"]
    have = "collect" in timings and "ended" in marks
    end = marks["ended"]["time_ns"] / 1e9 + timings["collect"] if have else ended
    return Run(begin, end, ended)


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


def _worker(parent: int) -> int:
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            try:
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended since
            if int(fields[1]) == parent:
                return int(directory.name)
    raise SystemExit(f"bench: pyvmm (process {parent}) has no worker; here is {os.getpid()}")
