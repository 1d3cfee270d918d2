/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's ends of connections: credit, shutdown and resets as Linux has them; and lies. */
#include <string.h>

#include "vsock_flows.h"

#define BUFFER_SIZE (256u << 10) /* Linux's default */

unsigned events_seen;
bool odd_buffers;

static uint32_t next_port;

void guest_begin(void)
{
	next_port = 1000;
	events_seen = 0;
	odd_buffers = false;
}

static struct vsock_hdr header_of(struct flow *f, uint16_t op, uint32_t flags, uint32_t len)
{
	return (struct vsock_hdr){.src_cid = GUEST_CID,
				  .dst_cid = HOST_CID,
				  .src_port = f->guest_port,
				  .dst_port = f->host_port,
				  .len = len,
				  .type = f->seqpacket ? SEQPACKET : STREAM,
				  .op = op,
				  .flags = flags,
				  .buf_alloc = f->alloc,
				  .fwd_cnt = f->fwd};
}

static bool transmit(const struct vsock_hdr *hdr, const uint8_t *data, uint32_t len, uint8_t shape)
{
	static uint8_t packet[HEADER + CHUNK];

	memcpy(packet, hdr, HEADER);
	if (len)
		memcpy(packet + HEADER, data, len);
	if (give(0, QUEUE_TX, packet, HEADER + len, 0, shape) == NO_CHAIN)
		return false;
	trace("  guest: op %u %u>%u len %u flags %u alloc %u fwd %u\n", hdr->op, hdr->src_port,
	      hdr->dst_port, len, hdr->flags, hdr->buf_alloc, hdr->fwd_cnt);
	progress++;
	return true;
}

/* A packet with the flow's next len bytes; false if the queue or memory is full. */
bool guest_packet(struct flow *f, uint16_t op, uint32_t flags, uint32_t len, uint8_t shape)
{
	struct vsock_hdr hdr = header_of(f, op, flags, len);

	if (!transmit(&hdr, flow_bytes(f, true, f->tx), len, shape))
		return false;
	f->told = f->fwd;
	f->tx += len;
	return true;
}

/* Ask for a port: one that is offered, or one that is perhaps listened on. */
void guest_request(uint8_t which)
{
	struct flow *f = NULL;

	for (unsigned i = 0; which & 1 && i < FLOWS && !f; i++)
		if (flows[i].used && flows[i].guest == GUEST_NONE && flows[i].host_port)
			f = &flows[i];
	if (!f) {
		f = flow_new();
		if (!f)
			return;
		f->seqpacket = which & 2 && seqpacket_offered;
		f->host_port = 2000 + next_port;
	}
	f->guest_port = next_port++;
	f->alloc = which & 4 ? 1u + in16() : BUFFER_SIZE;
	if (guest_packet(f, OP_REQUEST, 0, 0, which >> 3))
		f->guest = GUEST_ASKING;
	else if (f->fd < 0)
		f->used = false;
}

/* As much of len bytes as there is credit for. */
void guest_send(struct flow *f, uint32_t len, bool ends, uint8_t shape)
{
	uint32_t in_flight = (uint32_t)f->tx - f->peer_fwd;
	uint32_t credit = in_flight < f->peer_alloc ? f->peer_alloc - in_flight : 0;
	uint32_t flags = f->seqpacket && ends ? EOM | (len % 3 ? 0 : EOR) : 0;

	if (f->guest != GUEST_LINKED || f->shut & SHUTDOWN_SEND || f->peer_shut & SHUTDOWN_RCV)
		return;
	/* A message of CHUNK bytes at most: there must be room for its end. */
	if (f->seqpacket)
		len = MIN(len, (ends ? CHUNK : CHUNK / 2) - (uint32_t)(f->tx - f->message));
	len = MIN(MIN(len, credit), CHUNK);
	if (!len)
		return;
	if (f->seqpacket && (f->to_host.last + 1) % MESSAGES_MAX == f->to_host.first)
		return;
	if (!guest_packet(f, OP_RW, flags, len, shape) || !flags)
		return;
	f->message = f->tx;
	message_put(&f->to_host, f->tx);
}

void guest_read(struct flow *f, uint32_t len, bool tell)
{
	uint32_t left = (uint32_t)f->rx - f->fwd;

	if (f->guest != GUEST_LINKED)
		return;
	f->fwd += MIN(len, left);
	if (tell && f->told != f->fwd)
		guest_packet(f, OP_CREDIT_UPDATE, 0, 0, 0);
}

/* Give the host at least that much credit. */
void guest_grow(struct flow *f, uint32_t alloc)
{
	uint32_t before = f->alloc;

	if (f->guest != GUEST_LINKED || before >= alloc)
		return;
	f->alloc = alloc;
	if (!guest_packet(f, OP_CREDIT_UPDATE, 0, 0, 0))
		f->alloc = before;
}

/* A message that the guest has no credit or no buffers for is the end of its connection; and a
 * socket that is closed with it in it loses what was sent through it, too. */
static void message_lost(struct flow *f)
{
	f->vague |= f->seqpacket && f->host_tx > f->rx;
}

/* What a guest says beside data. */
void guest_control(struct flow *f, uint8_t what)
{
	uint32_t flags;

	if (f->guest == GUEST_ASKED) { /* accept, or not */
		bool yes = what & 7;

		f->alloc = what & 8 ? 1u + in16() : BUFFER_SIZE;
		if (guest_packet(f, yes ? OP_RESPONSE : OP_RST, 0, 0, what >> 4))
			f->guest = yes ? GUEST_LINKED : GUEST_OVER;
		return;
	}
	if (f->guest != GUEST_LINKED && f->guest != GUEST_ASKING)
		return;
	if (what % 16 == 15) {
		message_lost(f);
		if (guest_packet(f, OP_RST, 0, 0, 0))
			f->guest = GUEST_OVER;
	} else if (f->guest == GUEST_ASKING) {
		return;
	} else if (what % 4 == 1) {
		guest_packet(f, OP_CREDIT_REQUEST, 0, 0, 0);
	} else if (what % 4 == 2 && what < 128) {
		guest_grow(f, MIN(f->alloc + what * 256u, 1u << 20));
	} else if (what % 4 == 3 && what < 128) {
		flags = f->shut | (what >> 4 & 3);
		if (flags != f->shut && guest_packet(f, OP_SHUTDOWN, flags, 0, 0))
			f->shut = flags;
	}
}

/* Buffers for packets, or for events. */
void guest_post(unsigned q, unsigned count, uint32_t size, uint8_t shape)
{
	odd_buffers |= q == QUEUE_RX && shape & 0x38;
	while (count--)
		if (give(0, q, NULL, 0, size, shape) == NO_CHAIN)
			return;
}

/* A packet with one thing wrong with it, or more. */
void guest_lie(struct flow *f)
{
	uint16_t op = (uint16_t)(1 + below(8));
	struct vsock_hdr hdr = header_of(f, op, in8() & 3, 0);
	uint32_t len = below(4) ? in8() : in16();
	uint8_t wrong = in8();

	hostile = true;
	hdr.len = len;
	if (wrong & 1)
		hdr.src_port = f->guest_port ^ in8();
	if (wrong & 2)
		hdr.dst_port = below(2) ? in32() : f->host_port ^ in8();
	if (wrong & 4)
		hdr.len = (uint32_t)any_number();
	if (wrong & 8)
		hdr.buf_alloc = (uint32_t)any_number();
	if (wrong & 16)
		hdr.fwd_cnt = (uint32_t)any_number();
	if (wrong & 32)
		hdr.type = (uint16_t)any_number();
	if (wrong & 64)
		hdr.op = (uint16_t)any_number();
	if (wrong & 128 && below(2))
		hdr.src_cid = any_number();
	else if (wrong & 128)
		hdr.dst_cid = any_number();
	transmit(&hdr, flow_bytes(f, true, f->tx), len, in8());
}

/* ---- what comes ---- */

static struct flow *flow_of(const struct vsock_hdr *hdr)
{
	for (unsigned i = 0; i < FLOWS; i++) {
		struct flow *f = &flows[i];

		if (!f->used || f->guest_port != hdr->dst_port)
			continue;
		if (hdr->op == OP_REQUEST ? f->guest == GUEST_NONE && !f->host_port
					  : f->host_port == hdr->src_port)
			return f;
	}
	return NULL;
}

static void took_data(struct flow *f, const struct vsock_hdr *hdr, const uint8_t *data)
{
	struct messages *m = &f->to_guest;

	check(f->guest == GUEST_LINKED, "data before RESPONSE");
	check(!(f->peer_shut & SHUTDOWN_SEND), "data after SHUTDOWN");
	check(hdr->len, "data of no length");
	check((uint32_t)f->rx - f->told + hdr->len <= f->alloc, "data beyond the guest's credit");
	check(f->rx + hdr->len <= f->host_tx, "data that the host did not send");
	check(!memcmp(data, flow_bytes(f, false, f->rx), hdr->len), "other data");
	f->rx += hdr->len;
	goal_met |= f->host_rx > 0;
	if (!f->seqpacket)
		return;
	check(m->first != m->last, "data of no message");
	check(f->rx <= m->ends[m->first], "data of two messages in one packet");
	check(!!(hdr->flags & EOM) == (f->rx == m->ends[m->first]), "a message's end");
	if (hdr->flags & EOM)
		m->first = (m->first + 1) % MESSAGES_MAX;
}

/* RST is for a cause: no host, or one that closed or shut down; or as the last word (§5.10.6.5). */
static void took_reset(struct flow *f)
{
	bool both = f->shut == BOTH;

	message_lost(f);
	check(f->guest != GUEST_LINKED || both || f->vague || f->fd < 0 || f->host_shut_read ||
		      f->host_shut_write,
	      "a connection was reset for nothing");
	f->guest = GUEST_OVER;
}

static void took_packet(const struct vsock_hdr *hdr, const uint8_t *data)
{
	struct flow *f = flow_of(hdr);

	trace("  host: op %u %u>%u len %u flags %u alloc %u fwd %u\n", hdr->op, hdr->src_port,
	      hdr->dst_port, hdr->len, hdr->flags, hdr->buf_alloc, hdr->fwd_cnt);
	check(hdr->src_cid == HOST_CID && hdr->dst_cid == GUEST_CID, "another CID");
	check(hdr->type == STREAM || (hdr->type == SEQPACKET && seqpacket_offered), "another type");
	check(hdr->op == OP_RW || !hdr->len, "a length without data");
	if (!f || f->vague || f->guest == GUEST_OVER)
		return; /* it crossed our RST, or it answers what came after the end */
	check(f->seqpacket == (hdr->type == SEQPACKET), "the other type");
	check(hdr->fwd_cnt - f->peer_fwd <= (uint32_t)f->tx - f->peer_fwd || hdr->op == OP_RST,
	      "it took more than it was sent");
	if (hdr->op != OP_RST) {
		check(hdr->buf_alloc, "no credit");
		f->peer_alloc = hdr->buf_alloc;
		f->peer_fwd = hdr->fwd_cnt;
	}
	switch (hdr->op) {
	case OP_REQUEST:
		f->guest = GUEST_ASKED;
		f->host_port = hdr->src_port;
		break;
	case OP_RESPONSE:
		check(f->guest == GUEST_ASKING, "RESPONSE to nothing");
		f->guest = GUEST_LINKED;
		break;
	case OP_RST:
		took_reset(f);
		break;
	case OP_SHUTDOWN:
		check(f->host_shut_read || f->host_shut_write || f->fd < 0, "SHUTDOWN for nothing");
		check(f->guest == GUEST_LINKED && hdr->flags && hdr->flags <= 3, "SHUTDOWN");
		f->peer_shut |= hdr->flags;
		break;
	case OP_RW:
		took_data(f, hdr, data);
		break;
	case OP_CREDIT_REQUEST:
		guest_packet(f, OP_CREDIT_UPDATE, 0, 0, 0);
		break;
	default:
		check(hdr->op == OP_CREDIT_UPDATE, "another operation");
	}
}

/* For collect(): a chain comes back. */
void guest_took(unsigned q, struct given *g, uint32_t len)
{
	struct vsock_hdr hdr;

	progress++;
	if (hostile)
		return;
	if (q == QUEUE_EVENT) {
		check(len == 4 && !memcmp(g->in, "\0\0\0\0", 4), "another event");
		events_seen++;
	} else if (q == QUEUE_RX) {
		check(len >= HEADER, "a packet without header");
		memcpy(&hdr, g->in, HEADER);
		check(hdr.len == len - HEADER, "a packet of another length");
		took_packet(&hdr, g->in + HEADER);
	}
}
