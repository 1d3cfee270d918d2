/* SPDX-License-Identifier: Apache-2.0
 *
 * The vsock device alone: this program plays the guest's driver, as Linux's does it (event indices,
 * credit, a window of 256 KiB, receive buffers of a page or, for packets of 64 KiB, that much), and
 * turns the io loop; a thread beside it reads or writes the host's socket. One core for driver and
 * device, one for the thread. Beside it memcpy() of the same bytes, and a plain socket pair between
 * two threads, which is the part of the way that is the host kernel's.
 *
 * vsock_device DIRECTION SIZE BYTES: one line of JSON.
 */
#include <err.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "virtio_vsock.h"

#define MEMORY	    (64u << 20)
#define NUM	    256u
#define WINDOW	    (256u << 10) /* Linux's VIRTIO_VSOCK_DEFAULT_BUFFER_SIZE */
#define PORT	    1024u
#define GUEST_PORT  5000u
#define CID	    3
#define FLAGS_NEXT  1
#define FLAGS_WRITE 2

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct ring {
	struct desc *desc;
	uint16_t *avail, *used; /* avail: flags, idx, ring, used_event; used: flags, idx, ... */
	uint16_t idx, seen;
	int kick;
	uint32_t stride, at; /* of its buffers */
	uint64_t kicks;
};

static uint8_t *memory;
static struct vm *vm;
static struct ring rx, tx, event;
static int irq;
static uint32_t told, sent, forwarded, alloc, received;
static uint64_t got, packets, interrupts;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void reg(uint32_t offset, uint32_t value)
{
	vm_mmio(vm, MMIO_BASE + offset, (uint8_t *)&value, 4, true);
}

static void add_ring(struct ring *r, unsigned index, uint32_t at, int kick)
{
	uint32_t desc = at, avail = at + 0x1000, used = at + 0x2000;

	*r = (struct ring){(void *)(memory + desc),
			   (void *)(memory + avail),
			   (void *)(memory + used),
			   0,
			   0,
			   kick,
			   0,
			   0,
			   0};
	reg(0x30, index);
	reg(0x38, NUM);
	reg(0x80, desc);
	reg(0x90, avail);
	reg(0xa0, used);
	reg(0x44, 1);
}

/* Make the chain that begins at this descriptor available, as virtqueue_kick() does. */
static void offer(struct ring *r, uint16_t head)
{
	r->avail[2 + r->idx % NUM] = head;
	__atomic_store_n(&r->avail[1], ++r->idx, __ATOMIC_RELEASE);
}

static void kick(struct ring *r, uint16_t before)
{
	uint16_t wanted;

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	wanted = __atomic_load_n(&r->used[2 + 4 * NUM], __ATOMIC_ACQUIRE);
	if ((uint16_t)(r->idx - wanted - 1) >= (uint16_t)(r->idx - before))
		return;
	r->kicks++;
	eventfd_write(r->kick, 1);
}

static struct vsock_hdr *buffer(const struct ring *r, unsigned i)
{
	return (void *)(memory + r->at + (size_t)i * r->stride);
}

/* One packet; there is room for one in every two descriptors, the header's and the data's. */
static void say(uint16_t op, uint32_t len)
{
	unsigned i = tx.idx % (NUM / 2);
	uint16_t before = tx.idx;
	struct vsock_hdr *h = buffer(&tx, i);

	*h = (struct vsock_hdr){.src_cid = CID,
				.dst_cid = 2,
				.src_port = GUEST_PORT,
				.dst_port = PORT,
				.len = len,
				.type = 1,
				.op = op,
				.buf_alloc = WINDOW,
				.fwd_cnt = told = received};
	tx.desc[2 * i] = (struct desc){tx.at + i * tx.stride, sizeof(*h), len ? FLAGS_NEXT : 0,
				       (uint16_t)(2 * i + 1)};
	tx.desc[2 * i + 1] = (struct desc){tx.at + i * tx.stride + sizeof(*h), len, 0, 0};
	offer(&tx, (uint16_t)(2 * i));
	kick(&tx, before);
}

static bool tx_room(void)
{
	tx.seen = __atomic_load_n(&tx.used[1], __ATOMIC_ACQUIRE);
	tx.avail[2 + NUM] = tx.seen;
	return (uint16_t)(tx.idx - tx.seen) < NUM / 2;
}

/* Take what came, give the buffers back when half are gone, tell of credit as Linux does. */
static void hear(void)
{
	while (rx.seen != __atomic_load_n(&rx.used[1], __ATOMIC_ACQUIRE)) {
		uint16_t head = rx.used[2 + 4 * (rx.seen % NUM)];
		const struct vsock_hdr *h = buffer(&rx, head);

		rx.seen++;
		forwarded = h->fwd_cnt;
		alloc = h->buf_alloc;
		if (h->op == OP_RST)
			errx(1, "reset");
		if (h->op != OP_RW)
			continue;
		packets++;
		got += h->len;
		received += h->len;
	}
	rx.avail[2 + NUM] = rx.seen;
	if ((uint16_t)(rx.idx - rx.seen) < NUM / 2) {
		uint16_t before = rx.idx;

		while ((uint16_t)(rx.idx - rx.seen) < NUM)
			offer(&rx, rx.idx % NUM);
		kick(&rx, before);
	}
	if (WINDOW - (received - told) < 65536)
		say(OP_CREDIT_UPDATE, 0);
}

static void turn(int timeout)
{
	uint64_t count;

	vm_poll(vm, timeout);
	if (read(irq, &count, sizeof(count)) == sizeof(count))
		interrupts += count;
	hear();
}

static void start(uint32_t size, int host)
{
	int kicks[3] = {eventfd(0, EFD_NONBLOCK), eventfd(0, EFD_NONBLOCK),
			eventfd(0, EFD_NONBLOCK)};
	uint32_t page = size > 4096 - sizeof(struct vsock_hdr) ? size + 64 : 4096;

	vm = vm_new();
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	irq = eventfd(0, EFD_NONBLOCK);
	if (!vm || memory == MAP_FAILED || vm_add_memory(vm, 0, MEMORY, memory) ||
	    vm_add_vsock(vm, CID, 1 << 20) || vm_wire_device(vm, 0, irq, kicks) ||
	    vm_offer_port(vm, 0, PORT, host))
		errx(1, "no device");
	reg(0x70, 3);
	reg(0x24, 0);
	reg(0x20, 1u << 29 | 1u << 28);
	reg(0x24, 1);
	reg(0x20, 1);
	reg(0x70, 11);
	add_ring(&rx, 0, 0x10000, kicks[0]);
	add_ring(&tx, 1, 0x20000, kicks[1]);
	add_ring(&event, 2, 0x30000, kicks[2]);
	rx.at = 0x100000;
	rx.stride = page;
	tx.at = rx.at + NUM * rx.stride;
	tx.stride = size + 64;
	reg(0x70, 15);
	for (unsigned i = 0; i < NUM; i++)
		rx.desc[i] = (struct desc){rx.at + i * rx.stride, rx.stride, FLAGS_WRITE, 0};
	hear();
	say(OP_REQUEST, 0);
	while (!alloc)
		turn(0);
}

/* ---- the host's side ---- */

struct host {
	int fd;
	uint32_t size;
	uint64_t bytes;
};

static atomic_bool read_all;

static void *reader(void *arg)
{
	struct host *h = arg;
	uint8_t *room = malloc(1 << 18);
	uint64_t done = 0;

	while (done < h->bytes) {
		ssize_t n = read(h->fd, room, 1 << 18);

		if (n <= 0)
			errx(1, "the device hung up");
		done += (uint64_t)n;
	}
	free(room);
	read_all = true;
	return NULL;
}

static void *writer(void *arg)
{
	struct host *h = arg;
	uint8_t *data = calloc(1, h->size);

	for (uint64_t done = 0; done < h->bytes; done += h->size)
		if (write(h->fd, data, h->size) != (ssize_t)h->size)
			errx(1, "the device hung up");
	free(data);
	return NULL;
}

static void to_host(uint32_t size, uint64_t bytes)
{
	uint64_t done = 0;

	while (done < bytes) {
		uint32_t window = MIN(alloc, WINDOW);

		while (done < bytes && tx_room() && window - (sent - forwarded) >= size) {
			say(OP_RW, size);
			sent += size;
			done += size;
			packets++;
		}
		/* The guest goes on until it cannot: on one core nobody else would run meanwhile.
		 */
		turn(window - (sent - forwarded) >= size && tx_room() ? 0 : -1);
	}
	while (!read_all)
		turn(1);
}

static void to_guest(uint64_t bytes)
{
	while (got < bytes)
		turn(-1);
}

static double copy(uint32_t size, uint64_t bytes)
{
	uint8_t *from = memory, *to = mmap(NULL, NUM * size, PROT_READ | PROT_WRITE,
					   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	double began = now();

	for (uint64_t done = 0, i = 0; done < bytes; done += size, i++) {
		memcpy(to + i % NUM * size, from + i % NUM * size, size);
		__asm__ volatile("" ::: "memory");
	}
	return (double)bytes / (now() - began);
}

static double plain(uint32_t size, uint64_t bytes)
{
	struct host in, out;
	pthread_t thread;
	double began;
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds))
		err(1, "socketpair");
	in = (struct host){fds[0], size, bytes};
	out = (struct host){fds[1], size, bytes};
	began = now();
	pthread_create(&thread, NULL, reader, &in);
	writer(&out);
	pthread_join(thread, NULL);
	return (double)bytes / (now() - began);
}

int main(int argc, char **argv)
{
	bool up = argc == 4 && !strcmp(argv[1], "to-host");
	uint32_t size = argc == 4 ? (uint32_t)atoi(argv[2]) : 0;
	uint64_t bytes = size ? strtoull(argv[3], NULL, 10) / size * size : 0;
	struct host host = {.size = size, .bytes = bytes};
	double seconds;
	pthread_t thread;
	int fds[2];

	if (!bytes || size > 65536 || (!up && strcmp(argv[1], "to-guest")))
		errx(2, "usage: vsock_device to-host|to-guest SIZE BYTES");
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds))
		err(1, "socketpair");
	host.fd = fds[0];
	start(size, fds[1]);
	packets = got = interrupts = rx.kicks = tx.kicks = 0;
	seconds = now();
	pthread_create(&thread, NULL, up ? reader : writer, &host);
	if (up)
		to_host(size, bytes);
	else
		to_guest(bytes);
	pthread_join(thread, NULL);
	seconds = now() - seconds;
	printf("{\"direction\": \"%s\", \"size\": %u, \"bytes\": %llu, \"seconds\": %.4f, "
	       "\"bytes_per_second\": %.0f, \"packets_per_second\": %.0f, "
	       "\"kicks_per_mib\": %.2f, \"interrupts_per_mib\": %.2f, "
	       "\"memcpy_bytes_per_second\": %.0f, \"socket_bytes_per_second\": %.0f}\n",
	       argv[1], size, (unsigned long long)bytes, seconds, (double)bytes / seconds,
	       (double)packets / seconds, (double)(rx.kicks + tx.kicks) * (1 << 20) / (double)bytes,
	       (double)interrupts * (1 << 20) / (double)bytes, copy(size, bytes),
	       plain(size, bytes));
	return 0;
}
