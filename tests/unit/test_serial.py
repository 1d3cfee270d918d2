"""The 16550A: what it prints, what it interrupts for, and what a driver's probing finds."""

from __future__ import annotations

import os

import pytest
from pyvmm._core import ffi, lib

THR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
FCR = IIR
THRE_ENABLED = 2
NO_INTERRUPT, THRE_INTERRUPT = 1, 2
FIFO = 0xC0
DLAB = 0x80
LOOP = 0x10
RING = 16


class Uart:
    def __init__(self, out: int = -1) -> None:
        self.core = lib.vm_new()
        self.irq = os.eventfd(0, os.EFD_NONBLOCK)
        self.memory = ffi.new("uint8_t[]", 8 + RING)
        ring = ffi.cast("struct console_ring *", self.memory)
        assert lib.vm_set_serial(self.core, self.irq, out, ring, RING) == 0
        self.ring = ring

    def close(self) -> None:
        lib.vm_free(self.core)
        os.close(self.irq)

    def read(self, register: int) -> int:
        value = ffi.new("uint8_t *")
        lib.vm_serial(self.core, register, value, False)
        return int(value[0])

    def write(self, register: int, value: int) -> None:
        lib.vm_serial(self.core, register, ffi.new("uint8_t *", value), True)

    def print(self, text: bytes) -> None:
        for byte in text:
            self.write(THR, byte)

    def interrupts(self) -> int:
        try:
            return os.eventfd_read(self.irq)
        except BlockingIOError:
            return 0

    @property
    def shown(self) -> bytes:
        """What the ring holds, oldest first."""
        written = self.ring.written
        data = bytes(ffi.buffer(self.memory)[8:])
        if written <= RING:
            return data[:written]
        cut = written % RING
        return data[cut:] + data[:cut]


@pytest.fixture
def uart():
    uart = Uart()
    yield uart
    uart.close()


class TestOutput:
    def test_ring(self, uart):
        uart.print(b"hello")
        assert uart.ring.written == 5
        assert uart.shown == b"hello"

    def test_ring_just_full(self, uart):
        uart.print(bytes(range(RING)))
        assert uart.shown == bytes(range(RING))

    def test_ring_wraps(self, uart):
        uart.print(bytes(range(100)))
        assert uart.ring.written == 100
        assert uart.shown == bytes(range(100 - RING, 100))

    def test_copy_to_a_descriptor(self):
        reader, writer = os.pipe()
        uart = Uart(writer)
        uart.print(b"live")
        assert os.read(reader, 100) == b"live"
        os.close(reader)
        uart.print(b" on")  # nobody watches any more: not an error, the ring goes on
        assert uart.shown == b"live on"
        uart.close()
        os.close(writer)

    def test_a_full_descriptor_loses_bytes_but_is_kept(self):
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        while True:
            try:
                os.write(writer, bytes(4096))
            except BlockingIOError:
                break
        uart = Uart(writer)
        uart.print(b"lost")
        assert b"lost" not in os.read(reader, 1 << 20)
        uart.print(b"kept")
        assert os.read(reader, 1 << 20) == b"kept"
        uart.close()
        os.close(reader)
        os.close(writer)

    def test_without_a_ring(self):
        core = lib.vm_new()
        lib.vm_serial(core, THR, ffi.new("uint8_t *", 65), True)
        lib.vm_free(core)

    def test_ring_of_no_size_is_refused(self):
        core = lib.vm_new()
        ring = ffi.cast("struct console_ring *", ffi.new("uint8_t[8]"))
        assert lib.vm_set_serial(core, -1, -1, ring, 0) < 0
        lib.vm_free(core)


class TestLineStatus:
    def test_always_ready_to_send_and_nothing_received(self, uart):
        assert uart.read(LSR) == 0x60
        uart.write(THR, 65)
        assert uart.read(LSR) == 0x60
        assert uart.read(THR) == 0

    def test_line_and_modem_status_are_read_only(self, uart):
        uart.write(LSR, 0xFF)
        uart.write(MSR, 0xFF)
        assert uart.read(LSR) == 0x60
        assert uart.read(MSR) == 0xB0


class TestInterrupts:
    def test_none_unless_enabled(self, uart):
        uart.print(b"quiet")
        assert uart.interrupts() == 0
        assert uart.read(IIR) == NO_INTERRUPT

    def test_enabling_finds_the_register_empty(self, uart):
        uart.write(IER, THRE_ENABLED)
        assert uart.interrupts() == 1
        assert uart.read(IIR) == THRE_INTERRUPT

    def test_reading_iir_clears_it(self, uart):
        uart.write(IER, THRE_ENABLED)
        assert [uart.read(IIR) for _ in range(2)] == [THRE_INTERRUPT, NO_INTERRUPT]

    def test_each_byte_interrupts(self, uart):
        uart.write(IER, THRE_ENABLED)
        uart.read(IIR)
        uart.interrupts()
        uart.print(b"ab")
        assert uart.interrupts() == 2
        assert [uart.read(IIR) for _ in range(2)] == [THRE_INTERRUPT, NO_INTERRUPT]

    def test_other_enables_do_not_interrupt(self, uart):
        uart.write(IER, 0x0D)
        uart.print(b"x")
        assert uart.interrupts() == 0
        assert uart.read(IIR) == NO_INTERRUPT


class TestRegisters:
    def test_scratch(self, uart):
        for value in (0, 0x55, 0xAA, 0xFF):
            uart.write(SCR, value)
            assert uart.read(SCR) == value

    def test_divisor_latch_hides_data_and_ier(self, uart):
        uart.write(IER, 5)
        uart.write(LCR, DLAB | 3)
        uart.write(THR, 0x12)
        uart.write(IER, 0x34)
        assert (uart.read(THR), uart.read(IER)) == (0x12, 0x34)
        assert uart.shown == b""
        uart.write(LCR, 3)
        assert (uart.read(THR), uart.read(IER), uart.read(LCR)) == (0, 5, 3)

    def test_fifo_shows_in_iir(self, uart):
        assert uart.read(IIR) == NO_INTERRUPT
        uart.write(FCR, 1)
        assert uart.read(IIR) == FIFO | NO_INTERRUPT
        uart.write(FCR, 0)
        assert uart.read(IIR) == NO_INTERRUPT

    def test_ier_and_mcr_have_no_upper_bits(self, uart):
        uart.write(IER, 0xFF)
        uart.write(MCR, 0xFF)
        assert (uart.read(IER), uart.read(MCR)) == (0x0F, 0x1F)


class TestLoopBack:
    @pytest.mark.parametrize("outputs", range(16))
    def test_modem_outputs_come_back(self, uart, outputs):
        uart.write(MCR, LOOP | outputs)
        dtr, rts, out1, out2 = (outputs >> bit & 1 for bit in range(4))
        assert uart.read(MSR) == rts << 4 | dtr << 5 | out1 << 6 | out2 << 7

    def test_nothing_is_printed(self, uart):
        uart.write(MCR, LOOP)
        uart.print(b"x")
        assert uart.shown == b""

    def test_probing_as_linux_does_finds_a_16550a(self, uart):
        """The steps of the 8250 driver's autoconfiguration, and what a 16550A answers."""
        uart.write(IER, 0)
        assert uart.read(IER) & 0x0F == 0
        uart.write(IER, 0x0F)
        assert uart.read(IER) & 0x0F == 0x0F
        uart.write(IER, 0)
        saved = uart.read(MCR)
        uart.write(MCR, LOOP | 0x0A)
        assert uart.read(MSR) & 0xF0 == 0x90
        uart.write(MCR, saved)
        uart.write(LCR, 0xBF)
        uart.write(FCR, 0)  # EFR, where there is one
        uart.write(LCR, 0)
        uart.write(FCR, 1)
        assert uart.read(IIR) >> 6 == 3  # a 16550A
        uart.write(LCR, DLAB)
        assert uart.read(IIR) != 0  # no EFR: not a 16650
        uart.write(LCR, 0)
        uart.write(FCR, 0x21)
        assert uart.read(IIR) >> 5 == 6  # no 64-byte FIFO: not a 16750
        uart.write(IER, 0x40)
        assert not uart.read(IER) & 0x40  # no UUE: not an XScale
        assert uart.shown == b""
