/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-vsock: guests and hosts that connect, talk, close and reset in any order. Between an
 * honest guest and the host every byte arrives, once and in order, within the credit given; nobody
 * is reset for nothing; and in the end, when both read all there is, nothing is left on the way.
 */
#include <string.h>

#include "harness.h"
#include "vsock_flows.h"

const char *const goal = "that talk both ways";

struct flow flows[FLOWS];
bool seqpacket_offered;
uint64_t progress;

static bool may_be_hostile, restarted;
static uint8_t pattern[CHUNK + PERIOD];

/* ---- flows ---- */

static bool unneeded(const struct flow *f)
{
	return !f->used || (f->guest == GUEST_OVER && f->fd < 0);
}

struct flow *flow_new(void)
{
	for (unsigned i = 0; i < FLOWS; i++) {
		struct flow *f = &flows[i];

		if (!unneeded(f))
			continue;
		*f = (struct flow){.used = true, .fd = -1, .seed = (uint8_t)(f->seed + 7 * i + 1)};
		return f;
	}
	return NULL;
}

/* One of those there are. */
struct flow *flow_pick(uint8_t which)
{
	for (unsigned i = 0; i < FLOWS; i++) {
		struct flow *f = &flows[(which + i) % FLOWS];

		if (f->used)
			return f;
	}
	return &flows[0];
}

/* CHUNK bytes from `at` on of what that direction carries. */
const uint8_t *flow_bytes(const struct flow *f, bool to_host, uint64_t at)
{
	return pattern + (at + 31u * f->seed + to_host * 17u) % PERIOD;
}

bool message_put(struct messages *m, uint64_t end)
{
	m->ends[m->last] = end;
	m->last = (m->last + 1) % MESSAGES_MAX;
	return true;
}

/* After a reset: the guest knows no connection any more. */
void flows_forget(bool all)
{
	for (unsigned i = 0; i < FLOWS; i++) {
		struct flow *f = &flows[i];

		if (f->guest != GUEST_NONE)
			f->guest = all ? GUEST_OVER : f->guest;
		if (f->guest != GUEST_NONE || !f->host_port)
			f->vague = true;
	}
}

/* ---- an input ---- */

void target_begin(void)
{
	uint8_t options = in8();

	if (!pattern[1]) {
		for (unsigned i = 0; i < sizeof(pattern); i++)
			pattern[i] = (uint8_t)((i % PERIOD) * 167 + (i % PERIOD) / 251);
	}
	for (unsigned i = 0; i < FLOWS; i++)
		flows[i] = (struct flow){.fd = -1};
	may_be_hostile = options & 1;
	seqpacket_offered = restarted = false;
	wire(vm_add_vsock(vm, GUEST_CID, 1 << 20));
	seqpacket_offered = vm->devices[0]->features & F_SEQPACKET;
	guest_begin();
	host_begin(options & 0x80);
	if (options & 2)
		host_listen(1);
	start(0, ~0ull, options & 4 ? 256 : 1u << (options >> 4 & 7));
	if (options & 8)
		guest_post(QUEUE_RX, 16, 1024 + HEADER, 0);
}

static uint32_t length(void)
{
	switch (below(4)) {
	case 0:
		return in8();
	case 1:
		return 4096;
	default:
		return in16() + 1u;
	}
}

static void restart(void)
{
	collect(0, guest_took);
	flows_forget(true);
	restarted = true;
	start_any(0);
}

/* A guest that does nothing but send, and a host that takes it all. */
static void stream(struct flow *f)
{
	guest_send(f, CHUNK, true, 0);
	if (kick(0, QUEUE_TX))
		turn(1);
	host_read(f, CHUNK);
	collect(0, guest_took);
}

void target_op(uint8_t op)
{
	struct flow *f = flow_pick(in8());
	uint32_t len;
	unsigned count;

	switch (op % 32) {
	case 0:
	case 1:
		settle();
		break;
	case 2:
		turn(1 + below(4));
		break;
	case 3:
	case 4:
		collect(0, guest_took);
		break;
	case 5:
		kick(0, below(3));
		break;
	case 6:
	case 7:
		kick(0, QUEUE_RX);
		kick(0, QUEUE_TX);
		settle();
		collect(0, guest_took);
		break;
	case 8:
	case 9:
		len = below(2) ? 4096 : length();
		count = 1 + below(16);
		guest_post(QUEUE_RX, count, HEADER + 1 + len, in8());
		break;
	case 10:
		len = may_be_hostile ? 1 + in8() % 8 : 4;
		hostile |= len < 4;
		guest_post(QUEUE_EVENT, 1, len, in8());
		break;
	case 11:
	case 12:
	case 13:
		len = length();
		guest_send(f, len, !(op & 32), in8());
		break;
	case 14:
		for (len = in8(); len; len--) /* many at once */
			guest_send(f, 16 + len % 8, true, 0);
		break;
	case 15:
		for (count = in8() % 64; count; count--) /* so fast that nothing falls quiet */
			stream(f);
		break;
	case 16:
		len = length();
		guest_read(f, len, op & 32 || f->told == f->fwd);
		break;
	case 17:
	case 18:
		guest_control(f, in8());
		break;
	case 19:
		guest_request(in8());
		break;
	case 20:
		host_connect(in8());
		break;
	case 21:
		host_listen(in8());
		break;
	case 22:
		host_answer(op & 96, in8());
		break;
	case 23:
	case 24:
		host_write(f, length());
		break;
	case 25:
	case 26:
		host_read(f, length());
		break;
	case 27:
		host_shut(f, in8() >> 2);
		break;
	case 28:
		host_offer(in8());
		break;
	case 29:
		len = in8();
		if (len == 7)
			restart();
		else if (len == 8)
			host_reset();
		else
			devices[0].queue[len % 3].wants_interrupts = len & 8;
		break;
	default:
		if (!may_be_hostile)
			break;
		if (op & 32)
			guest_lie(f);
		else if (op & 64)
			hostile_op();
		else
			host_say_anything();
	}
}

/* ---- the end: both sides take all there is ---- */

static void round_of_all(void)
{
	const struct queue *rx = &devices[0].queue[QUEUE_RX];
	uint32_t room = 0;

	for (unsigned i = 0; i < FLOWS; i++) {
		struct flow *f = &flows[i];

		if (!f->used)
			continue;
		if (f->guest == GUEST_ASKED)
			guest_control(f, 0); /* no */
		/* First: TX may have room for one packet only. */
		guest_grow(f, 64u << 10);
		guest_read(f, UINT32_MAX, true);
		host_read(f, CHUNK);
	}
	host_answer(false, 0);
	for (unsigned i = 0; i < rx->num; i++)
		room += rx->given[i].busy ? rx->given[i].in_len - HEADER : 0;
	if (room < CHUNK + 4096) /* for any message */
		guest_post(QUEUE_RX, 20, 4096 + HEADER, 0);
	guest_post(QUEUE_EVENT, 1, 4, 0);
	for (unsigned q = 0; q < 3; q++)
		kick(0, q);
	settle();
	collect(0, guest_took);
}

static void check_flow(const struct flow *f)
{
	bool host_open = f->fd >= 0 && !f->host_shut_read && !f->host_shut_write;

	if (f->vague)
		return;
	check(f->guest != GUEST_ASKING, "a request has no answer");
	if (f->guest == GUEST_NONE && f->host_port)
		return; /* offered, and not asked for */
	check(f->guest != GUEST_NONE || !host_open, "a request that the guest did not get");
	if (f->had_fd && f->fd >= 0 && f->guest == GUEST_OVER && !f->host_shut_read)
		check(f->host_eof, "the host is not told of the end");
	if (host_open && f->had_fd && !f->wants_ok)
		check(f->host_rx == (f->seqpacket ? f->message : f->tx), "the host has not all");
	if (f->guest != GUEST_LINKED)
		return;
	check(f->shut != BOTH || f->host_shut_read, "a clean disconnect is not answered");
	if (f->fd >= 0 && f->shut & SHUTDOWN_SEND && !f->host_shut_read)
		check(f->host_eof, "the host is not told of SHUTDOWN");
	if (f->fd < 0)
		check(f->peer_shut == BOTH || (f->shut & f->peer_shut & SHUTDOWN_SEND),
		      "a host that has gone");
	else if (!(f->shut & SHUTDOWN_RCV) && !f->host_shut_read)
		check(f->rx == f->host_tx, "the guest has not all");
	if (f->fd >= 0 && f->host_shut_write && !(f->shut & SHUTDOWN_RCV))
		check(f->peer_shut & SHUTDOWN_SEND, "the guest is not told of SHUTDOWN");
}

void target_end(void)
{
	uint64_t before;
	unsigned rounds = 0, idle = 0;
	bool messages = false;

	for (unsigned q = 0; q < 3; q++)
		devices[0].queue[q].wants_interrupts = true;
	collect(0, guest_took);
	while (idle < 2 && rounds++ < (hostile ? 4 : 4000)) {
		before = progress;
		round_of_all();
		idle = progress == before ? idle + 1 : 0;
	}
	/* For a message the device waits until there are buffers enough, and with it all wait. */
	for (unsigned i = 0; i < FLOWS; i++)
		messages |= flows[i].used && flows[i].seqpacket;
	if (hostile || !devices[0].running || (messages && odd_buffers))
		return;
	check(idle == 2, "there is no end");
	if (devices[0].queue[QUEUE_EVENT].avail_idx) /* or RX buffers have taken all memory */
		check(restarted || !resets_sent || events_seen,
		      "no event of the transport's reset");
	for (unsigned i = 0; i < FLOWS; i++)
		if (flows[i].used)
			check_flow(&flows[i]);
}
