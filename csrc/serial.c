/* SPDX-License-Identifier: Apache-2.0
 *
 * A 16550A on COM1, output only: the guest's console. What it writes goes into a ring shared with
 * the caller (so that a crash can be explained) and, if asked for, to a descriptor at once.
 * Registers: National Semiconductor PC16550D data sheet, table II.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core.h"

enum {
	REG_THR = 0,
	REG_IER = 1,
	REG_IIR = 2,
	REG_LCR = 3,
	REG_MCR = 4,
	REG_LSR = 5,
	REG_MSR = 6,
	REG_SCR = 7
};

#define IER_MASK      0x0f
#define IER_THRE      0x02
#define IIR_NONE      0x01
#define IIR_THRE      0x02
#define IIR_FIFO      0xc0
#define FCR_ENABLE    0x01
#define LCR_DLAB      0x80
#define MCR_MASK      0x1f
#define MCR_LOOP      0x10
#define LSR_IDLE      0x60 /* transmitter and its holding register empty */
#define MSR_CONNECTED 0xb0 /* carrier, data set ready, clear to send */

static void serial_interrupt(struct serial *s)
{
	uint64_t one = 1;

	s->thr_irq = true;
	if (s->ier & IER_THRE && s->irq_fd >= 0 && write(s->irq_fd, &one, sizeof(one)) < 0)
		return;
}

static void serial_emit(struct serial *s, uint8_t byte)
{
	if (s->ring) {
		uint64_t at = s->ring->written;

		s->ring->data[at % s->ring_size] = byte;
		__atomic_store_n(&s->ring->written, at + 1, __ATOMIC_RELEASE);
	}
	if (s->out_fd >= 0 && write(s->out_fd, &byte, 1) < 0 && errno != EINTR && errno != EAGAIN)
		s->out_fd = -1; /* whoever watched has gone */
}

uint8_t serial_read(struct serial *s, unsigned reg)
{
	uint8_t value;

	pthread_mutex_lock(&s->lock);
	switch (reg) {
	case REG_THR:
		value = s->lcr & LCR_DLAB ? s->dll : 0;
		break;
	case REG_IER:
		value = s->lcr & LCR_DLAB ? s->dlm : s->ier;
		break;
	case REG_IIR:
		value = s->fcr & FCR_ENABLE ? IIR_FIFO : 0;
		if (s->thr_irq && s->ier & IER_THRE) {
			s->thr_irq = false;
			value |= IIR_THRE;
		} else {
			value |= IIR_NONE;
		}
		break;
	case REG_LCR:
		value = s->lcr;
		break;
	case REG_MCR:
		value = s->mcr;
		break;
	case REG_LSR:
		value = LSR_IDLE;
		break;
	case REG_MSR:
		/* In loop-back the outputs DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD. */
		value = MSR_CONNECTED;
		if (s->mcr & MCR_LOOP)
			value = (uint8_t)((s->mcr & 1) << 5 | (s->mcr & 2) << 3 |
					  (s->mcr & 12) << 4);
		break;
	default:
		value = s->scr;
		break;
	}
	pthread_mutex_unlock(&s->lock);
	return value;
}

void serial_write(struct serial *s, unsigned reg, uint8_t value)
{
	pthread_mutex_lock(&s->lock);
	switch (reg) {
	case REG_THR:
		if (s->lcr & LCR_DLAB) {
			s->dll = value;
		} else if (!(s->mcr & MCR_LOOP)) {
			serial_emit(s, value);
			serial_interrupt(s);
		}
		break;
	case REG_IER:
		if (s->lcr & LCR_DLAB) {
			s->dlm = value;
		} else {
			s->ier = value & IER_MASK;
			serial_interrupt(s);
		}
		break;
	case REG_IIR:
		s->fcr = value;
		break;
	case REG_LCR:
		s->lcr = value;
		break;
	case REG_MCR:
		s->mcr = value & MCR_MASK;
		break;
	case REG_SCR:
		s->scr = value;
		break;
	default:
		break;
	}
	pthread_mutex_unlock(&s->lock);
}

void vm_serial(struct vm *vm, uint32_t reg, uint8_t *value, bool write)
{
	if (write)
		serial_write(&vm->serial, reg, *value);
	else
		*value = serial_read(&vm->serial, reg);
}

int vm_set_serial(struct vm *vm, int irq_fd, int out_fd, struct console_ring *ring,
		  uint32_t ring_size)
{
	if (ring && ring_size == 0)
		return -EINVAL;
	vm->serial.irq_fd = irq_fd;
	vm->serial.out_fd = out_fd;
	vm->serial.ring = ring;
	vm->serial.ring_size = ring_size;
	return 0;
}
