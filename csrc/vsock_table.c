/* SPDX-License-Identifier: Apache-2.0
 *
 * The slots of vsock's connections, found by their two ports. Slots and the buffers that go with
 * them are address space that is reserved once: pages come as they are touched, and go at a
 * connection's end. So a run that uses few pays for few, and none ever waits for an allocation.
 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "virtio_vsock.h"

#define INDEX_BITS 12

_Static_assert(1 << INDEX_BITS == MAX_CONNS, "an id's low bits are the slot");

enum { LARGE, SMALL };

/* Where the small buffers begin, behind the large ones. */
static size_t small_buffers(const struct vsock *v)
{
	return (size_t)LARGE_CONNS * v->large_buffer;
}

static size_t all_buffers(const struct vsock *v)
{
	return small_buffers(v) + (size_t)(MAX_CONNS - LARGE_CONNS) * SMALL_BUFFER;
}

static void *reserve(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int table_init(struct vsock *v, uint32_t buffer)
{
	if (buffer < SMALL_BUFFER || buffer > MAX_BUFFER || buffer % 4096)
		return -EINVAL;
	v->large_buffer = buffer;
	v->conns = reserve(MAX_CONNS * sizeof(*v->conns));
	v->buffers = reserve(all_buffers(v));
	if (!v->conns || !v->buffers) {
		table_free(v);
		return -ENOMEM;
	}
	v->fresh[SMALL] = LARGE_CONNS;
	/* A guest that chose ports of the same hash would only be slow, but why let it. */
	if (getrandom(&v->hash_key, sizeof(v->hash_key), 0) != sizeof(v->hash_key))
		v->hash_key = 0;
	v->hash_key |= 1;
	return 0;
}

void table_free(struct vsock *v)
{
	if (v->conns)
		munmap(v->conns, MAX_CONNS * sizeof(*v->conns));
	if (v->buffers)
		munmap(v->buffers, all_buffers(v));
}

static uint32_t index_of(const struct conn *c)
{
	return (uint32_t)(c - c->vsock->conns);
}

/* A slot, or NULL if all are in use; one with a large buffer while there is one. */
struct conn *table_new(struct vsock *v)
{
	static const uint32_t end[] = {LARGE_CONNS, MAX_CONNS};

	for (int kind = LARGE; kind <= SMALL; kind++) {
		struct conn *c = v->unused[kind];

		if (c)
			v->unused[kind] = c->next;
		else if (v->fresh[kind] < end[kind])
			c = &v->conns[v->fresh[kind]++];
		else
			continue;
		*c = (struct conn){.ev = {.fd = -1},
				   .vsock = v,
				   .generation = c->generation,
				   .size = kind == LARGE ? v->large_buffer : SMALL_BUFFER};
		return c;
	}
	return NULL;
}

void table_release(struct conn *c)
{
	int kind = index_of(c) < LARGE_CONNS ? LARGE : SMALL;

	table_unname(c);
	if (c->held_any)
		madvise(table_buffer(c), c->size, MADV_DONTNEED);
	c->held_any = false;
	c->state = CONN_FREE;
	c->generation++;
	c->next = c->vsock->unused[kind];
	c->vsock->unused[kind] = c;
}

/* The next slot after that one (NULL: the first) that is in use. */
struct conn *table_used(struct vsock *v, struct conn *after)
{
	struct conn *c = after ? after + 1 : v->conns;

	for (; c < v->conns + MAX_CONNS; c++) {
		uint32_t i = (uint32_t)(c - v->conns);

		if (i >= v->fresh[LARGE] && i < LARGE_CONNS)
			c = v->conns + LARGE_CONNS;
		if ((uint32_t)(c - v->conns) >= v->fresh[SMALL])
			break;
		if (c->state != CONN_FREE)
			return c;
	}
	return NULL;
}

static struct conn **bucket(struct vsock *v, uint32_t host_port, uint32_t guest_port)
{
	uint64_t ports = (uint64_t)host_port << 32 | guest_port;

	return &v->hash[(ports * v->hash_key) >> (64 - HASH_BITS)];
}

struct conn *table_find(struct vsock *v, uint32_t host_port, uint32_t guest_port)
{
	struct conn *c = *bucket(v, host_port, guest_port);

	while (c && (c->host_port != host_port || c->guest_port != guest_port))
		c = c->next_hash;
	return c;
}

/* From now on table_find() finds it. */
void table_name(struct conn *c, uint32_t host_port, uint32_t guest_port)
{
	struct conn **at = bucket(c->vsock, host_port, guest_port);

	c->host_port = host_port;
	c->guest_port = guest_port;
	c->named = true;
	c->next_hash = *at;
	*at = c;
}

void table_unname(struct conn *c)
{
	struct conn **at = bucket(c->vsock, c->host_port, c->guest_port);

	if (!c->named)
		return;
	while (*at != c)
		at = &(*at)->next_hash;
	*at = c->next_hash;
	c->named = false;
}

/* What the caller knows it by: a slot's next connection has another one. */
uint32_t table_id(const struct conn *c)
{
	return c->generation << INDEX_BITS | index_of(c);
}

/* The one that the caller means, or NULL. */
struct conn *table_at(struct vsock *v, uint32_t id)
{
	struct conn *c = &v->conns[id & (MAX_CONNS - 1)];

	return c->state != CONN_FREE && table_id(c) == id ? c : NULL;
}

/* Room for `size` bytes that the host has not taken yet. */
uint8_t *table_buffer(const struct conn *c)
{
	const struct vsock *v = c->vsock;
	size_t i = index_of(c);

	if (i < LARGE_CONNS)
		return v->buffers + i * v->large_buffer;
	return v->buffers + small_buffers(v) + (i - LARGE_CONNS) * SMALL_BUFFER;
}
