"""The VM's own process, forked by server.py.

It goes into its jail (jail.py), where no path leads anywhere. Over the socket on descriptor 3 it
gets one message, the specification and every descriptor that the VM needs. It answers with one
report when the VM has ended, and ends the VM when it is told to ("stop") or when its caller is gone
(end of file).

Every run waits for this module's imports: that is why there is no typing (annotations are not
evaluated), `_socket` without its Python half, and marshal for what comes from the caller. The
report goes the other way, from a process that a guest may have broken, and is JSON.
"""

from __future__ import annotations

import marshal
import mmap
import os
import select
import time
from _socket import socket

from . import boot, cpu, layout, passing
from ._core import ffi, lib
from .errors import HostError, PyvmmError
from .jail import Jail, require_filters
from .kvm import CAP_BINARY_STATS_FD, CAP_COALESCED_MMIO, MEM_READONLY, Kvm, Vcpu, Vm
from .memory import GuestMemory
from .quick_json import dumps
from .report import COUNT, CRASHES, ENDS, EXITS, MARKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_SPEC = 1 << 20
MAX_FDS = 16
LINGER_MS = 1000


def main(
    control_fd: int,
    kvm_fd: int,
    vm_fd: int,
    server_fd: int,
    jailed: bool,
    events: list[tuple[int, int]],
) -> None:
    """``vm_fd`` is the VM's descriptor, or the negative errno of its making; ``server_fd`` the
    server's pidfd; ``events`` what to count (counters.py).
    """
    control = socket(fileno=control_fd)
    counters: list[dict[str, int]] = []
    try:
        if events:
            from .counters import open_all

            counters = open_all(events)  # behind the walls nobody may
        jail = Jail() if jailed else None
        if _is_gone(server_fd):
            return
        message, fds = passing.receive(control, MAX_SPEC, MAX_FDS)
        if not message:
            return
        spec = marshal.loads(message)
        kvm = Kvm(kvm_fd)
        kvm.check()
        vm = Vm(check(vm_fd))
        worker = Worker(spec, dict(zip(spec["fds"], fds, strict=True)), kvm, vm, counters)
        report = worker.run(control, jail)
    except PyvmmError as e:
        report = {"end": "failed", "error": type(e).__name__, "message": str(e)}
    except OSError as e:
        why = f"KVM: {e.strerror} (errno {e.errno})"
        report = {"end": "failed", "error": "HostError", "message": why}
    try:
        control.sendall(dumps(report).encode())
    except BrokenPipeError:
        return  # the caller has gone: nobody to tell
    if report["end"] == "stopped":
        # Tearing the VM down is for when the caller has gone on, lest it take the CPU from it. Not
        # so at any other end: the caller hears of it by the sockets that we leave.
        poll = select.poll()
        poll.register(control, 0)
        poll.poll(LINGER_MS)


def _is_gone(server_fd: int) -> bool:
    """Whether the server has died while nothing said that we die with it (jail.c, jail_drop())."""
    gone = passing.readable(server_fd, 0)
    os.close(server_fd)
    return gone


class Worker:
    """One VM, assembled by the constructor."""

    def __init__(
        self,
        spec: dict[str, Any],
        fds: dict[str, int],
        kvm: Kvm,
        vm: Vm,
        counters: list[dict[str, int]],
    ) -> None:
        """``counters`` are those of counters.open_all()."""
        self.spec = spec
        self.fds = fds
        self.times = {"ready": time.monotonic_ns()}
        run_on(spec["affinity"])  # before there are threads, which inherit it, or memory
        self.core = new_core()
        self.counters = counters
        for counter in counters:
            if not counter["errno"]:
                check(lib.vm_add_counter(self.core, counter["fd"]))
        self.vm = vm
        vm.set_tss(layout.IDENTITY_MAP, layout.TSS)
        vm.create_irqchip()
        vm.hide_pic()
        vm.create_pit()
        where = {name: spec[name] for name in ("hugepages", "node", "prefault")}
        self.memory = GuestMemory(spec["memory"], **where)
        self.memory.map_into(self.vm)
        for region in self.memory.regions:
            host = ffi.cast("void *", region.address)
            check(lib.vm_add_memory(self.core, region.gpa, region.size, host))
        self.times["made"] = time.monotonic_ns()
        boot.load(self.memory, spec, fds["kernel"], fds["initrd"])
        self.times["loaded"] = time.monotonic_ns()
        for name in "kernel", "initrd":
            os.close(fds[name])
        self._add_serial()
        self._add_devices()
        self.exits: list[tuple[int, int]] = []
        self.vcpus = self._add_vcpus(kvm)
        self._coalesce(kvm)
        boot.enter(self.vcpus[0], spec)

    def _add_serial(self) -> None:
        size = self.spec["console_size"]
        self.ring = mmap.mmap(self.fds["ring"], size)  # which has a descriptor of its own
        os.close(self.fds["ring"])
        irq = self._irq(layout.GSI_SERIAL)
        ring = ffi.cast("struct console_ring *", ffi.from_buffer(self.ring))
        check(lib.vm_set_serial(self.core, irq, self.fds.get("console", -1), ring, size - 8))

    def _irq(self, gsi: int) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.vm.irqfd(fd, gsi)
        return fd

    def _add_devices(self) -> None:
        fds, disk = self.fds, self.spec["disk"]
        slots = [
            lib.vm_add_blk(self.core, fds["base"], fds["overlay"], disk, False, b"pyvmm-root"),
            lib.vm_add_vsock(self.core, self.spec["cid"], self.spec["vsock_buffer"]),
            lib.vm_add_rng(self.core),
        ]
        nobody = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for slot in slots:
            address, gsi = layout.device(check(slot))
            self.vm.ioeventfd(nobody, address + layout.INTERRUPT_ACK, None)
            kicks = []
            for queue in range(lib.vm_device_queues(self.core, slot)):
                kicks.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
                self.vm.ioeventfd(kicks[-1], address + layout.QUEUE_NOTIFY, queue)
            check(lib.vm_wire_device(self.core, slot, self._irq(gsi), kicks))
        registers = int(ffi.cast("uintptr_t", lib.vm_registers(self.core)))
        size = len(slots) * layout.MMIO_STRIDE
        self.vm.set_memory(
            len(self.memory.regions), layout.MMIO_BASE, size, registers, MEM_READONLY
        )
        check(lib.vm_offer_port(self.core, slots[1], self.spec["port"], fds["results"]))
        check(lib.vm_set_switch(self.core, slots[1], fds["vsock"]))

    def _add_vcpus(self, kvm: Kvm) -> list[Vcpu]:
        count = self.spec["vcpus"]
        supported = kvm.supported_cpuid()
        run_size = kvm.vcpu_mmap_size()
        counted = bool(kvm.extension(CAP_BINARY_STATS_FD))
        vcpus = [self.vm.create_vcpu(index) for index in range(count)]
        for index, vcpu in enumerate(vcpus):
            cpu.set_up(kvm, vcpu, index, count, supported)
            self.exits.append(vcpu.exits_counter() if counted else (-1, 0))
            check(lib.vm_add_vcpu(self.core, vcpu.fd, run_size, *self.exits[-1]))
        for index, host_cpu in enumerate(self.spec["pins"]):
            check(lib.vm_pin_vcpu(self.core, index, host_cpu))
        return vcpus

    def _coalesce(self, kvm: Kvm) -> None:
        """Let writes that mean nothing yet wait for the next exit."""
        # The capability's value is the page of a vCPU's mapping that the ring is in.
        page = kvm.extension(CAP_COALESCED_MMIO)
        if not page:
            return
        check(lib.vm_coalesce(self.core, page * layout.PAGE))
        for slot in range(self.spec["devices"]):
            for offset, size in layout.WRITE_ONLY:
                self.vm.coalesce(layout.device(slot)[0] + offset, size)

    def run(self, control: socket, jail: Jail | None) -> dict[str, Any]:
        """Start the guest, wait for its end or the caller's word, and report."""
        if jail:
            jail.arm(self.core)
        require_filters(lib.vm_spawn(self.core))
        if jail:
            jail.close(self.spec["disk"])
            control.sendall(dumps({"walls": jail.walls}).encode())  # while it is our own word
        require_filters(lib.vm_start(self.core))
        poll = select.poll()
        poll.register(lib.vm_done_fd(self.core), select.POLLIN)
        poll.register(control, select.POLLIN)
        while not poll.poll():
            pass
        lib.vm_stop(self.core)
        return self.report()

    def report(self) -> dict[str, Any]:
        end = lib.vm_get_end(self.core)
        report: dict[str, Any] = {
            "end": ENDS[end.reason],
            "kvm_exit": end.kvm_exit,
            "errno": end.error,
            "detail": list(end.detail),
            "times": self.times | {"start": lib.vm_start_ns(self.core)},
            "exits": {kind: lib.vm_exits(self.core, i) for i, kind in enumerate(EXITS)},
            "kvm_exits": sum(self._counted(fd, at) for fd, at in self.exits),
            "marks": {},
            "counters": [
                {"errno": each["errno"], "user": each["user"], "marks": {}}
                for each in self.counters
            ],
        }
        counting = [each for each in report["counters"] if not each["errno"]]
        for number, name in enumerate(MARKS):
            mark = lib.vm_get_mark(self.core, number)
            if not name or not mark.time_ns:
                continue
            report["marks"][name] = {
                "time_ns": mark.time_ns, "exits": mark.exits, "kvm_exits": mark.kvm_exits,
            }  # fmt: skip
            for counter, read in zip(counting, mark.counters, strict=False):
                counter["marks"][name] = {field: getattr(read, field) for field in COUNT}
        if report["end"] in CRASHES:
            report["registers"] = self._post_mortem(self.vcpus[end.vcpu])
        return report

    @staticmethod
    def _counted(fd: int, offset: int) -> int:
        return int.from_bytes(os.pread(fd, 8, offset), "little") if fd >= 0 else 0

    def _post_mortem(self, vcpu: Vcpu) -> str:
        """The registers and the 16 bytes at RIP."""
        try:
            general = vcpu.get_regs()
            text = cpu.describe(general, vcpu.get_sregs())
            physical = vcpu.translate(int.from_bytes(general[128:136], "little"))
        except OSError as e:
            return f"(not to be had: {e})"
        try:
            code = "" if physical is None else self.memory.read(physical, 16).hex()
        except ValueError:
            code = ""
        return f"{text} code={code or '(not in RAM)'}"


def new_core() -> Any:
    """The C core's VM, without anything."""
    core = lib.vm_new()
    if core == ffi.NULL:
        raise HostError("cannot make a VM: out of memory or file descriptors")
    return core


def run_on(cpus: list[int]) -> None:
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as e:
        raise HostError(f"cannot run on CPUs {cpus}: {e.strerror}") from None


def check(result: int) -> int:
    """Raise what the core's negative errno means."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result
