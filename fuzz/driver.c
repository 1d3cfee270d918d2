/* SPDX-License-Identifier: Apache-2.0 */
/* The driver's side of the split virtqueue (Virtio 1.2 §2.7), as Linux does it; and a hostile one.
 */
#include <string.h>
#include <unistd.h>

#include "machine.h"

#define RINGS	     0x1000u /* not at 0: what is forgotten there would go unseen */
#define RINGS_SIZE   0x2000u /* of one queue: all three, of VQ_SIZE */
#define AVAIL_AT     0x1000u
#define USED_AT	     0x1400u
#define ARENA	     (RINGS + VM_MAX_DEVICES / 2 * VIRTIO_MAX_QUEUES * RINGS_SIZE)
#define UNIT	     256u
#define UNITS	     ((LOW_SIZE - ARENA) / UNIT)
#define NO_INTERRUPT 1u

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

static bool unit_used[UNITS];
static uint32_t units_top; /* none from there on was ever used by this input */

void drivers_reset(void)
{
	memset(unit_used, 0, sizeof(unit_used));
	units_top = 0;
}

/* Where the memory begins that honest drivers have not used. */
uint32_t drivers_end(void)
{
	return ARENA + units_top * UNIT;
}

static uint16_t load16(uint64_t gpa)
{
	uint16_t v;

	memcpy(&v, low + gpa, 2);
	return v;
}

static void store16(uint64_t gpa, uint16_t v)
{
	memcpy(low + gpa, &v, 2);
}

/* ---- the arena: first fit ---- */

/* What is only to be written has one half, all else the other: if one waits for the other to move,
 * that has room. */
static bool arena_take(struct given *g, uint32_t bytes, bool in_only)
{
	uint32_t want = (bytes + UNIT - 1) / UNIT, run = 0, end = in_only ? UNITS / 2 : UNITS;

	for (uint32_t u = in_only ? 0 : UNITS / 2; u < end; u++) {
		run = unit_used[u] ? 0 : run + 1;
		if (run < want)
			continue;
		g->unit = u + 1 - want;
		g->units = want;
		memset(unit_used + g->unit, 1, want);
		units_top = u >= units_top ? u + 1 : units_top;
		return true;
	}
	return false;
}

static void arena_free(struct given *g)
{
	memset(unit_used + g->unit, 0, g->units);
	g->busy = false;
}

/* ---- initialisation (§3.1) ---- */

static void write64(unsigned slot, uint32_t reg, uint64_t value)
{
	reg_write(slot, reg, (uint32_t)value);
	reg_write(slot, reg + 4, (uint32_t)(value >> 32));
}

static void queue_start(unsigned slot, unsigned q, uint64_t features, unsigned num)
{
	struct queue *vq = &devices[slot].queue[q];

	memset(vq, 0, sizeof(*vq));
	vq->num = num;
	vq->desc = RINGS + (slot * VIRTIO_MAX_QUEUES + q) * RINGS_SIZE;
	vq->avail = vq->desc + AVAIL_AT;
	vq->used = vq->desc + USED_AT;
	vq->event_idx = features & VIRTIO_F_EVENT_IDX;
	vq->indirect = features & VIRTIO_F_INDIRECT_DESC;
	vq->wants_interrupts = vq->armed = true;
	for (unsigned i = 0; i < num; i++)
		vq->free[vq->n_free++] = (uint16_t)(num - 1 - i);
	memset(low + vq->desc, 0, RINGS_SIZE);
	memset(may_write + vq->used, 1, 6 + 8 * num);
	reg_write(slot, REG_QUEUE_SEL, q);
	reg_write(slot, REG_QUEUE_NUM, num);
	write64(slot, REG_QUEUE_DESC, vq->desc);
	write64(slot, REG_QUEUE_AVAIL, vq->avail);
	write64(slot, REG_QUEUE_USED, vq->used);
	reg_write(slot, REG_QUEUE_READY, 1);
}

/* Reset the device, and take those of the features that it offers. */
bool start(unsigned slot, uint64_t features, unsigned num)
{
	struct device *d = &devices[slot];

	stop(slot);
	reg_write(slot, REG_STATUS, ACKNOWLEDGE | DRIVER);
	for (unsigned half = 0; half < 2; half++) {
		uint32_t mine = (uint32_t)(features >> 32 * half);

		reg_write(slot, REG_DEVICE_FEATURES_SEL, half);
		reg_write(slot, REG_DRIVER_FEATURES_SEL, half);
		mine &= reg_read(slot, REG_DEVICE_FEATURES);
		reg_write(slot, REG_DRIVER_FEATURES, mine);
	}
	reg_write(slot, REG_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	if (!(reg_read(slot, REG_STATUS) & FEATURES_OK))
		return false;
	for (unsigned q = 0; q < vm->devices[slot]->ops->n_queues; q++)
		queue_start(slot, q, features, num);
	reg_write(slot, REG_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
	d->running = true;
	return true;
}

/* With the features and a size that the input says. */
void start_any(unsigned slot)
{
	uint64_t less = below(2) ? VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC : 0;

	start(slot, ~less, 1u << below(9));
}

/* After the reset all of the driver's memory is its own again. */
void stop(unsigned slot)
{
	struct device *d = &devices[slot];

	reg_write(slot, REG_STATUS, 0);
	check(hostile || reg_read(slot, REG_STATUS) == 0, "a reset that is none");
	for (unsigned q = 0; q < VIRTIO_MAX_QUEUES; q++) {
		struct queue *vq = &d->queue[q];

		for (unsigned i = 0; i < vq->num; i++) {
			struct given *g = &vq->given[i];

			if (!g->busy)
				continue;
			if (g->in_len)
				memset(may_write + (g->in - low), 0, g->in_len);
			arena_free(g);
		}
		if (vq->num)
			memset(may_write + vq->used, 0, 6 + 8 * vq->num);
		vq->num = 0;
	}
	d->running = d->interrupted = false;
}

/* ---- chains ---- */

static struct desc part(const uint8_t *buffer, uint32_t len, unsigned i, unsigned n, uint16_t flags)
{
	uint32_t size = len / n, from = size * i;

	return (struct desc){(uint64_t)(buffer - low) + from, i + 1 == n ? len - from : size, flags,
			     0};
}

static void publish(struct queue *vq, uint16_t head, bool late)
{
	store16(vq->avail + 4 + 2 * (vq->avail_idx & (vq->num - 1)), head);
	vq->avail_idx++;
	vq->late = late;
	if (!late)
		store16(vq->avail + 2, vq->avail_idx);
}

/* Give the device `out` to read and in_len bytes to write, in as many pieces as `shape` says (1 to
 * 8 each; 0x40: while the device looks; 0x80: by an indirect table). Returns the chain's head, or
 * NO_CHAIN if there is no room.
 */
int give(unsigned slot, unsigned q, const void *out, uint32_t out_len, uint32_t in_len,
	 uint8_t shape)
{
	struct queue *vq = &devices[slot].queue[q];
	unsigned outs = out_len ? MIN((shape & 7u) + 1, out_len) : 0;
	unsigned ins = in_len ? MIN((shape >> 3 & 7u) + 1, in_len) : 0;
	bool indirect = shape & 0x80 && vq->indirect;
	unsigned all = outs + ins, need = indirect ? 1 : all;
	uint32_t table = indirect ? all * (uint32_t)sizeof(struct desc) : 0;
	struct desc descs[MAX_PARTS];
	struct given *g;
	uint16_t head;

	if (!all || vq->n_free < need)
		return NO_CHAIN;
	head = vq->free[vq->n_free - 1];
	g = &vq->given[head];
	/* A byte that is nobody's between what is read and what is written, and after that. */
	if (g->busy || !arena_take(g, table + out_len + in_len + 2, !out_len))
		return NO_CHAIN;
	g->busy = true;
	g->out = low + ARENA + (size_t)g->unit * UNIT + table;
	g->in = g->out + out_len + 1;
	g->out_len = out_len;
	g->in_len = in_len;
	g->n_descs = need;
	if (out_len)
		memcpy(g->out, out, out_len);
	memset(g->in, 0xee, in_len);
	memset(may_write + (g->in - low), 1, in_len);
	for (unsigned i = 0; i < all; i++)
		descs[i] = i < outs ? part(g->out, out_len, i, outs, 0)
				    : part(g->in, in_len, i - outs, ins, F_WRITE);
	for (unsigned i = 0; i < need; i++)
		g->descs[i] = vq->free[--vq->n_free];
	for (unsigned i = 0; i + 1 < all; i++) {
		descs[i].flags |= F_NEXT;
		descs[i].next = (uint16_t)(indirect ? i + 1 : g->descs[i + 1]);
	}
	if (indirect) {
		memcpy(g->out - table, descs, table);
		descs[0] = (struct desc){(uint64_t)(g->out - table - low), table, F_INDIRECT, 0};
	}
	for (unsigned i = 0; i < need; i++)
		memcpy(low + vq->desc + sizeof(struct desc) * g->descs[i], &descs[i],
		       sizeof(struct desc));
	publish(vq, head, shape & 0x40);
	if (vq->late)
		watch_ring(slot, q, below(8));
	return head;
}

/* Tell the device, if it wants to hear of what was given since it was last told; whether it did. */
bool kick(unsigned slot, unsigned q)
{
	struct queue *vq = &devices[slot].queue[q];
	uint16_t before, event;
	uint64_t one = 1;

	if (vq->late) {
		vq->late = false;
		store16(vq->avail + 2, vq->avail_idx);
	}
	before = vq->kicked;
	vq->kicked = vq->avail_idx; /* whether told or not: it is not asked again */
	if (vq->event_idx && vq->num && !hostile) {
		event = load16(vq->used + 4 + 8 * vq->num);
		if ((uint16_t)(vq->kicked - event - 1) >= (uint16_t)(vq->kicked - before))
			return false;
	}
	check(write(devices[slot].kick[q], &one, sizeof(one)) == sizeof(one), "a kick");
	return true;
}

/* The interrupt handler: all queues' used elements, and whether to hear of the next. */
void collect(unsigned slot, void (*took)(unsigned q, struct given *g, uint32_t len))
{
	struct device *d = &devices[slot];

	d->interrupted = false;
	for (unsigned q = 0; q < VIRTIO_MAX_QUEUES; q++) {
		struct queue *vq = &d->queue[q];
		uint16_t event;

		for (unsigned n = 0; n < vq->num && vq->seen != load16(vq->used + 2); n++) {
			uint64_t at = vq->used + 4 + 8 * (vq->seen & (vq->num - 1));
			uint32_t element[2];
			struct given *g;

			memcpy(element, low + at, sizeof(element));
			vq->seen++;
			check(hostile || element[0] < vq->num, "a used element of no chain");
			g = &vq->given[element[0] % vq->num];
			check(hostile || g->busy, "a used element of a chain that was not given");
			check(hostile || element[1] <= g->in_len, "a used length beyond the chain");
			if (!g->busy)
				continue;
			for (unsigned i = g->n_descs; i--;)
				vq->free[vq->n_free++] = g->descs[i];
			if (g->in_len)
				memset(may_write + (g->in - low), 0, g->in_len);
			if (took)
				took(q, g, MIN(element[1], g->in_len));
			arena_free(g);
		}
		if (!vq->num)
			continue;
		vq->armed = vq->wants_interrupts;
		if (vq->event_idx) {
			event = vq->wants_interrupts ? vq->seen : (uint16_t)(vq->seen - 1);
			store16(vq->avail + 4 + 2 * vq->num, event);
		}
		store16(vq->avail, vq->wants_interrupts ? 0 : NO_INTERRUPT);
	}
}

/* ---- a hostile driver ---- */

uint64_t any_number(void)
{
	static const uint64_t odd[] = {0,
				       1,
				       0x7fff,
				       0x8000,
				       0xffff,
				       0x10000,
				       0x7fffffff,
				       0x80000000,
				       0xffffffff,
				       HIGH_BASE - 1,
				       0x7fffffffffffffff,
				       0x8000000000000000,
				       0xffffffffffffffff,
				       0xffffffffffff0000,
				       LOW_SIZE,
				       LOW_SIZE - 1};

	switch (below(4)) {
	case 0:
		return in8();
	case 1:
		return in16();
	case 2:
		return in32();
	default:
		return odd[below(sizeof(odd) / sizeof(*odd))];
	}
}

static uint64_t any_address(void)
{
	uint64_t near = in16();

	switch (below(8)) {
	case 0:
		return LOW_SIZE - near;
	case 1:
		return HIGH_BASE + near;
	case 2:
		return HIGH_BASE + HIGH_SIZE - near;
	case 3:
		return any_number();
	case 4:
		return RINGS + near;
	default:
		return ARENA + near;
	}
}

/* A field that a device reads, of one of the last chains given mostly. */
static uint8_t *any_field(const struct queue *vq, unsigned *size)
{
	uint64_t ring = vq->avail + 4 + 2 * ((vq->avail_idx - 1u - below(8)) & (vq->num - 1));
	unsigned i = below(4) ? load16(ring) % vq->num : below(VQ_SIZE) % vq->num;
	const struct given *g = &vq->given[i];
	uint64_t desc = vq->desc + sizeof(struct desc) * i;

	if (g->n_descs)
		desc = vq->desc + sizeof(struct desc) * g->descs[below(8) % g->n_descs];
	*size = 2;
	switch (below(9)) {
	case 0:
		*size = 8;
		return low + desc;
	case 1:
		*size = 4;
		return low + desc + 8;
	case 2:
		return low + desc + 12;
	case 3:
		return low + desc + 14;
	case 4:
		return low + vq->avail + 2 * below(2);
	case 5:
		return low + ring;
	case 6:
		return low + vq->avail + 4 + 2 * vq->num;
	case 7: /* what was written, too */
		return low + vq->used + below(6 + 8 * VQ_SIZE) % (6 + 8 * vq->num);
	default: /* a header, a table or data of the chain there */
		*size = 1u << below(4);
		if (g->busy)
			return low + ARENA + (size_t)g->unit * UNIT + below(64);
		return low + ARENA + below(UNIT);
	}
}

/* What no honest driver does. */
void hostile_op(void)
{
	unsigned what = below(6), slot = below(vm->n_devices), size;
	unsigned q = below(vm->devices[slot]->ops->n_queues);
	struct queue *vq = &devices[slot].queue[q];
	uint64_t value;
	uint8_t *field;

	hostile = true;
	if (!vq->num && what < 4)
		return;
	switch (what) {
	case 0: /* memory that is not written as it should be */
		field = any_field(vq, &size);
		value = size == 8 ? any_address() : any_number();
		memcpy(field, &value, size);
		break;
	case 1: /* memory that changes while it is read */
	case 2:
		field = any_field(vq, &size);
		value = size == 8 ? any_address() : any_number();
		watch(field, size, 1 + below(4), value);
		break;
	case 3: { /* a descriptor, and perhaps a chain that begins there */
		uint16_t head = (uint16_t)(below(VQ_SIZE) % vq->num);
		struct desc d = {.addr = any_address()};

		d.len = (uint32_t)any_number();
		d.flags = in8() & 7u;
		d.next = in8();

		memcpy(low + vq->desc + sizeof(d) * head, &d, sizeof(d));
		if (below(2))
			publish(vq, head, false);
		break;
	}
	case 4: /* a register at any time */
		value = below(2) ? any_number() : any_address();
		reg_write(slot, below(REG_CONFIG + 16) & ~3u, (uint32_t)value);
		break;
	default: /* a kick of whatever there is */
		kick(slot, q);
	}
}
