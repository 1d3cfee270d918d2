/* SPDX-License-Identifier: Apache-2.0
 *
 * The split virtqueue (Virtio 1.2 §2.7), the device's side. The rings are little-endian, and so is
 * the only host we run on.
 *
 *   desc:  num x { u64 addr, u32 len, u16 flags, u16 next }
 *   avail: u16 flags, u16 idx, u16 ring[num], u16 used_event
 *   used:  u16 flags, u16 idx, { u32 id, u32 len } ring[num], u16 avail_event
 */
#include <errno.h>
#include <string.h>

#include "core.h"

#define DESC_F_NEXT	     1
#define DESC_F_WRITE	     2
#define DESC_F_INDIRECT	     4
#define AVAIL_F_NO_INTERRUPT 1

#define DESC_SIZE 16u

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

static uint16_t ring_load(const uint8_t *p)
{
	return __atomic_load_n((const uint16_t *)(const void *)p, __ATOMIC_ACQUIRE);
}

static void ring_store(uint8_t *p, uint16_t v)
{
	__atomic_store_n((uint16_t *)(void *)p, v, __ATOMIC_RELEASE);
}

static uint16_t avail_idx(const struct virtq *vq)
{
	return ring_load(vq->avail + 2);
}

/* Resolve the three rings the driver named; the sizes are §2.7's, the alignments too. */
int virtq_map(struct vm *vm, struct virtq *vq)
{
	size_t num = vq->num;

	if (num == 0 || num > VQ_SIZE || (num & (num - 1)))
		return -EINVAL;
	if (vq->desc_addr % 16 || vq->avail_addr % 2 || vq->used_addr % 4)
		return -EINVAL;
	vq->desc = vm_memory_at(vm, vq->desc_addr, num * DESC_SIZE);
	vq->avail = vm_memory_at(vm, vq->avail_addr, 6 + 2 * num);
	vq->used = vm_memory_at(vm, vq->used_addr, 6 + 8 * num);
	if (!vq->desc || !vq->avail || !vq->used)
		return -EFAULT;
	vq->last_avail = vq->used_idx = vq->signalled = 0;
	return 0;
}

static struct desc desc_load(const uint8_t *table, unsigned i)
{
	struct desc d;

	/* A copy through volatile: the compiler may not read a field again after the check. */
	const volatile uint64_t *p =
		(const volatile uint64_t *)(const void *)(table + i * DESC_SIZE);
	uint64_t words[2] = {p[0], p[1]};

	memcpy(&d, words, sizeof(d));
	return d;
}

static int chain_add(struct vm *vm, struct chain *c, const struct desc *d)
{
	unsigned n = c->n_out + c->n_in;
	void *p = vm_memory_at(vm, d->addr, d->len);

	if (n == VQ_IOV_MAX)
		return -ELOOP;
	if (!p)
		return -EFAULT;
	if (d->flags & DESC_F_WRITE)
		c->n_in++;
	else if (c->n_in)
		return -EINVAL; /* §2.7.4.2: readable ones come first */
	else
		c->n_out++;
	c->iov[n] = (struct iovec){p, d->len};
	return 0;
}

/* Walk one table of `num` descriptors from `i`; at most num steps, so that a loop ends. */
static int chain_walk(struct vm *vm, struct chain *c, const uint8_t *table, unsigned num,
		      unsigned i, bool indirect)
{
	for (unsigned steps = 0; steps < num; steps++) {
		if (i >= num)
			return -EINVAL;
		struct desc d = desc_load(table, i);
		int r;

		if (d.flags & DESC_F_INDIRECT) {
			const uint8_t *inner = vm_memory_at(vm, d.addr, d.len);
			unsigned inner_num = d.len / DESC_SIZE;

			/* §2.7.5.3.1: no nesting, no NEXT beside INDIRECT. */
			if (indirect || (d.flags & DESC_F_NEXT) || !inner || d.len % DESC_SIZE ||
			    d.addr % 8 || inner_num == 0 || inner_num > VQ_IOV_MAX)
				return -EINVAL;
			return chain_walk(vm, c, inner, inner_num, 0, true);
		}
		r = chain_add(vm, c, &d);
		if (r)
			return r;
		if (!(d.flags & DESC_F_NEXT))
			return 0;
		i = d.next;
	}
	return -ELOOP;
}

/* Take the next chain: 1 and *c filled, 0 if there is none, a negative errno if the ring is bad. */
int virtq_pop(struct vm *vm, struct virtq *vq, struct chain *c)
{
	uint16_t pending = (uint16_t)(avail_idx(vq) - vq->last_avail);
	int r;

	/* A ring can hold minutes of work, which nobody is to wait for when the machine ends. */
	if (atomic_load(&vm->stop))
		return -ECANCELED;
	if (pending == 0)
		return 0;
	if (pending > vq->num)
		return -EINVAL;
	c->head = ring_load(vq->avail + 4 + 2 * (vq->last_avail & (vq->num - 1)));
	if (c->head >= vq->num)
		return -EINVAL;
	c->n_out = c->n_in = 0;
	r = chain_walk(vm, c, vq->desc, vq->num, c->head, false);
	if (r)
		return r;
	vq->last_avail++;
	return 1;
}

/* Give back the last n chains popped: nothing was done with them. */
void virtq_unpop(struct virtq *vq, unsigned n)
{
	vq->last_avail = (uint16_t)(vq->last_avail - n);
}

/* A chain is used; the driver knows by virtq_publish(), of one or of many at once. */
void virtq_put(struct virtq *vq, uint16_t head, uint32_t len)
{
	uint32_t elem[2] = {head, len};

	memcpy(vq->used + 4 + 8 * (vq->used_idx & (vq->num - 1)), elem, sizeof(elem));
	vq->used_idx++;
}

void virtq_publish(struct virtq *vq)
{
	ring_store(vq->used + 2, vq->used_idx);
}

void virtq_push(struct virtq *vq, uint16_t head, uint32_t len)
{
	virtq_put(vq, head, len);
	virtq_publish(vq);
}

/* Is there a chain to be taken? */
bool virtq_waits(const struct virtq *vq)
{
	return avail_idx(vq) != vq->last_avail;
}

/* Ask for a kick when there are more than `more` chains, where the driver can do that; true if
 * there is one already and the queue must be served on. */
bool virtq_rearm(struct virtq *vq, uint16_t more)
{
	if (vq->event_idx) {
		ring_store(vq->used + 4 + 8 * vq->num, (uint16_t)(vq->last_avail + more));
		atomic_thread_fence(memory_order_seq_cst);
	}
	return virtq_waits(vq);
}

/* Virtio 1.2 §2.7.7: does the driver want to hear of what was pushed since it last did? */
bool virtq_wants_interrupt(struct virtq *vq)
{
	uint16_t old = vq->signalled, now = vq->used_idx;

	if (old == now)
		return false;
	vq->signalled = now;
	atomic_thread_fence(memory_order_seq_cst);
	if (vq->event_idx) {
		uint16_t event = ring_load(vq->avail + 4 + 2 * vq->num);

		return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
	}
	return !(ring_load(vq->avail) & AVAIL_F_NO_INTERRUPT);
}

size_t iov_size(const struct iovec *iov, unsigned n)
{
	size_t size = 0;

	while (n--)
		size += iov++->iov_len;
	return size;
}

/* Copy the first len bytes that iov holds to buf; returns how many there were. */
size_t iov_copy_out(const struct iovec *iov, unsigned n, void *buf, size_t len)
{
	size_t done = 0;

	for (; n && done < len; n--, iov++) {
		size_t part = MIN(iov->iov_len, len - done);

		memcpy((uint8_t *)buf + done, iov->iov_base, part);
		done += part;
	}
	return done;
}

/* Copy len bytes of buf to where iov points; returns how many fitted. */
size_t iov_copy_in(const struct iovec *iov, unsigned n, const void *buf, size_t len)
{
	size_t done = 0;

	for (; n && done < len; n--, iov++) {
		size_t part = MIN(iov->iov_len, len - done);

		memcpy(iov->iov_base, (const uint8_t *)buf + done, part);
		done += part;
	}
	return done;
}

/* dst (room for n) = bytes [skip, skip+len) of iov; returns the number of its entries. */
unsigned iov_slice(const struct iovec *iov, unsigned n, size_t skip, size_t len, struct iovec *dst)
{
	unsigned count = 0;

	for (; n && len; n--, iov++) {
		if (skip >= iov->iov_len) {
			skip -= iov->iov_len;
			continue;
		}
		size_t part = MIN(iov->iov_len - skip, len);

		dst[count++] = (struct iovec){(uint8_t *)iov->iov_base + skip, part};
		len -= part;
		skip = 0;
	}
	return count;
}
