/* SPDX-License-Identifier: Apache-2.0 */
/* The serial port, against what a 16550A's data sheet says of the registers we have. */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "harness.h"
#include "machine.h"

enum { THR = 0, IER = 1, FCR = 2, LCR = 3, MCR = 4, LSR = 5, MSR = 6, SCR = 7 };
enum { DLAB = 0x80, LOOP = 0x10, THRE = 2 };

#define KEPT (64u << 10)

const char *const goal = "that say something";

static struct console_ring *ring;
static uint32_t ring_size;
static uint8_t written[KEPT], registers[8], divisor[2];
static size_t n_written;
static int reader;

void target_begin(void)
{
	static const uint32_t sizes[] = {1, 7, 256, 4096};
	uint8_t options = in8();
	int ends[2], out = -1;

	signal(SIGPIPE, SIG_IGN); /* as Python does */
	ring_size = sizes[options & 3];
	ring = options & 4 ? NULL : calloc(1, sizeof(*ring) + ring_size);
	reader = -1;
	if (options & 8) {
		check(!pipe2(ends, O_NONBLOCK), "pipe2");
		out = keep_fd(ends[1]);
		if (options & 16) /* nobody watches */
			check(!close(ends[0]), "close");
		else
			reader = keep_fd(ends[0]);
	}
	n_written = 0;
	memset(registers, 0, sizeof(registers));
	memset(divisor, 0, sizeof(divisor));
	check(!vm_set_serial(vm, keep_fd(eventfd(0, EFD_NONBLOCK)), out, ring, ring_size),
	      "vm_set_serial");
}

static void put(unsigned reg, uint8_t value)
{
	bool latch = registers[LCR] & DLAB;

	vm_serial(vm, reg, &value, true);
	if (latch && reg <= IER)
		divisor[reg] = value;
	else if (reg == THR && !(registers[MCR] & LOOP) && n_written < KEPT)
		written[n_written++] = value;
	if (reg == IER && !latch)
		registers[IER] = value & 0xf;
	else if (reg == MCR)
		registers[MCR] = value & 0x1f;
	else if (reg > IER)
		registers[reg] = value;
}

static void get(unsigned reg)
{
	bool latch = registers[LCR] & DLAB;
	uint8_t value;

	vm_serial(vm, reg, &value, false);
	if (latch && reg <= IER)
		check(value == divisor[reg], "another divisor");
	else if (reg == THR)
		check(value == 0, "a byte came in");
	else if (reg == LSR)
		check(value == 0x60, "another line status");
	else if (reg == FCR)
		check((value & 0xc0) == (registers[FCR] & 1 ? 0xc0 : 0) &&
			      ((value & 0xf) == 1 || ((value & 0xf) == 2 && registers[IER] & THRE)),
		      "another interrupt identification");
	else if (reg != MSR)
		check(value == registers[reg], "a register that does not read as written");
}

void target_op(uint8_t op)
{
	unsigned n;

	switch (op % 4) {
	case 0:
		get(below(8));
		break;
	case 1: /* a string */
		for (n = in8(); n--;)
			put(THR, (uint8_t)(n + op));
		break;
	default:
		n = below(8);
		put(n, in8());
	}
}

void target_end(void)
{
	static uint8_t seen[KEPT];
	size_t from = n_written > ring_size ? n_written - ring_size : 0, i = 0;
	ssize_t n = reader < 0 ? 0 : read(reader, seen, sizeof(seen));

	goal_met = n_written;
	if (ring && n_written < KEPT) {
		check(ring->written == n_written, "the ring has not all");
		for (i = from; i < n_written; i++)
			check(ring->data[i % ring_size] == written[i], "the ring has others");
	}
	if (reader >= 0 && n_written)
		check(n > 0 && !memcmp(seen, written, MIN((size_t)n, n_written)), "out has others");
	vm_set_serial(vm, -1, -1, NULL, 0);
	free(ring);
}
