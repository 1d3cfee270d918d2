"""One VM, from its image to its Result.

The caller's side: everything that is opened by path is opened here, then handed to the worker. The
worker's death, the guest's end and the program's output are all watched in one place,
`Machine.wait`.
"""

from __future__ import annotations

import os
import time
from _socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair

from . import console, footprint, plan, timeline
from .config import Config
from .disk import base_disk
from .errors import GuestError, PyvmmError
from .exchange import Exchange
from .guest import Guest
from .host import open_file, open_overlay
from .launch import WorkerProcess
from .oci import Image, open_image, with_image
from .results import PORT, Result

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Self, Unpack

    from .entrances import Entrances
    from .exchange import Source
    from .options import Options
    from .publish import Published

CONSOLE_TAIL = 4096  # characters of it in a Result or GuestError


class Machine(Guest):
    """A microVM that runs one program. Use it as a context manager::

        with Machine("image/", ["make", "bench"], vcpus=2) as machine:
            result = machine.wait()

    `Options` (options.py) lists the keyword arguments. Leaving the block ends the VM, however it is
    left; nothing stays behind. ``progress`` is called with a line when something takes long.

    While the program runs, or with ``hold=True`` no program at all, more of them can be run in the
    guest, and its files and ports reached (`Guest`, guest.py).

    With ``repeat`` the VM stays for further runs, which find its disk and caches as the last one
    left them, but none of its processes and output files::

        with Machine("image/", repeat=True) as machine:
            results = [machine.wait()] + [machine.again() for _ in range(9)]
    """

    def __init__(
        self,
        image: str | os.PathLike[str],
        command: Sequence[str] | None = None,
        *,
        progress: Callable[[str], object] | None = None,
        repeat: bool = False,
        name: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        self.config = Config(image, command, name=name, **options)
        self._progress = progress
        self._repeat = repeat
        self._ready = False  # for another run
        self._worker: WorkerProcess | None = None
        self._stopped = self._waited = False
        self._results: socket | None = None
        self._entrances: Entrances | None = None
        self._console: console.Console | None = None
        self._live: console.Live | None = None
        self._times = {"begin": time.monotonic()}
        self.began: float | None = None
        """When the program that asked for the run had begun (CLOCK_MONOTONIC), if it matters."""
        self.bars = False
        """Whether an image's pull is shown on stderr if that is a terminal, not by ``progress``."""
        self.sources: list[Source] = []
        """What is sent to the agent besides the program's standard input."""
        self.ready_after: float | None = None
        """Seconds until all of ``wait_for`` held, once started."""
        self.digest = ""
        """The digest of the image's manifest, once started."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def use(self, worker: WorkerProcess) -> None:
        """Take a worker that was started before all of this module was imported."""
        self._worker = worker

    @property
    def pid(self) -> int | None:
        """The worker's process id, while it runs."""
        return self._worker.pid if self._worker else None

    @property
    def console(self) -> str:
        """The guest's console so far, at most the last 64 KiB."""
        return self._console.text() if self._console else ""

    def start(self) -> None:
        """Prepare image and kernel and start the VM. Raises PyvmmError."""
        config = self.config
        fds: dict[str, int] = {}
        try:
            # First: what the host lacks is no reason to unpack an image or fetch a kernel.
            placed = plan.place(config)
            if config.name is not None or config.publish:
                from .entrances import Entrances

                self._entrances = Entrances(config)
            if not self._worker:  # its VM is made while we prepare
                self._worker = WorkerProcess(
                    jail=config.jail == "on", cgroup=config.cgroup, counters=config.counters
                )

            def prepare(image: Image) -> None:
                self.digest = image.digest
                self._plan = plan.make(config, placed, image, self._progress)
                fds["base"] = self._open_base(image)

            with_image(self._open_image, prepare)
            self._times["prepared"] = time.monotonic()
            self._console = console.Console()
            fds["kernel"] = open_file(self._plan.kernel.path)
            fds["initrd"] = open_file(self._plan.initramfs)
            fds["overlay"] = open_overlay(config.disk_bytes)
            if config.console is not None:
                self._live = console.Live(config.console)
                fds["console"] = self._live.theirs
            if self._worker.cgroup:
                footprint.limit(self._worker.cgroup, config, fds)
            self._results, guest_end = socketpair()
            fds["results"] = guest_end.detach()
            self._channel, device_end = socketpair(AF_UNIX, SOCK_SEQPACKET)
            fds["vsock"] = device_end.detach()
            if self._entrances:
                self._entrances.open(self.vsock)
            spec = self._plan.spec | {"console_size": console.SIZE, "port": PORT}
            self._worker.assign(spec, fds | {"ring": self._console.fd})
        except BaseException:
            self.kill()
            raise
        finally:
            for fd in fds.values():
                os.close(fd)
        exchange = Exchange(self._results, config, self._plan.program, self._live)
        exchange.on_started = self._on_started
        exchange.sources = self.sources
        self._exchanging = exchange
        self._times["spawned"] = time.monotonic()
        if config.wait_for:
            self._until_ready()

    def _until_ready(self) -> None:
        """Wait for what ``wait_for`` says. Raises what wait() does if the machine fails."""
        try:
            try:
                self.wait_for(self.config.wait_for, self.config.boot_timeout)
            except GuestError:
                if self._exchange.over and not self._exchange.session.end:
                    self.wait()
                raise
        except BaseException:
            self.kill()
            raise
        self.ready_after = time.monotonic() - self._times["begin"]

    @property
    def published(self) -> list[Published]:
        """The published ports, once started, with those that were free where 0 was asked for."""
        return self._entrances.published if self._entrances else []

    def _open_image(self) -> Image:
        config = self.config
        return open_image(
            config.image,
            platform=config.image_platform,
            pull=config.pull,
            limits=config.limits,
            progress=self._progress,
            bars=self.bars,
        )

    def _open_base(self, image: Image) -> int:
        config = self.config
        while True:
            path = base_disk(
                image, config.disk_bytes, limits=config.limits, progress=self._progress
            )
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # pruned meanwhile
                pass

    def wait(self) -> Result:
        """Wait for the program's end and return what it brought back.

        A time-out is a Result (``timed_out``, exit code 124) with all that arrived before it.
        With ``repeat``, `Result` lacks what only a VM's end tells: exits, marks, timeline, walls.
        Raises GuestError if guest or worker ended early, HostError if this host cannot run it. Call
        it once; further runs are again()'s.
        """
        if self._waited or (self._worker and self._worker.closed):
            raise GuestError("the machine has ended: wait() for it once, before that")
        complete = self._run()
        self._waited = True
        return self._result(complete)

    def again(self) -> Result:
        """Run the program again in the same VM, after a wait() or again() of one with ``repeat``.

        The Result is as wait()'s; its ``timings["total"]`` begins here. Raises GuestError also if
        the last run was the VM's end: its program could not be started, or not be killed in time.
        """
        if not self._ready:
            raise GuestError("the program cannot run again: its VM has ended, or is not to repeat")
        self._ready = False
        self._times, self.ready_after = {"begin": time.monotonic()}, None
        return self._result(self._exchange.again())

    def _result(self, complete: bool) -> Result:
        """What a run brought, ``complete`` or not; the VM ends with it unless it can go on."""
        session = self._exchange.session
        result = session.result
        self._times["end"] = time.monotonic()
        self._ready = self._repeat and complete and not result.failure
        report = {} if self._ready else self._end()
        tail = self.console[-CONSOLE_TAIL:]
        held = self.config.hold and self._stopped  # then that is how it is to end
        if not complete and not result.timed_out and not held:
            raise self._early(report, tail)
        session.finish()
        if result.timed_out:
            result.exit_code, result.signal = 124, 0
        result.warnings = list(self._plan.warnings)
        result.console = tail
        if not self._repeat:
            self._account(result, report)
        if session.started_ns is not None and session.ended_ns is not None:
            result.timings["program"] = (session.ended_ns - session.started_ns) / 1e9
        if self.ready_after is not None:
            result.timings["ready"] = self.ready_after
        result.timings["total"] = time.monotonic() - self._times["begin"]
        return result

    def _end(self) -> dict[str, Any]:
        """End the VM, and all ways in; the worker's report."""
        assert self._worker
        self._worker.stop()
        if self._vsock:
            self._vsock.close()
        report = self._worker.report()
        if self._live:
            self._live.finish()
        return report

    def _early(self, report: dict[str, Any], tail: str) -> PyvmmError:
        """The exception for a run that did not come to its end."""
        assert self._worker
        started = self._exchange.session.started_ns is not None
        what = "send its outputs" if started else "start the program"
        reason = f"the guest did not {what} within {self.config.boot_timeout:g} s"
        if self._exchange.closed:
            reason = f"the guest did not {what}: it closed its connection"
        if self._stopped:
            reason = "stopped before the program had ended"
        elif report.get("end") != "stopped":
            reason = self._worker.died()
        from .crash import explain

        return explain(report, tail, reason)

    def stop(self) -> None:
        """End the VM now. wait() then raises GuestError, unless the run was over; if there is no
        program (``hold``) it returns.
        """
        self._stopped = True
        if self._worker:
            self._worker.stop()

    def kill(self) -> None:
        """End the VM at once and release everything. Safe to call again."""
        try:
            if self._worker:
                # Reserved huge pages are few: they must be back when the next run looks for them.
                self._worker.close(wait=self.config.hugepages is not None)
            if self._follower:
                self._follower.close()
        finally:
            ways = self._vsock, self._channel, self._entrances
            for each in *ways, self._results, self._console, self._live:
                if each:
                    each.close()

    def _account(self, result: Result, report: dict[str, Any]) -> None:
        """What the VM's end tells: phases by the host's clock, marks, exits, walls."""
        assert self._worker
        result.walls = self._worker.walls
        if self._worker.cgroup:
            result.walls["cgroup"] = footprint.describe(self._worker.cgroup)
        times: dict[str, float] = {}
        if "times" in report:
            instants = report["times"] | {n: mark["time_ns"] for n, mark in report["marks"].items()}
            first, last = self._times["begin"], self._times["end"]  # it may say what it likes
            times = {name: min(max(ns / 1e9, first), last) for name, ns in instants.items()}
            result.exits = report["exits"] | {"kvm": report["kvm_exits"]}
            result.marks = report["marks"]
            if self.config.counters:
                from . import counters

                counters.account(result, report)
        times |= self._times  # ours last: the worker has no say in them
        if self.began is not None:
            times["process"] = self.began
        result.timeline = timeline.phases(times)
        result.timings = {phase["name"]: phase["seconds"] for phase in result.timeline}


def run(
    image: str | os.PathLike[str], command: Sequence[str] | None = None, **options: Unpack[Options]
) -> Result:
    """Run a program from an OCI image in a microVM of its own and return what it brought back.

    ``command`` replaces the image's command; `Options` (options.py) lists the rest. A program that
    fails or times out is a Result; PyvmmError means that there was no run to speak of.
    """
    with Machine(image, command, **options) as machine:
        return machine.wait()
