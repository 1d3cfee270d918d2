"""Runs the pyvmm command and watches it from outside. A hang fails with all there is to see."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyvmm.cache import cache_dir
from pyvmm.config import parse_size
from pyvmm.disk import base_disk
from pyvmm.oci import open_image

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "build" / "guest-images"
UNTIL_GO = "until [ -e /go ]; do sleep 0.1; done; "  # for a program: Host.let_go()
HANG = ROOT / "build" / "guest-hang.txt"
RUN_LIMIT = 180.0  # seconds; above what pyvmm itself allows for a boot
EVENT_LIMIT = 60.0  # seconds from what ends a VM to the end of the command: a dead man's


def command() -> str:
    beside = Path(sys.executable).with_name("pyvmm")
    return str(beside) if beside.exists() else shutil.which("pyvmm") or "pyvmm"


@dataclass
class Done:
    """An ended command."""

    code: int
    out: bytes
    err: bytes

    def check(self, code: int, out: bytes, err: bytes = b"") -> None:
        assert (self.code, self.out, self.err) == (code, out, err)


class Host:
    """A directory for files, an empty one for temporary files, and what there was before."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.temporary = place / "tmp"
        self.temporary.mkdir()
        self.before: set[int | str] = workers() | cgroups()
        self.runs = 0

    def run(self, *words: str | Path, limit: float = RUN_LIMIT, **options: str | Path) -> Done:
        return self.start(*words, **options).finish(limit)

    def start(
        self, *words: str | Path, image: str | Path = "shell", **options: str | Path
    ) -> Running:
        """Start ``pyvmm run`` with options (``memory="64M"``) and, in ``words``, the program.

        The image's disk is made before: its progress lines are not every run's.
        """
        image = IMAGES / image
        base_disk(open_image(image), parse_size(str(options.get("disk", "1G")), "disk"))
        line: list[str | Path] = ["run", "--image", image]
        for name, value in options.items():
            line += ["--" + name.replace("_", "-"), *([] if value == "" else [value])]
        return self.pyvmm(*line, *(["--", *words] if words else []))

    def pyvmm(self, *words: str | Path, environment: dict[str, str] | None = None) -> Running:
        """Start ``pyvmm`` with these words."""
        self.runs += 1
        return Running(
            [command(), *map(str, words)],
            self.place / f"run{self.runs}",
            os.environ | {"TMPDIR": str(self.temporary)} | (environment or {}),
        )

    def let_go(self, name: str) -> None:
        """Make /go in the machine, for which its program waits. That ends it, perhaps before the
        command has its result."""
        self.pyvmm("exec", "--user", "0", name, "touch", "/go").finish()

    def check_clean(self) -> None:
        """No worker, no cgroup, no temporary file, nothing half-made in the cache."""
        deadline = time.monotonic() + EVENT_LIMIT
        while (workers() | cgroups()) - self.before and time.monotonic() < deadline:
            time.sleep(0.02)  # the result is there before the VM's memory has gone
        assert (workers() | cgroups()) - self.before == set()
        assert os.listdir(self.temporary) == []
        assert [p for p in Path(cache_dir()).rglob("*") if p.suffix in (".part", ".tmp")] == []
        assert list(Path(cache_dir(), "unfinished").glob("*")) == []


class Running:
    """A started command; its outputs go to files, so that nothing holds it up."""

    def __init__(self, line: list[str], place: Path, environment: dict[str, str]) -> None:
        place.mkdir()
        self.paths = {"out": place / "stdout", "err": place / "stderr"}
        with self.paths["out"].open("wb") as out, self.paths["err"].open("wb") as err:
            self.process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, cwd=place
            )

    @property
    def out(self) -> bytes:
        return self.paths["out"].read_bytes()

    @property
    def err(self) -> bytes:
        return self.paths["err"].read_bytes()

    def until(self, mark: bytes, stream: str = "out", limit: float = RUN_LIMIT) -> float:
        """Wait until the mark is in the output; return the time (CLOCK_MONOTONIC) it was seen."""
        deadline = time.monotonic() + limit
        while mark not in self.paths[stream].read_bytes():
            if time.monotonic() > deadline:
                self.hang(f"{mark!r} did not come within {limit:g} s")
            if self.process.poll() is not None and mark not in self.paths[stream].read_bytes():
                pytest.fail(f"ended with {self.process.returncode} before {mark!r}\n{self.text()}")
            time.sleep(0.02)
        return time.monotonic()

    def finish(self, limit: float = RUN_LIMIT) -> Done:
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.hang(f"no end within {limit:g} s")
        return Done(code, self.out, self.err)

    def worker(self) -> int:
        """The process id of its worker."""
        (pid,) = [pid for pid in workers() if parent(parent(pid)) == self.process.pid]
        return pid

    def hang(self, what: str) -> None:
        """Fail with the guest's console and where each of the worker's threads is."""
        report = [what, self.text(), "--- console:", console(self.process.pid)[-4000:]]
        for pid in workers():
            for task in Path(f"/proc/{pid}/task").iterdir():
                words = [(task / name).read_text().strip() for name in ("comm", "wchan", "syscall")]
                report.append(f"--- worker {pid} {' '.join(words)}")
        self.process.kill()
        self.process.wait()
        HANG.write_text("\n".join(report))  # should the whole box be next
        pytest.fail("\n".join(report))

    def text(self) -> str:
        return f"--- stdout:\n{self.out[-2000:]!r}\n--- stderr:\n{self.err[-2000:]!r}"


def workers() -> set[int]:
    """The process ids of all VM workers on this machine."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (entry / "comm").read_text() == "pyvmm-worker\n":
                    found.add(int(entry.name))
    return found


def cgroups() -> set[str]:
    """Those of workers, where root's are."""
    return {path.name for path in Path("/sys/fs/cgroup").glob("pyvmm-*")}


def parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def gone(pid: int, limit: float = EVENT_LIMIT) -> bool:
    """Whether the process ends within ``limit`` seconds."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if pid not in workers():
            return True
        time.sleep(0.02)
    return False


def console(pid: int) -> str:
    """The guest's console, read out of the caller's memory file (pyvmm/console.py)."""
    with suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            if "pyvmm-console" in os.readlink(fd):
                raw = fd.read_bytes()
                (written,) = struct.unpack_from("<Q", raw)
                ring = raw[8:]
                at = written % len(ring)
                data = ring[:written] if written <= len(ring) else ring[at:] + ring[:at]
                return data.decode("utf-8", "replace")
    return "(not to be had)"


def sharing(vcpus: int) -> bytes:
    """What pyvmm says to more vCPUs than there are host CPUs."""
    cpus = len(os.sched_getaffinity(0))
    if vcpus <= cpus:
        return b""
    return b"pyvmm: warning: %d vCPUs share %d host CPUs: timings will suffer\n" % (vcpus, cpus)


def sections(text: bytes) -> dict[str, list[str]]:
    """The output of the image's `facts`, by item."""
    found: dict[str, list[str]] = {}
    for line in text.decode().splitlines():
        if line.startswith("== "):
            found[line[3:]] = []
        else:
            found[list(found)[-1]].append(line)
    return found
