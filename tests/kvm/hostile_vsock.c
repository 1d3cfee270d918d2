/* What a hostile kernel says over vsock (Virtio 1.2 §5.10), and to the host behind it. */
#include "hostile.h"

#define BUFFERS	   (ARENA + 0x100000)
#define BUFFER	   0x11000u
#define BUF_ALLOC  (1u << 20)
#define HEADER	   44u
#define HOST_PORT  1024u
#define GUEST_PORT 5000u

enum { RX, TX };
enum { REQUEST = 1, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST };

struct header {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port, len;
	uint16_t type, op;
	uint32_t flags, buf_alloc, fwd_cnt;
} __attribute__((packed));

static uint32_t sent, taken; /* our credit: what we sent, what the host says that it took */
static bool answered;

/* Each RX buffer is a page and its own descriptor; each TX buffer is two pages and more. */
static uint32_t rx_buffer(unsigned i)
{
	return BUFFERS + i * 0x1000;
}

static uint32_t tx_buffer(unsigned i)
{
	return BUFFERS + 0x100000 + i * BUFFER;
}

static void start(void)
{
	device_start(VSOCK, 0);
	for (uint16_t i = 0; i < RING_SIZE; i++) {
		rings[VSOCK][RX].desc[i] = (struct desc){rx_buffer(i), 0x1000, WRITE, 0};
		ring_add(&rings[VSOCK][RX], i);
	}
	kick(VSOCK, RX);
}

/* Hear what the host said, give the buffers back. */
static void hear(void)
{
	struct ring *r = &rings[VSOCK][RX];
	bool any_heard = false;

	while (r->seen != r->used[1]) {
		uint16_t head = r->used[2 + 4 * (r->seen % RING_SIZE)];
		const volatile struct header *h = (void *)(uintptr_t)rx_buffer(head % RING_SIZE);

		if (h->op == RESPONSE)
			answered = true;
		if (h->op != RST)
			taken = h->fwd_cnt;
		r->seen++;
		ring_add(r, head);
		any_heard = true;
	}
	if (any_heard)
		kick(VSOCK, RX);
}

/* A buffer to fill: the ring's next, once the device has given it back. */
static uint32_t room(void)
{
	struct ring *r = &rings[VSOCK][TX];

	while ((uint16_t)(r->idx - r->used[1]) == RING_SIZE)
		hear();
	return tx_buffer(r->idx % RING_SIZE);
}

static void send(const struct header *h, uint32_t in_buffer)
{
	struct ring *r = &rings[VSOCK][TX];
	uint16_t i = r->idx % RING_SIZE;

	*(volatile struct header *)(uintptr_t)tx_buffer(i) = *h;
	r->desc[i] = (struct desc){tx_buffer(i), HEADER + in_buffer, 0, 0};
	ring_add(r, i);
	kick(VSOCK, TX);
}

static struct header header(uint16_t op)
{
	return (struct header){.src_cid = 3,
			       .dst_cid = 2,
			       .src_port = GUEST_PORT,
			       .dst_port = HOST_PORT,
			       .type = 1,
			       .op = op,
			       .buf_alloc = 1 << 16};
}

static void say_op(uint16_t op)
{
	struct header h = header(op);

	room();
	send(&h, 0);
}

static void connect(void)
{
	start();
	say_op(REQUEST);
	while (!answered)
		hear();
}

/* ---- frames to the host (docs/protocol.md), within our credit ---- */

enum { HELLO = 1, STARTED, STDOUT, STDERR, EXIT, FILE_BEGIN, FILE_DATA };

static void frame(uint16_t type, uint32_t length)
{
	uint32_t at = room() + HEADER;
	struct header h = header(RW);

	h.len = 8 + length;
	while (BUF_ALLOC - (sent - taken) < h.len)
		hear();
	write32(at, length);
	write32(at + 4, type);
	sent += h.len;
	send(&h, h.len);
}

static void hello(void)
{
	connect();
	write32(room() + HEADER + 8, 2); /* the protocol's version */
	write32(room() + HEADER + 12, 1);
	frame(HELLO, 24);
}

/* ---- the programs ---- */

/* Requests, data and lies for ports that nobody offers, faster than the answers are taken. */
void program_requests(uint32_t count)
{
	start();
	while (count--) {
		struct header h = header((uint16_t)below(10));

		h.src_port = (uint32_t)any();
		h.dst_port = one_in(2) ? below(HOST_PORT) : HOST_PORT + 1 + below(1 << 20);
		h.len = one_in(4) ? (uint32_t)any() : 0;
		h.flags = (uint32_t)any();
		h.buf_alloc = (uint32_t)any();
		h.fwd_cnt = (uint32_t)any();
		if (one_in(8))
			h.type = (uint16_t)any();
		if (one_in(8))
			h.dst_cid = any();
		if (one_in(8))
			h.src_cid = any();
		room();
		send(&h, one_in(4) ? below(64) : 0);
	}
	end("requests done");
}

/* Connect and go; then try again, for what there was only once. */
void program_unplug(uint32_t count)
{
	connect();
	say_op(RST);
	while (count--)
		say_op(REQUEST);
	for (;;)
		hear();
}

/* More than its credit, with room that it does not have for the answer. */
void program_liar(uint32_t count)
{
	connect();
	for (;;) {
		struct header h = header(RW);

		room();
		h.len = count;
		h.buf_alloc = (uint32_t)any();
		h.fwd_cnt = (uint32_t)any();
		send(&h, count);
	}
}

/* No protocol at all: a frame of that type, then zeros. */
void program_babble(uint32_t count)
{
	connect();
	for (;;)
		frame((uint16_t)count, 16);
}

void program_stdout(uint32_t count)
{
	hello();
	frame(STARTED, 8);
	for (;;)
		frame(STDOUT, count);
}

static void output(void)
{
	hello();
	frame(STARTED, 8);
	frame(EXIT, 104);
	frame(FILE_BEGIN, 16);
}

/* Output number 0 without an end. */
void program_file(uint32_t count)
{
	output();
	for (;;)
		frame(FILE_DATA, count);
}

/* The same, some bytes a second. */
void program_drip(uint32_t count)
{
	output();
	for (;;) {
		for (volatile uint32_t i = 0; i < 30000; i++)
			;
		frame(FILE_DATA, count);
	}
}
