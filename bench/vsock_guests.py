"""Guests that wait for orders (vsock.c), and what carries their bytes: vhost-vsock, or pyvmm."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import ours
import qemu
from measure import Clock, say
from subject import MEMORY_MIB, Subject

import pyvmm

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "bench/vsock.c"
PROGRAM = ROOT / "build/bench-vsock"
STATISTICS = Path("/sys/kernel/debug/kvm")
PORT = 5000  # the guest asks there what to do; its streams come to the next one
COMMAND = ("/bin/vsock", "guest", str(PORT))
TIMEOUT = 180.0


def compile() -> None:
    """Where there is a compiler, which the kvmbox is not."""
    if not PROGRAM.exists() or PROGRAM.stat().st_mtime < SOURCE.stat().st_mtime:
        PROGRAM.parent.mkdir(exist_ok=True)
        subprocess.run(["cc", "-O2", "-static", "-o", PROGRAM, SOURCE], check=True)


@dataclass(frozen=True)
class Order:
    """What a guest is told to do."""

    kind: str
    streams: int
    size: int
    amount: int
    """bytes of each stream; of an echo and of computing, how often"""


@dataclass(frozen=True)
class Taken:
    """One order's cost. Of KVM's statistics, the VM's; context switches are the whole host's."""

    statistics: dict[str, int]
    cpu: dict[str, int]
    """nanoseconds that each thread of the VMM ran, and the host's program"""
    rounds: list[int]
    """nanoseconds of each round trip"""


@dataclass(frozen=True)
class Rate:
    """Bytes by the clock: seconds, or instructions."""

    unit: str
    per_second: float

    @classmethod
    def of(cls, clock: Clock) -> Rate:
        """Of a clock."""
        if clock.unit == "ms":
            return cls("MiB/s", 1.0)
        return cls("MiB/G instr", clock.per_second / 1e3)

    def speed(self, mib: float, seconds: float) -> float:
        """How fast ``mib`` were."""
        return mib / (seconds * self.per_second)


class Guest:
    """One VM, whose program takes orders."""

    def __init__(self, pid: int, control: socket.socket, streams: socket.socket) -> None:
        self._pid = pid
        (self._statistics,) = STATISTICS.glob(f"{pid}-*")
        self._control = control
        self._streams = streams
        for each in control, streams:
            each.settimeout(TIMEOUT)

    def order(self, order: Order) -> None:
        words = order.kind, order.streams, order.size, order.amount
        self._control.sendall(" ".join(map(str, words)).encode() + b"\n")

    def answer(self) -> str:
        """Its line, once it has done what it was told."""
        said = b""
        while not said.endswith(b"\n"):
            more = self._control.recv(256)
            if not more:
                raise SystemExit("bench: the guest has ended early")
            said += more
        return said.decode().strip()

    def move(self, order: Order) -> Taken:
        """Have bytes moved, with the same program as the other side: no Python is in their way."""
        self.order(order)
        with ExitStack() as stack:
            ends = [stack.enter_context(self._streams.accept()[0]) for _ in range(order.streams)]
            for end in ends:
                end.setblocking(True)
            fds = [end.fileno() for end in ends]
            words = (PROGRAM, order.kind, order.size, order.amount, self._statistics, *fds)
            before = cpu(self._pid)
            done = subprocess.run(
                [str(word) for word in words],
                pass_fds=fds, text=True, stdout=subprocess.PIPE, timeout=TIMEOUT, check=True,
            )  # fmt: skip
            after = cpu(self._pid)
        assert self.answer() == "done"
        ran = {name: ns - before.get(name, 0) for name, ns in after.items()}
        lines = [(name, int(value)) for name, value in map(str.split, done.stdout.splitlines())]
        rounds = [value for name, value in lines if name == "round"]
        statistics = {name: value for name, value in lines if name != "round"}
        return Taken(statistics, ran | {"program": statistics.pop("cpu")}, rounds)


def cpu(pid: int) -> dict[str, int]:
    """Nanoseconds that the threads of a VMM have run (Documentation/scheduler/sched-stats.rst)."""
    found: dict[str, int] = {}
    # The kernel's thread for vhost is a process of its own, with the VMM's number in its name.
    for task in (*Path(f"/proc/{pid}/task").iterdir(), *Path("/proc").glob("[0-9]*")):
        try:
            name = (task / "comm").read_text().strip()
            if task.parent.name == "task" or name == f"vhost-{pid}":
                ns = int((task / "schedstat").read_text().split()[0])
                found[name.removesuffix(f"-{pid}")] = found.get(name, 0) + ns
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has ended since
    return found


class Output:
    """What a program's output is for its caller: counted, and waited for."""

    def __init__(self) -> None:
        self._begin = 0.0
        self._missing = 0
        self._done = threading.Event()

    def add(self, data: bytes) -> None:
        self._missing -= len(data)
        if self._missing <= 0:
            self._done.set()

    def expect(self, amount: int) -> None:
        """Begin to wait for so many bytes."""
        self._begin = time.monotonic()
        self._missing = amount
        self._done.clear()

    def seconds(self) -> float:
        """How long that took, once the last is there."""
        if self._missing > 0 and not self._done.wait(TIMEOUT):
            raise SystemExit(f"bench: {self._missing} bytes of output did not come")
        return time.monotonic() - self._begin


@contextmanager
def vhost(subject: Subject, _: Output) -> Iterator[Guest]:
    """QEMU's, whose connections are AF_VSOCK."""
    with ExitStack() as stack:
        control, streams = (stack.enter_context(qemu.listener(PORT + i)) for i in range(2))
        process, _stream = stack.enter_context(qemu.agent(subject, COMMAND))
        yield Guest(process.pid, stack.enter_context(control.accept()[0]), streams)


@contextmanager
def unix(subject: Subject, output: Output) -> Iterator[Guest]:
    """pyvmm's, whose connections are AF_UNIX."""
    machine = pyvmm.Machine(
        subject.image,
        COMMAND,
        kernel=subject.name,
        memory=MEMORY_MIB << 20,
        timeout=None,
        on_stdout=output.add,
    )
    with (
        machine,
        machine.vsock.listen(PORT) as control,
        machine.vsock.listen(PORT + 1) as streams,
    ):
        waiting = threading.Thread(target=_wait, args=[machine], daemon=True)
        waiting.start()
        control.settimeout(TIMEOUT)
        with control.accept()[0] as asked:
            assert machine.pid
            yield Guest(machine.pid, asked, streams)
        waiting.join(TIMEOUT)  # without orders the program ends


def _wait(machine: pyvmm.Machine) -> None:
    """See to its output until it ends, which is news unless it was told to."""
    try:
        result = machine.wait()
        if result.exit_code:
            say(f"pyvmm's guest: exit code {result.exit_code}: {result.stderr.decode()}")
    except pyvmm.PyvmmError as e:
        say(f"pyvmm's guest: {e}")


GUESTS = {ours.NAME: unix, qemu.NAME: vhost}
