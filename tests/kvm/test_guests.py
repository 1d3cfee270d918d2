"""The vCPU loop on real KVM: exits, ends, marks, memory, stopping, and what is left behind."""

from __future__ import annotations

import gc
import os
import struct
import time
from fcntl import ioctl
from types import SimpleNamespace

import pytest
from pyvmm._core import lib

from pyvmm import layout
from pyvmm.kvm import Kvm
from pyvmm.worker import Worker

from . import tiny
from .tiny import CODE, FOREVER, HALT, PRINT_EAX, RESET, Guest, fetch, out, out16, store, text

GiB = 1 << 30
PIC1, PIC2 = 0x20, 0xA0


def echo(port: int) -> bytes:
    """Print what one byte of a port reads as."""
    return tiny.set_dx(port) + b"\xec" + tiny.set_dx(layout.PORT_SERIAL) + b"\xee"


class TestPorts:
    def test_serial_in_long_mode(self, kvm_fd):
        with Guest(kvm_fd, text(b"hello") + RESET) as guest:
            report = guest.run()
            assert guest.console == b"hello"
        assert report["end"] == "reset"
        assert report["exits"] == {"serial": 5, "pio": 1, "mmio": 0, "signal": 0, "other": 0}

    def test_serial_in_protected_mode(self, kvm_fd):
        with Guest(kvm_fd, text(b"32") + RESET, mode="protected") as guest:
            assert guest.run()["end"] == "reset"
            assert guest.console == b"32"

    def test_serial_in_real_mode(self, kvm_fd):
        code = out16(layout.PORT_SERIAL, 49) + out16(layout.PORT_SERIAL, 54)
        code += out16(layout.PORT_RESET, 0)
        with Guest(kvm_fd, code, mode="real") as guest:
            assert guest.run()["end"] == "reset"
            assert guest.console == b"16"

    def test_string_output(self, kvm_fd):
        message = b"by the string"
        code = b"\x48\xbe" + struct.pack("<Q", 0x200000)  # mov rsi, message
        code += b"\xb9" + struct.pack("<I", len(message))  # mov ecx, length
        code += tiny.set_dx(layout.PORT_SERIAL) + b"\xfc\xf3\x6e" + RESET  # cld; rep outsb
        with Guest(kvm_fd, code) as guest:
            guest.memory.write(0x200000, message)
            assert guest.run()["end"] == "reset"
            assert guest.console == message

    def test_wide_output_reaches_neighbouring_ports(self, kvm_fd):
        """16 bits at port 0x3fe: the modem status, then the scratch register."""
        code = b"\x66\xb8\x00\x5a" + tiny.set_dx(layout.PORT_SERIAL + 6) + b"\x66\xef"
        code += tiny.set_dx(layout.PORT_SERIAL + 7) + b"\xec"  # in al, dx
        code += tiny.set_dx(layout.PORT_SERIAL) + b"\xee" + RESET
        with Guest(kvm_fd, code) as guest:
            guest.run()
            assert guest.console == b"\x5a"

    @pytest.mark.parametrize("port", [0x64, 0x80, 0xCFC])
    def test_ports_that_nobody_answers_read_as_ones(self, kvm_fd, port):
        with Guest(kvm_fd, echo(port) + RESET) as guest:
            report = guest.run()
            assert guest.console == b"\xff"
        assert report["exits"]["pio"] == 2

    def test_a_pic_that_is_hidden(self, kvm_fd):
        """As Linux looks for one: the mask that it writes is not the mask that it reads."""
        code = out(PIC2 + 1, 0xFF) + out(PIC1 + 1, 0xFB) + echo(PIC1 + 1) + RESET
        for hide, mask in ((False, b"\xfb"), (True, b"\xff")):
            with Guest(kvm_fd, code) as guest:
                if hide:
                    guest.vm.hide_pic()
                guest.run()
                assert guest.console == mask

    def test_a_hidden_pic_works_once_it_is_initialized(self, kvm_fd):
        words = [(PIC1, 0x11), (PIC1 + 1, 0x30), (PIC1 + 1, 4), (PIC1 + 1, 1), (PIC1 + 1, 0xFB)]
        code = b"".join(out(port, value) for port, value in words) + echo(PIC1 + 1) + RESET
        with Guest(kvm_fd, code) as guest:
            guest.vm.hide_pic()
            guest.run()
            assert guest.console == b"\xfb"

    def test_marks(self, kvm_fd):
        code = text(b"a") + out(layout.PORT_MARK, 1) + text(b"bc") + out(layout.PORT_MARK, 2)
        code += out(layout.PORT_MARK, 2) + out(layout.PORT_MARK, 3) + out(layout.PORT_MARK, 200)
        with Guest(kvm_fd, code + RESET) as guest:
            report = guest.run()
        marks = report["marks"]
        assert {name: mark["exits"] for name, mark in marks.items()} == {
            "init": 2,
            "program": 5,
            "ended": 7,  # the second mark 2 counts as an exit and nothing else
        }
        times = [report["start_ns"], *(m["time_ns"] for m in marks.values()), report["end_ns"]]
        assert times == sorted(times)
        if report["kvm_exits"]:
            counts = [*(m["kvm_exits"] for m in marks.values()), report["kvm_exits"]]
            assert counts == sorted(counts)


class TestEnds:
    def test_reset_port(self, kvm_fd):
        with Guest(kvm_fd, RESET) as guest:
            report = guest.run()
        assert report["end"] == "reset"
        assert "registers" not in report
        assert report["start_ns"] < report["end_ns"]

    def test_keyboard_controller_reset_is_a_crash(self, kvm_fd):
        with Guest(kvm_fd, out(0x64, 0xFE)) as guest:
            assert guest.run()["end"] == "crash"

    def test_triple_fault(self, kvm_fd):
        """ud2 without an IDT."""
        with Guest(kvm_fd, b"\x0f\x0b") as guest:
            report = guest.run()
        assert report["end"] == "crash"
        assert report["kvm_exit"] == 8  # KVM_EXIT_SHUTDOWN
        assert "rip=" in report["registers"]

    def test_exit_that_is_not_understood(self, kvm_fd):
        """hlt without an interrupt controller comes to user space; nobody asked for that."""
        code = b"\xb8\x78\x56\x34\x12" + HALT + b"after this halt!"  # mov eax, 0x12345678
        with Guest(kvm_fd, code, irqchip=False) as guest:
            report = guest.run()
        assert report["end"] == "unknown"
        assert report["kvm_exit"] == 5  # KVM_EXIT_HLT
        assert report["exits"]["other"] == 1
        registers = report["registers"].split()
        assert "rax=0x12345678" in registers
        assert f"rip={CODE + 6:#x}" in registers
        assert "cs=0x8" in registers
        assert registers[-1] == "code=" + b"after this halt!".hex()

    def test_code_where_no_memory_is(self, kvm_fd):
        with Guest(kvm_fd, b"", entry=0x80000000) as guest:
            report = guest.run()
        assert report["end"] in ("unknown", "crash")
        assert "rip=0x80000000" in report["registers"]

    def test_the_first_end_counts(self, kvm_fd):
        with Guest(kvm_fd, RESET) as guest:
            first = guest.run()
            lib.vm_stop(guest.core)
            assert guest.report()["end_ns"] == first["end_ns"]
            assert guest.report()["end"] == "reset"


class TestStop:
    @pytest.mark.parametrize(
        ("vcpus", "irqchip", "running"),
        [
            pytest.param(1, True, 1, id="one"),
            pytest.param(4, True, 1, id="one of four, the others wait"),
            pytest.param(4, False, 4, id="four"),
        ],
    )
    def test_endless_loop(self, kvm_fd, vcpus, irqchip, running):
        with Guest(kvm_fd, text(b"!") + FOREVER, vcpus=vcpus, irqchip=irqchip) as guest:
            guest.start()
            guest.until_printed(running)
            assert guest.console == b"!" * running
            begin = time.monotonic()
            lib.vm_stop(guest.core)
            assert time.monotonic() - begin < 60
            report = guest.report()
        assert report["end"] == "stopped"
        assert report["exits"]["serial"] == running
        assert report["exits"]["signal"] <= vcpus

    def test_halted(self, kvm_fd):
        with Guest(kvm_fd, text(b"!") + HALT + FOREVER) as guest:
            guest.start()
            guest.until_printed(1)
            time.sleep(0.05)  # most probably it has halted
            begin = time.monotonic()
            lib.vm_stop(guest.core)
            assert time.monotonic() - begin < 60
            assert guest.report()["end"] == "stopped"

    def test_while_it_exits_all_the_time(self, kvm_fd):
        loop = out(0x80, 0)
        loop += b"\xeb" + struct.pack("b", -(len(loop) + 2))
        with Guest(kvm_fd, out(0x80, 0) + text(b"!") + loop) as guest:
            guest.start()
            guest.until_printed(1)
            time.sleep(0.05)
            begin = time.monotonic()
            lib.vm_stop(guest.core)
            assert time.monotonic() - begin < 60
            report = guest.report()
        assert report["exits"]["pio"] > 0

    def test_at_once_after_the_start(self, kvm_fd):
        for _ in range(20):
            with Guest(kvm_fd, FOREVER, vcpus=2) as guest:
                guest.start()
                lib.vm_stop(guest.core)
                assert guest.report()["end"] == "stopped"

    def test_before_the_start_and_twice(self, kvm_fd):
        with Guest(kvm_fd, FOREVER) as guest:
            lib.vm_stop(guest.core)
            lib.vm_stop(guest.core)
            assert guest.report()["end"] == "stopped"


class TestMemory:
    def test_above_and_below_the_hole(self, kvm_fd):
        """Memory above 4 GiB is reached by its own mapping: the boot tables end there."""
        high_table, window = 0x300000, 1 << 39  # the second entry of the PML4
        below, above = 3 * GiB - 4096, 5 * GiB
        code = store(below, 0x4F4C) + store(window + 2 * GiB - 4096, 0x4948)
        code += fetch(below - 8) + PRINT_EAX + fetch(window) + PRINT_EAX + RESET
        with Guest(kvm_fd, code, size=5 * GiB) as guest:
            memory = guest.memory
            memory.write(layout.PML4 + 8, struct.pack("<Q", high_table | 3))
            directories = (high_table + 0x1000, high_table + 0x2000)
            memory.write(high_table, struct.pack("<2Q", *(d | 3 for d in directories)))
            for i, directory in enumerate(directories):
                entries = (4 * GiB + (i << 30) + (n << 21) | 0x83 for n in range(512))
                memory.write(directory, struct.pack("<512Q", *entries))
            memory.write(below - 8, b"low.")
            memory.write(4 * GiB, b"high")
            assert guest.run()["end"] == "reset"
            assert guest.console == b"low.high"
            assert memory.read(below, 4) == struct.pack("<I", 0x4F4C)
            assert memory.read(above + GiB - 4096, 4) == struct.pack("<I", 0x4948)


def pending_interrupts(guest: Guest) -> int:
    """The first PIC's request register, by KVM_GET_IRQCHIP."""
    chip = bytearray(520)
    ioctl(guest.vm.fd, 0xC208AE62, chip)
    return chip[9]


class TestMmio:
    def test_virtio_magic(self, kvm_fd):
        address, _ = layout.device(0)
        with Guest(kvm_fd, fetch(address) + PRINT_EAX + RESET) as guest:
            guest.wire(lib.vm_add_rng(guest.core))
            report = guest.run()
            assert guest.console == b"virt"
        assert report["exits"]["mmio"] == 1

    def test_nothing_there_reads_as_ones(self, kvm_fd):
        with Guest(kvm_fd, fetch(layout.device(5)[0]) + PRINT_EAX + RESET) as guest:
            guest.run()
            assert guest.console == b"\xff" * 4

    @pytest.mark.parametrize("coalesced", [0, 6])
    def test_rng_from_kick_to_used_ring(self, kvm_fd, coalesced):
        """The guest sets the device up, kicks it through an ioeventfd (no exit to user space), and
        polls the used ring until the io thread has filled its buffer. Half of the set-up may wait
        in KVM's ring."""
        base, _ = layout.device(0)
        desc, avail, used, buffer = 0x200000, 0x201000, 0x202000, 0x203000
        setup = [
            (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x30, 0), (0x38, 8),
            (0x80, desc), (0x90, avail), (0xA0, used), (0x44, 1), (0x70, 15),
        ]  # fmt: skip
        code = b"".join(store(base + register, value) for register, value in setup)
        code += store(base + 0x50, 0)
        code += tiny.until_word_is(used + 2, 1)
        with Guest(kvm_fd, code + RESET) as guest:
            memory = guest.memory
            memory.write(desc, struct.pack("<QIHH", buffer, 64, 2, 0))
            memory.write(avail, struct.pack("<HHH", 0, 1, 0))
            assert guest.wire(lib.vm_add_rng(guest.core)) == base
            if coalesced:
                worker = SimpleNamespace(core=guest.core, vm=guest.vm, spec={"devices": 1})
                Worker._coalesce(worker, Kvm(kvm_fd))
            report = guest.run()
            assert report["end"] == "reset"
            assert struct.unpack("<HHII", memory.read(used, 12)) == (0, 1, 0, 64)
            assert memory.read(buffer, 64) != bytes(64)
            assert memory.read(buffer + 64, 64) == bytes(64)
            deadline = time.monotonic() + 60  # KVM may inject from a work queue
            while not pending_interrupts(guest) and time.monotonic() < deadline:
                time.sleep(0.001)
            assert pending_interrupts(guest) == 1 << 5  # by the irqfd; the guest took none
        assert report["exits"]["mmio"] == len(setup) - coalesced  # the kick is none


def test_200_vms_leave_nothing_behind(kvm_fd):
    def held() -> tuple[int, int, int]:
        with open("/proc/self/maps") as maps:
            count = sum(1 for line in maps if "kvm-vcpu" in line)
        return len(os.listdir("/proc/self/fd")), count, len(tiny.tasks())

    def one() -> None:
        with Guest(kvm_fd, RESET, vcpus=2, size=1 << 21) as guest:
            guest.wire(lib.vm_add_rng(guest.core))
            guest.run()

    one()
    gc.collect()  # what other tests have left to it may have descriptors
    before = held()
    for _ in range(200):
        one()
    assert held() == before
