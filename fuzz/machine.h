/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The devices without a guest: what the harnesses of single devices (blk.c, console.c, registers.c,
 * rng.c, vsock.c) share. An input is a sequence of operations; what its bytes decide is all that a
 * guest and the host's side decide. machine.c has the memory, the registers and the hooks, driver.c
 * the queues and what a hostile driver does to them.
 *
 * As long as an input has done nothing that an honest driver does not do, the harnesses know what
 * must come of it, to the byte, and where the device may write. A hostile one may do to itself
 * whatever it likes: then the sanitizers and the guard pages around its memory have the word.
 */
#ifndef FUZZ_MACHINE_H
#define FUZZ_MACHINE_H

#include "core.h"

#define LOW_SIZE  (512u << 10) /* of guest memory at 0 */
#define HIGH_BASE (1ull << 32) /* and from here */
#define HIGH_SIZE (64u << 10)
#define MAX_PARTS 16 /* of a chain */
#define NO_CHAIN  (-1)

enum { F_NEXT = 1, F_WRITE = 2, F_INDIRECT = 4 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 64 };
enum {
	REG_DEVICE_FEATURES = 0x10,
	REG_DEVICE_FEATURES_SEL = 0x14,
	REG_DRIVER_FEATURES = 0x20,
	REG_DRIVER_FEATURES_SEL = 0x24,
	REG_QUEUE_SEL = 0x30,
	REG_QUEUE_NUM_MAX = 0x34,
	REG_QUEUE_NUM = 0x38,
	REG_QUEUE_READY = 0x44,
	REG_INTERRUPT_STATUS = 0x60,
	REG_INTERRUPT_ACK = 0x64,
	REG_STATUS = 0x70,
	REG_QUEUE_DESC = 0x80,
	REG_QUEUE_AVAIL = 0x90,
	REG_QUEUE_USED = 0xa0,
	REG_CONFIG = 0x100,
};

/* What the driver has given away: `out` for the device to read, `in` for it to write. */
struct given {
	bool busy;
	uint8_t *out, *in;
	uint32_t out_len, in_len;
	unsigned n_descs;
	uint16_t descs[MAX_PARTS];
	uint32_t unit, units; /* of the arena */
	uint64_t tag;	      /* the harness's own */
};

struct queue {
	unsigned num; /* 0: not set up */
	uint64_t desc, avail, used;
	bool event_idx, indirect;
	bool wants_interrupts, armed; /* from the next collect() on; now */
	uint16_t avail_idx, kicked, seen;
	bool late; /* the last is given while the device looks */
	unsigned n_free;
	uint16_t free[VQ_SIZE];
	struct given given[VQ_SIZE];
};

struct device {
	int irq, kick[VIRTIO_MAX_QUEUES];
	bool running;	  /* has been started, and not been reset since */
	bool interrupted; /* since its driver last looked */
	struct queue queue[VIRTIO_MAX_QUEUES];
};

#ifdef TRACE /* make CFLAGS=-DTRACE: what an input does */
#include <stdio.h>
#define trace(...) fprintf(stderr, __VA_ARGS__)
#else
#define trace(...) ((void)0)
#endif

/* ---- machine.c ---- */

extern struct vm *vm;
extern struct device devices[VM_MAX_DEVICES];
extern uint8_t *low, *high;
extern uint8_t may_write[LOW_SIZE]; /* the device, there */
extern bool hostile;		    /* this input's driver */
extern bool in_device;		    /* whose code runs */
extern bool goal_met;		    /* by this input */

void check(bool ok, const char *what);
bool input_left(void);
uint8_t in8(void);
uint16_t in16(void);
uint32_t in32(void);
unsigned below(unsigned limit);
int keep_fd(int fd);
void drop_fd(int fd);

void wire(int slot);
uint32_t reg_read(unsigned slot, uint32_t reg);
void reg_write(unsigned slot, uint32_t reg, uint32_t value);
bool turn(unsigned rounds);
void settle(void);
void watch(uint8_t *place, unsigned size, unsigned times, uint64_t value);
void watch_ring(unsigned slot, unsigned q, unsigned times);

/* ---- driver.c ---- */

bool start(unsigned slot, uint64_t features, unsigned num);
void start_any(unsigned slot);
void stop(unsigned slot);
int give(unsigned slot, unsigned q, const void *out, uint32_t out_len, uint32_t in_len,
	 uint8_t shape);
bool kick(unsigned slot, unsigned q);
void collect(unsigned slot, void (*took)(unsigned q, struct given *g, uint32_t len));
void hostile_op(void);
void drivers_reset(void);
uint32_t drivers_end(void);
uint64_t any_number(void);

/* ---- a harness, which sets `reached` and `goal`, too ---- */

void target_begin(void);
void target_op(uint8_t op);
void target_end(void);

#endif
