/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory between guard pages, registers, the loop, and what is asked of every input: nothing
 * is written where the device may not, the loop comes to rest, all descriptors are closed.
 *
 * "Its memory changes under us" is deterministic here: the sanitizer's calls before every load are
 * wrapped (-Wl,--wrap, see `run`), and at the load that an input named, the memory changes. So a
 * field that is read twice can differ, however short the time between is.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"
#include "machine.h"

#define GUARD	   (1u << 20)
#define SPIN_LIMIT 20000u
#define MAX_FDS	   512
#define MAX_WATCH  16

unsigned reached;
bool thorough;
struct vm *vm;
struct device devices[VM_MAX_DEVICES];
uint8_t *low, *high, may_write[LOW_SIZE];
bool hostile, in_device, goal_met;

static const uint8_t *at, *end;
static struct watched {
	uint8_t *place;
	unsigned size, times;
	uint64_t value;
	struct queue *queue; /* or, NULL, a value */
	unsigned slot, q;
} watched[MAX_WATCH];
static unsigned n_watched;
static int kept[MAX_FDS];
static unsigned n_kept, n_devices; /* n_devices: of the last input */

void check(bool ok, const char *what)
{
	if (ok)
		return;
	in_device = false;
	fprintf(stderr, "harness: %s\n", what);
	abort();
}

/* ---- the input ---- */

bool input_left(void)
{
	return at < end;
}

uint8_t in8(void)
{
	return at < end ? *at++ : 0;
}

uint16_t in16(void)
{
	uint16_t first = in8();

	return (uint16_t)(first | in8() << 8);
}

uint32_t in32(void)
{
	uint32_t first = in16();

	return first | (uint32_t)in16() << 16;
}

unsigned below(unsigned limit)
{
	return limit > 256 ? in16() % limit : in8() % limit;
}

/* ---- memory ---- */

static uint8_t *guarded(size_t size)
{
	uint8_t *all = mmap(NULL, size + 2 * GUARD, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	check(all != MAP_FAILED && !mprotect(all + GUARD, size, PROT_READ | PROT_WRITE), "memory");
	return all + GUARD;
}

/* Have memory change just before the device loads it for that time (or stores there). */
void watch(uint8_t *place, unsigned size, unsigned times, uint64_t value)
{
	unsigned i = n_watched < MAX_WATCH ? n_watched++ : 0;

	watched[i] = (struct watched){place, size, times, value, NULL, 0, 0};
}

/* Have the driver give what it put off just before the device looks for the next, or says when it
 * wants to hear of that. */
void watch_ring(unsigned slot, unsigned q, unsigned times)
{
	struct queue *vq = &devices[slot].queue[q];
	uint8_t *place = low + (times & 1 ? vq->avail + 2 : vq->used + 4 + 8 * vq->num);
	unsigned i = n_watched < MAX_WATCH ? n_watched++ : 0;

	watched[i] = (struct watched){place, 2, 1 + times / 2, 0, vq, slot, q};
}

static void change(const struct watched *w)
{
	in_device = false;
	if (!w->queue)
		memcpy(w->place, &w->value, w->size);
	else if (w->queue->late)
		kick(w->slot, w->q);
	in_device = true;
}

static bool ours(const uint8_t *p)
{
	return (p >= low && p < low + LOW_SIZE) || (p >= high && p < high + HIGH_SIZE);
}

static void touches(const uint8_t *p, size_t size)
{
	for (unsigned i = 0; i < n_watched; i++) {
		struct watched *w = &watched[i];

		if (w->times && p + size > w->place && p < w->place + w->size && !--w->times)
			change(w);
	}
}

static void loads(const void *place, size_t size)
{
	if (in_device && ours(place))
		touches(place, size);
}

static void stores(const void *place, size_t size)
{
	const uint8_t *p = place;

	if (!in_device || !ours(p))
		return;
	touches(p, size);
	if (hostile)
		return;
	check(p >= low && size <= (size_t)(low + LOW_SIZE - p), "a write over memory's end");
	for (size_t i = 0; i < size; i++)
		check(may_write[p - low + (ptrdiff_t)i], "a write where the device may not");
}

/* What system calls read into: the sanitizer does not see those. */
static void stores_iov(const struct iovec *iov, size_t n)
{
	while (n--) {
		stores(iov->iov_base, iov->iov_len);
		iov++;
	}
}

#define WRAP_ACCESS(kind, size)                                                                    \
	void __real___asan_##kind##size(const void *p);                                            \
	void __wrap___asan_##kind##size(const void *p);                                            \
	void __wrap___asan_##kind##size(const void *p)                                             \
	{                                                                                          \
		kind##s(p, size);                                                                  \
		__real___asan_##kind##size(p);                                                     \
	}
WRAP_ACCESS(load, 1)
WRAP_ACCESS(load, 2)
WRAP_ACCESS(load, 4)
WRAP_ACCESS(load, 8)
WRAP_ACCESS(load, 16)
WRAP_ACCESS(store, 1)
WRAP_ACCESS(store, 2)
WRAP_ACCESS(store, 4)
WRAP_ACCESS(store, 8)
WRAP_ACCESS(store, 16)

void __real___asan_loadN(const void *p, size_t size);
void __wrap___asan_loadN(const void *p, size_t size);
void __wrap___asan_loadN(const void *p, size_t size)
{
	loads(p, size);
	__real___asan_loadN(p, size);
}

void __real___asan_storeN(const void *p, size_t size);
void __wrap___asan_storeN(const void *p, size_t size);
void __wrap___asan_storeN(const void *p, size_t size)
{
	stores(p, size);
	__real___asan_storeN(p, size);
}

/* gcc's calls have the C library's names, clang's names of their own. */
#define WRAP_COPY(name)                                                                            \
	void *__real_##name(void *to, const void *from, size_t size);                              \
	void *__wrap_##name(void *to, const void *from, size_t size);                              \
	void *__wrap_##name(void *to, const void *from, size_t size)                               \
	{                                                                                          \
		loads(from, size);                                                                 \
		stores(to, size);                                                                  \
		return __real_##name(to, from, size);                                              \
	}
#define WRAP_SET(name)                                                                             \
	void *__real_##name(void *to, int value, size_t size);                                     \
	void *__wrap_##name(void *to, int value, size_t size);                                     \
	void *__wrap_##name(void *to, int value, size_t size)                                      \
	{                                                                                          \
		stores(to, size);                                                                  \
		return __real_##name(to, value, size);                                             \
	}
#ifdef __clang__
WRAP_COPY(__asan_memcpy)
WRAP_COPY(__asan_memmove)
WRAP_SET(__asan_memset)
#else
WRAP_COPY(memcpy)
WRAP_COPY(memmove)
WRAP_SET(memset)
#endif

ssize_t __real_preadv(int fd, const struct iovec *iov, int n, off_t offset);
ssize_t __wrap_preadv(int fd, const struct iovec *iov, int n, off_t offset);
ssize_t __wrap_preadv(int fd, const struct iovec *iov, int n, off_t offset)
{
	stores_iov(iov, (size_t)n);
	return __real_preadv(fd, iov, n, offset);
}

/* Inputs mean the same each time. */
ssize_t __wrap_getrandom(void *to, size_t size, unsigned flags);
ssize_t __wrap_getrandom(void *to, size_t size, unsigned flags)
{
	memset(to, 0x35, size);
	return (ssize_t)size;
}

ssize_t __real_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *msg, int flags)
{
	stores_iov(msg->msg_iov, msg->msg_iovlen);
	return __real_recvmsg(fd, msg, flags);
}

/* ---- descriptors ---- */

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
	int r = __real_close(fd);

	check(!r, "the device closed what is not open");
	return r;
}

/* The harness's own, closed at the input's end. */
int keep_fd(int fd)
{
	check(fd >= 0 && n_kept < MAX_FDS, "a descriptor");
	kept[n_kept++] = fd;
	return fd;
}

void drop_fd(int fd)
{
	for (unsigned i = 0; i < n_kept; i++) {
		if (kept[i] != fd)
			continue;
		kept[i] = kept[--n_kept];
		check(!__real_close(fd), "the device closed what is ours");
		return;
	}
}

/* Which descriptors are open, by one system call for all. */
static void look_at_fds(bool *is_open)
{
	static struct pollfd fds[MAX_FDS];

	for (int i = 0; i < MAX_FDS; i++)
		fds[i].fd = i;
	check(poll(fds, MAX_FDS, 0) >= 0, "poll");
	for (int i = 0; i < MAX_FDS; i++)
		is_open[i] = !(fds[i].revents & POLLNVAL);
}

/* ---- registers and the loop ---- */

/* Have the device that was added there interrupt and be kicked. */
void wire(int slot)
{
	struct device *d = &devices[slot];
	int queues = vm_device_queues(vm, slot);

	check(slot >= 0 && queues > 0, "a device");
	d->irq = keep_fd(eventfd(0, EFD_NONBLOCK));
	for (int q = 0; q < queues; q++)
		d->kick[q] = keep_fd(eventfd(0, EFD_NONBLOCK));
	check(!vm_wire_device(vm, slot, d->irq, d->kick), "vm_wire_device");
}

uint32_t reg_read(unsigned slot, uint32_t reg)
{
	uint32_t value;

	vm_mmio(vm, MMIO_BASE + slot * MMIO_STRIDE + reg, (uint8_t *)&value, 4, false);
	return value;
}

void reg_write(unsigned slot, uint32_t reg, uint32_t value)
{
	in_device = true;
	vm_mmio(vm, MMIO_BASE + slot * MMIO_STRIDE + reg, (uint8_t *)&value, 4, true);
	in_device = false;
}

static void check_queue(const struct virtio_dev *dev, unsigned q, struct device *d)
{
	const struct virtq *vq = &dev->vq[q];
	const struct queue *driver = &d->queue[q];
	uint16_t used;

	if (!vq->ready)
		return;
	check((uint16_t)(vq->last_avail - vq->used_idx) <= vq->num, "more used than was offered");
	if (hostile || !d->running)
		return;
	check(!(dev->status & NEEDS_RESET), "an honest driver's device broke");
	memcpy(&used, low + driver->used + 2, 2);
	check((uint16_t)(driver->avail_idx - used) <= driver->num, "used what was not offered");
	check(!driver->armed || used == driver->seen || d->interrupted, "an interrupt is missing");
}

/* Turn the loop as often, or until nothing is left to do: then, true. */
bool turn(unsigned rounds)
{
	int r;

	do {
		in_device = true;
		r = vm_poll(vm, 0);
		in_device = false;
		check(r >= 0, "vm_poll");
	} while (r && --rounds);
	return !r;
}

/* Turn the loop until nothing is left to do. */
void settle(void)
{
	uint64_t count;
	bool late;

	do {
		check(turn(SPIN_LIMIT), "the loop spins");
		late = false;
		for (unsigned slot = 0; slot < vm->n_devices; slot++)
			for (unsigned q = 0; q < VIRTIO_MAX_QUEUES; q++)
				if (devices[slot].queue[q].late)
					late |= kick(slot, q);
	} while (late);
	for (unsigned slot = 0; slot < vm->n_devices; slot++) {
		struct device *d = &devices[slot];

		if (read(d->irq, &count, sizeof(count)) == sizeof(count))
			d->interrupted = true;
		for (unsigned q = 0; q < vm->devices[slot]->ops->n_queues; q++)
			check_queue(vm->devices[slot], q, d);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	bool before[MAX_FDS], after[MAX_FDS];

	if (!low) { /* the first: until now, nothing was used */
		low = guarded(LOW_SIZE);
		high = guarded(HIGH_SIZE);
	}
	look_at_fds(before);
	at = data;
	end = data + size;
	/* Clearing all of it would take longer than most inputs. */
	memset(low, 0, hostile ? LOW_SIZE : drivers_end());
	memset(high, 0, hostile ? HIGH_SIZE : 0);
	memset(may_write, 0, drivers_end());
	memset(devices, 0, n_devices * sizeof(*devices));
	hostile = goal_met = false;
	n_watched = 0;
	drivers_reset();
	vm = vm_new();
	check(vm && !vm_add_memory(vm, 0, LOW_SIZE, low) &&
		      !vm_add_memory(vm, HIGH_BASE, HIGH_SIZE, high),
	      "vm_new");
	target_begin();
	while (input_left()) {
		trace("op %u at %zu\n", *at, (size_t)(at - data));
		target_op(in8());
	}
	trace("end\n");
	target_end();
	n_devices = vm->n_devices;
	vm_free(vm);
	while (n_kept)
		check(!__real_close(kept[--n_kept]), "the device closed what is ours");
	look_at_fds(after);
	check(!memcmp(before, after, sizeof(before)), "a descriptor is left open");
	reached += goal_met;
	return 0;
}
