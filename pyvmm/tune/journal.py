"""Changes of this host, each written down before it is made, so that all have a way back.

``/run/pyvmm/tune.journal`` is there while something is changed that is to be put back: its owner
holds ``tune.lock``, or was killed, and then the next that gets the lock undoes it (recover.py).
``tune.applied`` is of the same form, and is undone only on request (``pyvmm tune --restore``).

The first line says in which boot; no change outlives one. Each other line is a change, in JSON: a
file's path, old and new value; or a cgroup that was made. A last line without its end was never
followed by its change. Undoing goes backwards and may be killed and begun again at any point: what
has its old value is done, and what has neither is somebody else's.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from typing import Any, Self

from ..cgroup import remove, sweep
from ..delegation import read, write
from ..errors import HostError
from .recover import JOURNAL

DIRECTORY = os.path.dirname(JOURNAL)
LOCK = f"{DIRECTORY}/tune.lock"
APPLIED = f"{DIRECTORY}/tune.applied"
BOOT = "proc/sys/kernel/random/boot_id"
WAIT = 2.0  # seconds for another that only puts back
MADE = "made"  # the new value of a cgroup


class Busy(HostError):
    """Another pyvmm has this host's settings in its hands."""


@dataclass(frozen=True)
class Change:
    """One file that got a new value, or a cgroup that was made; paths are below the root."""

    name: str
    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Note:
    """Something that could not be done, and why."""

    name: str
    path: str
    why: str


class Journal:
    """The lock on this host's settings. Taking it undoes what a killed one left.

    Raises Busy if another holds it for longer than ``wait`` seconds, HostError for who is not root.
    """

    def __init__(self, root: str = "/", *, wait: float = WAIT) -> None:
        self.root = root
        self.changes: list[Change] = []
        """What this one has changed."""
        self.restored: list[Change] = []
        """What it has put back."""
        self.notes: list[Note] = []
        self._file = -1
        directory = self.at(DIRECTORY)
        try:
            os.makedirs(directory, 0o755, exist_ok=True)
            self._lock = os.open(self.at(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise HostError(
                f"{directory}: {e.strerror}: tuning needs root, and a /run to write"
            ) from None
        try:
            self._take(time.monotonic() + wait)
            self.undo()
        except BaseException:
            os.close(self._lock)
            raise

    def _take(self, deadline: float) -> None:
        while True:
            try:
                flock(self._lock, LOCK_EX | LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(
                        f"another pyvmm tunes this host ({self.at(LOCK)} is locked): wait for its "
                        "end, or run without --tune; nothing was changed"
                    ) from None
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the lock. What is neither undone nor kept, the next that takes it undoes."""
        if self._file >= 0:
            os.close(self._file)
        os.close(self._lock)

    def at(self, path: str) -> str:
        return os.path.join(self.root, path)

    def note(self, name: str, path: str, why: str) -> None:
        self.notes.append(Note(name, path, why))

    def lines(self) -> list[str]:
        """The notes, one line for all that have name and reason in common."""
        paths: dict[tuple[str, str], list[str]] = {}
        for note in self.notes:
            paths.setdefault((note.name, note.why), []).append(self.at(note.path))
        lines = []
        for (name, why), where in paths.items():
            more = f" and {len(where) - 1} more" if len(where) > 1 else ""
            lines.append(f"{name}: {why} ({where[0]}{more})")
        return lines

    # ---- changes ----

    def set(self, name: str, path: str, value: str) -> bool:
        """Write ``value`` to a file; False, and a note, if it cannot be or does not take it."""
        full = self.at(path)
        try:
            old = read(full).strip()
            if old == value:
                return True
            change = Change(name, path, old, value)
            self._announce(change)
            write(full, value)
            now = read(full).strip()
            if now == value:
                self.changes.append(change)
                return True
            write(full, old)
            self.note(name, path, f"does not take {value}: it reads {now}")
        except OSError as e:
            self.note(name, path, f"cannot be set: {e.strerror}")
        return False

    def make(self, name: str, path: str) -> bool:
        """Make a cgroup. To undo it is to kill what is in it, and to remove it."""
        full = self.at(path)
        try:
            if os.path.exists(full):
                self.note(name, path, "is there, and is none of ours")
                return False
            change = Change(name, path, "", MADE)
            self._announce(change)
            os.mkdir(full, 0o755)
            self.changes.append(change)
            return True
        except OSError as e:
            self.note(name, path, f"cannot be made: {e.strerror}")
        return False

    def _announce(self, change: Change) -> None:
        try:
            if self._file < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
                self._file = os.open(self.at(JOURNAL), flags, 0o600)
                _append(self._file, {"boot": self._boot()})
            _append(self._file, asdict(change))
        except OSError as e:  # without a way back nothing is changed
            raise HostError(f"{self.at(JOURNAL)}: cannot be written: {e.strerror}") from None

    def _boot(self) -> str:
        return read(self.at(BOOT)).strip()

    # ---- and the way back ----

    def undo(self) -> None:
        """Put back what the journal lists. What cannot be now, ``--restore`` may try again."""
        failed = False
        for change in reversed(self._changes(JOURNAL)):
            try:
                self._put_back(change)
            except FileNotFoundError:
                pass  # the CPU or the interrupt is gone, and its setting with it
            except OSError as e:
                self.note(change.name, change.path, f"cannot be put back: {e.strerror}")
                failed = True
        if failed:
            self.keep()
        else:
            self._forget()

    def _put_back(self, change: Change) -> None:
        full = self.at(change.path)
        if change.new == MADE:
            if os.path.exists(full):
                sweep(full)  # the VMs in it
                if not remove(full):
                    raise OSError(0, "its processes do not end")
                self.restored.append(change)
            return
        now = read(full).strip()
        if now == change.old:
            return
        if now != change.new:
            why = f"left as it is: set to {now} by somebody else since"
            self.note(change.name, change.path, why)
            return
        write(full, change.old)
        self.restored.append(change)

    def keep(self) -> None:
        """Let the changes stay after this process, until restore()."""
        changes = self._changes(APPLIED) + self._changes(JOURNAL)
        if changes:
            part = self.at(f"{APPLIED}.part")
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                _append(fd, {"boot": self._boot()}, *map(asdict, changes))
            finally:
                os.close(fd)
            os.rename(part, self.at(APPLIED))
        self._forget()

    def restore(self) -> None:
        """Undo what was kept, too. Killed meanwhile, it is for the next to go on."""
        self.undo()
        try:
            os.rename(self.at(APPLIED), self.at(JOURNAL))
        except FileNotFoundError:
            return
        self.undo()

    def _forget(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        try:
            os.unlink(self.at(JOURNAL))
        except FileNotFoundError:
            pass

    def _changes(self, path: str) -> list[Change]:
        """What a journal lists; nothing if there is none, or it is another boot's."""
        full = self.at(path)
        try:
            with open(full, encoding="ascii") as file:
                lines = file.read().split("\n")[:-1]
            if not lines or json.loads(lines[0])["boot"] != self._boot():
                return []
            return [Change(**json.loads(line)) for line in lines[1:]]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, KeyError):
            os.rename(full, f"{full}.damaged")
            self.note("journal", path, "is damaged, and was moved to the same name with .damaged")
            return []


def _append(fd: int, *items: dict[str, Any]) -> None:
    _write_all(fd, "".join(json.dumps(item) + "\n" for item in items).encode())
    os.fsync(fd)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def summary(changes: Iterable[Change], *, back: bool = False) -> list[str]:
    """One line for all changes of a name and values: ``swappiness: 60 -> 1``."""
    counts: dict[tuple[str, str, str], int] = {}
    for change in changes:
        values = (change.new, change.old) if back else (change.old, change.new)
        key = (change.name, *values)
        counts[key] = counts.get(key, 0) + 1
    return [
        f"{name}: {old or 'none'} -> {new or 'none'}" + (f" ({count} times)" if count > 1 else "")
        for (name, old, new), count in counts.items()
    ]
