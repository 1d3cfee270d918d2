"""What a run brings back, out of the guest's half of the agent protocol (docs/protocol.md)."""

from __future__ import annotations

import os
import struct
from _thread import allocate_lock

from .errors import GuestError
from .quick_json import dumps
from .record import Record, field

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

VERSION = 2
PORT = 1024
MAX_FRAME = 65536
HEADER = struct.Struct("<IHH")

HELLO, STARTED, STDOUT, STDERR, EXIT = range(1, 6)
FILE_BEGIN, FILE_DATA, FILE_END, FAILED, END, STDIN_TAKEN = range(6, 12)
AFTER_EXIT = (FILE_BEGIN, FILE_DATA, FILE_END, END)

EXIT_FIELDS = struct.Struct("<II12Q")


class Usage(Record):
    """What the program and its descendants used, as the guest's kernel counts."""

    user_us: int = 0
    system_us: int = 0
    peak_rss: int = 0
    """bytes, of the largest process"""
    minor_faults: int = 0
    major_faults: int = 0
    block_in: int = 0
    block_out: int = 0
    voluntary_switches: int = 0
    involuntary_switches: int = 0
    steal_ns: int = 0
    """time that the guest's CPUs wanted to run and the host did not let them"""
    oom_kills: int = 0


class Result(Record):
    """What a run brought back."""

    exit_code: int = 0
    """the program's status; 128 + n if signal n killed it; 124 after a time-out"""
    signal: int = 0
    stdout: bytes = b""
    stderr: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)
    """contents of the requested outputs, by guest path"""
    missing: dict[str, str] = field(default_factory=dict)
    """requested outputs that could not be had, with the reason"""
    truncated: list[str] = field(default_factory=list)
    """``"stdout"``, ``"stderr"`` or an output's path: longer than max_output, the rest is lost"""
    timed_out: bool = False
    out_of_memory: bool = False
    """the guest's kernel killed something for want of memory"""
    failure: str = ""
    """why the program could not be started (exit_code 125, 126 or 127)"""
    cpus: int = 0
    """CPUs that the guest's kernel brought up"""
    usage: Usage = field(default_factory=Usage)
    timings: dict[str, float] = field(default_factory=dict)
    """seconds of each phase (timeline.py) and ``total``; ``program`` is by the guest's clock;
    ``ready``: until all of ``wait_for`` held"""
    timeline: list[dict[str, Any]] = field(default_factory=list)
    """the phases in order: ``name``, ``at`` (seconds since the run's begin), ``seconds``"""
    exits: dict[str, int] = field(default_factory=dict)
    """exits to user space by kind; ``kvm`` counts all exits"""
    marks: dict[str, dict[str, int]] = field(default_factory=dict)
    """clock (CLOCK_MONOTONIC), exit counts and counters when the guest reached a point"""
    counters: dict[str, int] = field(default_factory=dict)
    """what the guest's CPUs executed from the program's begin to its end, if it was asked for: as
    ``instructions``, or ``instructions:u`` where only its user mode may be counted (counters.py)"""
    counters_unavailable: dict[str, str] = field(default_factory=dict)
    """counters that could not be had, with the reason"""
    warnings: list[str] = field(default_factory=list)
    walls: dict[str, str] = field(default_factory=dict)
    """what was around the monitor, wall by wall; ``"none: why"`` for one that this host lacks"""
    console: str = ""
    """the tail of the guest's console"""

    def to_json(self) -> str:
        """All of it, a field a line; bytes as text where they are UTF-8, else ``{"base64": …}``."""
        lines = (f"  {dumps(name)}: {dumps(_plain(value))}" for name, value in vars(self).items())
        return "{\n" + ",\n".join(lines) + "\n}"


def _plain(value: Any) -> Any:
    if isinstance(value, Usage):
        return vars(value)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        import binascii

        return {"base64": binascii.b2a_base64(value, newline=False).decode()}


class Kept:
    """The first ``limit`` bytes of a stream."""

    def __init__(self, limit: int) -> None:
        self._parts: list[bytes] = []
        self._left = limit
        self.cut = False

    def add(self, data: bytes) -> None:
        if len(data) > self._left:
            self.cut, data = True, data[: self._left]
        if data:
            self._parts.append(data)
            self._left -= len(data)

    def take(self) -> bytes:
        return b"".join(self._parts)


class Frames:
    """Cuts the guest's bytes, in whatever pieces they come, into frames."""

    def __init__(self) -> None:
        self._data = b""
        self._at = 0

    def feed(self, data: bytes) -> None:
        self._data = self._data[self._at :] + data  # which copies nothing if nothing is left
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there is anything left."""
        return self._at < len(self._data)

    def next(self) -> tuple[int, int, bytes] | None:
        """The next frame's type, index and payload, if all of it is there. Raises GuestError."""
        begin = self._at + HEADER.size
        if begin > len(self._data):
            return None
        length, kind, index = HEADER.unpack_from(self._data, self._at)
        if length > MAX_FRAME:
            raise GuestError(f"the guest's agent sent a frame of {length} bytes")
        if begin + length > len(self._data):
            return None
        self._at = begin + length
        return kind, index, self._data[begin : self._at]


def hello(payload: bytes) -> tuple[int, int]:
    """HELLO's CPUs and init_ns. Raises GuestError for another version's, struct.error."""
    version, cpus, init_ns, _memory = struct.unpack("<IIQQ", payload)
    if version != VERSION:
        raise GuestError(f"the guest's agent speaks protocol {version}, not {VERSION}")
    return cpus, init_ns


class Session:
    """Takes the guest's bytes as they come and builds the Result. The guest is not trusted."""

    def __init__(
        self, outputs: Sequence[str], limit: int, on_stdout: Any = None, on_stderr: Any = None
    ) -> None:
        """``limit`` bytes are kept of each stream and file; a sink gets all of its stream."""
        self.result = Result()
        self.outputs = list(outputs)
        self.limit = limit
        self.started_ns: int | None = None
        self.ended_ns: int | None = None
        self.init_ns = 0
        self.hello = False
        self.end = False
        self.stdin_taken = 0
        self.file_bytes = 0
        """contents of output files that came: bounded by ``limit`` for each"""
        self._frames = Frames()
        self._stdout, self._stderr = Kept(limit), Kept(limit)
        self._sinks = {
            STDOUT: on_stdout or self._stdout.add,
            STDERR: on_stderr or self._stderr.add,
        }
        self._looks: list[Callable[[int, bytes], object]] = []
        self._output = allocate_lock()  # of what is kept, and who looks
        self._seen: set[int] = set()
        self._file: tuple[int, Kept] | None = None
        self._begun: set[int] = set()

    def follow(self, last: Session) -> None:
        """Be another run's in the same guest, which says HELLO once only. Raises GuestError."""
        if last._frames:
            raise GuestError("the guest's agent sent more after END")
        self.hello, self.init_ns, self.result.cpus = True, last.init_ns, last.result.cpus
        self._seen.add(HELLO)

    def watch(self, look: Callable[[int, bytes], object]) -> None:
        """Have ``look`` called with a stream (STDOUT or STDERR) and what comes on it: what has been
        kept so far at once, all else by the thread that feeds this.
        """
        with self._output:
            look(STDOUT, self._stdout.take())
            look(STDERR, self._stderr.take())
            self._looks.append(look)

    def feed(self, data: bytes) -> None:
        """Take more bytes. Raises GuestError if they are not the protocol."""
        self._frames.feed(data)
        while not self.end and (frame := self._frames.next()):
            self._frame(*frame)

    def finish(self) -> Result:
        """The Result of all that has come so far."""
        self.result.stdout, self.result.stderr = self._stdout.take(), self._stderr.take()
        cut = {"stdout": self._stdout, "stderr": self._stderr}
        self.result.truncated += [name for name, kept in cut.items() if kept.cut]
        for path in self.outputs:
            if path not in self.result.files:
                self.result.missing.setdefault(path, "the run ended before it was sent")
        return self.result

    def _frame(self, kind: int, index: int, payload: bytes) -> None:
        if not self.hello and kind != HELLO:
            raise GuestError(f"the guest's agent began with frame type {kind}, not HELLO")
        if EXIT in self._seen and kind not in AFTER_EXIT:
            raise GuestError(f"the guest's agent sent frame type {kind} after EXIT")
        try:
            if kind in self._sinks:
                with self._output:
                    self._sinks[kind](payload)
                    for look in self._looks:
                        look(kind, payload)
            elif kind in (FILE_BEGIN, FILE_DATA, FILE_END):
                self._file_frame(kind, index, payload)
            else:
                self._event(kind, payload)
        except struct.error:
            raise GuestError(f"the guest's agent sent a short frame of type {kind}") from None

    def _event(self, kind: int, payload: bytes) -> None:
        if kind != STDIN_TAKEN and kind in self._seen:
            raise GuestError(f"the guest's agent sent frame type {kind} twice")
        self._seen.add(kind)
        if kind == HELLO:
            self.result.cpus, self.init_ns = hello(payload)
            self.hello = True
        elif kind == STARTED:
            (self.started_ns,) = struct.unpack("<Q", payload)
        elif kind == EXIT:
            code, signal, self.ended_ns, *numbers = EXIT_FIELDS.unpack(payload)
            self.result.exit_code, self.result.signal = code & 0xFF, signal
            self.result.usage = Usage(*numbers)
            self.result.out_of_memory = self.result.usage.oom_kills > 0
        elif kind == FAILED:
            (code,) = struct.unpack_from("<I", payload)
            if code not in (125, 126, 127):
                raise GuestError(f"the guest's agent sent failure code {code}")
            self.result.exit_code = code
            self.result.failure = payload[4:].decode("utf-8", "replace")
        elif kind == STDIN_TAKEN:
            self.stdin_taken += struct.unpack("<I", payload)[0]
        elif kind == END:
            self.end = True
        else:
            raise GuestError(f"the guest's agent sent an unknown frame type {kind}")

    def _file_frame(self, kind: int, index: int, payload: bytes) -> None:
        if index >= len(self.outputs):
            raise GuestError(f"the guest's agent sent output number {index}: not asked for")
        path = self.outputs[index]
        if kind == FILE_BEGIN:
            if index in self._begun:
                raise GuestError(f"the guest's agent sent output number {index} twice")
            self._begun.add(index)
            error, _mode, _size = struct.unpack("<iIQ", payload)
            self._file = (index, Kept(self.limit))
            if error:
                self.result.missing[path] = os.strerror(error)
        elif self._file is None or self._file[0] != index:
            raise GuestError(f"the guest's agent sent output number {index} out of order")
        elif kind == FILE_DATA:
            if self._file[1].cut:  # it was told how much to send
                raise GuestError(f"the guest's agent sent output number {index} without end")
            self._file[1].add(payload)
            self.file_bytes += len(payload)
        else:
            (error,) = struct.unpack("<i", payload)
            if path not in self.result.missing:
                kept = self._file[1]
                if error:
                    self.result.missing[path] = os.strerror(error)
                else:
                    self.result.files[path] = kept.take()
                    self.result.truncated += [path] * kept.cut
            self._file = None
