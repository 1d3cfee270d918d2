"""Kills parts of a running pyvmm command at random moments, and looks at what is left.

Of a run these are the caller (the command), its server and the VM's worker; all are in a session of
their own, by which their processes are known.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import NamedTuple, Protocol

from pyvmm.cache import UNFINISHED
from pyvmm.delegation import MOUNTS

PROGRESS = re.compile(rb"pyvmm: (layer 1 of 1: sha256:.*|writing the filesystem)\n")
SAID = b"ok\n"
COLLECTED = 8 << 16
TARGETS = (("caller",), ("server",), ("worker",), ("caller", "worker"))
AT_ONCE = 2
GONE_IN = 60.0  # seconds for all of a run to be gone once its caller is
ENDS_IN = 120.0  # seconds for a caller to end whose worker was killed, or that nobody disturbs


@dataclass(frozen=True)
class Moment:
    """Who is killed, how many seconds after the start."""

    targets: tuple[str, ...]
    at: float


class End(NamedTuple):
    """Who was killed, and what the caller said then."""

    targets: tuple[str, ...]
    code: int
    out: bytes
    err: bytes


def moments(number: int, length: float, seed: int) -> list[Moment]:
    """So many for each of TARGETS, spread evenly over a run of ``length`` seconds, in any order."""
    chance = random.Random(seed)
    planned = [
        Moment(TARGETS[n % len(TARGETS)], (n + chance.random()) / number * length)
        for n in range(number)
    ]
    chance.shuffle(planned)
    return planned


class Command:
    """A started ``pyvmm``, in ``place`` with its cache and tmp."""

    def __init__(self, line: Sequence[str | Path], place: Path) -> None:
        self._outputs = [place / stream for stream in ("stdout", "stderr")]
        self.seconds = 0.0
        """How long the caller took."""
        environment = {"XDG_CACHE_HOME": str(place / "cache"), "TMPDIR": str(place / "tmp")}
        with self._outputs[0].open("wb") as out, self._outputs[1].open("wb") as err:
            self._began = time.monotonic()
            self.process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=place,
                env=os.environ | environment, start_new_session=True,
            )  # fmt: skip

    def kill(self, moment: Moment) -> bool:
        """Kill them when the moment is there and they are; False if the run was over before."""
        time.sleep(max(0.0, self._began + moment.at - time.monotonic()))
        while self.process.poll() is None:
            running = self._running()
            if running.keys() >= set(moment.targets):
                killed = [self._killed(running[target]) for target in moment.targets]
                if any(killed):
                    return True
            time.sleep(0.0005)
        return False

    @staticmethod
    def _killed(pid: int) -> bool:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it had ended, perhaps of what was killed before it
            return False
        return True

    def _running(self) -> dict[str, int]:
        found, pid = {}, self.process.pid
        for name in ("caller", "server", "worker"):
            found[name] = pid
            try:
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            except OSError:
                break
            if not children:
                break
            pid = int(children[-1])
        return found

    def end(self) -> tuple[int, bytes, bytes]:
        """Wait for the end of all of it: the caller's exit code, stdout and stderr."""
        try:
            code = self.process.wait(ENDS_IN)
            self.seconds = time.monotonic() - self._began
        finally:
            self.process.kill()
        deadline = time.monotonic() + GONE_IN
        while (left := list(self._session())) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert left == []
        out, err = (path.read_bytes() for path in self._outputs)
        return code, out, err

    def _session(self) -> Iterator[str]:
        """Its processes that are alive, each in words."""
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                stat = Path(entry.path, "stat").read_text()
            except OSError:  # gone meanwhile
                continue
            state, _, _, session = stat.rpartition(")")[2].split()[:4]
            if int(session) == self.process.pid and state not in "ZX":
                yield stat

    def cgroups(self) -> list[str]:
        """Those of it that are there."""
        return [
            path
            for mount in MOUNTS
            for path, _, _ in os.walk(mount)
            if os.path.basename(path).startswith(f"pyvmm-{self.process.pid}-")
        ]


def mounts() -> list[str]:
    """Those that may be a jail's."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if " - tmpfs none " in line]


def snapshot(place: Path) -> dict[str, str]:
    """What is in the cache in ``place``: the files, and a digest of their contents.

    A kernel's directory has its file's numbers in its name; links are not followed.
    """
    found = {}
    for directory, _, names in os.walk(place / "cache"):
        for name in names:
            path = Path(directory, name)
            data = path.read_bytes().replace(bytes(place), b"")
            relative = re.sub(r"file(-[0-9a-f]+)+", "file", str(path.relative_to(place)))
            found[relative] = blake2b(data, digest_size=8).hexdigest()
    return found


class Subject(Protocol):
    """What is run: something that prints SAID and brings COLLECTED bytes back to ``out``."""

    def prepare(self, place: Path) -> None:
        """Put what runs need into a new place."""
        ...

    def line(self, place: Path, other: bool) -> list[str | Path]:
        """The command, or one that is the same but for its disk."""
        ...


class Bench:
    """Makes places to run in, and knows what a cache is like when all was run."""

    def __init__(self, subject: Subject, place: Path) -> None:
        self._subject = subject
        self._place = place
        self._numbers = count()
        self._cached: list[Path] = []
        whole = self._fresh()
        self._check(whole, other=True)
        self._cached = sorted((whole / "cache/pyvmm/disks").iterdir())
        with ThreadPoolExecutor(AT_ONCE) as pool:  # as fast as all others will be
            places = [whole, *(self._fresh() for _ in range(AT_ONCE - 1))]
            self.length = max(pool.map(self._check, places))
        self._whole = snapshot(whole)

    def _fresh(self) -> Path:
        """A place with nothing in its cache but the other disk."""
        place = self._place / f"run{next(self._numbers)}"
        disks = place / "cache/pyvmm/disks"
        disks.mkdir(parents=True)
        (place / "tmp").mkdir()
        for path in self._cached:
            os.link(path, disks / path.name)
        self._subject.prepare(place)
        return place

    def _check(self, place: Path, other: bool = False) -> float:
        """A run that nobody disturbs is fine. Returns how many seconds its caller took."""
        run = Command(self._subject.line(place, other), place)
        code, out, err = run.end()
        assert (code, out, PROGRESS.sub(b"", err)) == (0, SAID, b"")
        assert (place / "out").stat().st_size == COLLECTED
        return run.seconds

    def crash(self, number: int, seed: int) -> Iterator[End]:
        """Kill at so many moments; how each of the runs ended."""
        before = mounts()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            futures = [
                # Every other time the next run is of the disk that is there.
                pool.submit(self._crash, moment, bool(at % 2))
                for at, moment in enumerate(moments(number, self.length, seed))
            ]
            try:
                for future in futures:
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)
        assert mounts() == before

    def _foreign(self, place: Path) -> list[str]:
        """What is in the cache that should not be there, or not be so."""
        return [name for name, hash in snapshot(place).items() if self._whole.get(name) != hash]

    def _crash(self, moment: Moment, other: bool) -> End:
        place = self._fresh()
        run = Command(self._subject.line(place, False), place)
        if not run.kill(moment):  # this run was sooner over than others: once more, earlier
            run.end()
            return self._crash(replace(moment, at=moment.at * 0.7), other)
        code, out, err = run.end()
        assert os.listdir(place / "tmp") == []
        assert [name for name in self._foreign(place) if UNFINISHED not in name] == []

        self._check(place, other)
        assert run.cgroups() == []
        assert os.listdir(place / "tmp") == []
        assert self._foreign(place) == []
        assert other or snapshot(place) == self._whole
        shutil.rmtree(place)
        return End(moment.targets, code, out, PROGRESS.sub(b"", err))
