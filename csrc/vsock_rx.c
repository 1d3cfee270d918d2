/* SPDX-License-Identifier: Apache-2.0
 *
 * vsock's RX queue: what goes to the guest. Connections with something to say stand in line for its
 * buffers, and one call fills many of them.
 */
#include <errno.h>
#include <string.h>

#include "virtio_vsock.h"

void vsock_line_up(struct conn *c)
{
	struct vsock *v = c->vsock;

	if (c->in_line)
		return;
	c->in_line = true;
	c->next = NULL;
	c->previous = v->ready_last;
	*(v->ready_last ? &v->ready_last->next : &v->ready_first) = c;
	v->ready_last = c;
}

void vsock_leave_line(struct conn *c)
{
	struct vsock *v = c->vsock;

	if (!c->in_line)
		return;
	*(c->previous ? &c->previous->next : &v->ready_first) = c->next;
	*(c->next ? &c->next->previous : &v->ready_last) = c->previous;
	c->in_line = false;
}

/* The next receive buffer: 1, 0 if there is none, a negative errno if it is none. */
static int vsock_pop_rx(struct vsock *v, struct chain *ch)
{
	int r = virtq_pop(v->dev.vm, &v->dev.vq[QUEUE_RX], ch);

	if (r > 0 && (ch->n_out || iov_size(ch->iov, ch->n_in) <= sizeof(struct vsock_hdr)))
		r = -EINVAL;
	return r;
}

/* Collect buffers for up to `want` bytes of data, and if that must be `all` see to it that we hear
 * of more; `ch` is the first. A header that is not in one piece, which no driver we know of makes,
 * has its buffer be the only one. */
static int vsock_scatter(struct vsock *v, struct chain *ch, uint32_t want, bool all)
{
	const size_t header = sizeof(struct vsock_hdr);
	struct vsock_scatter *s = &v->scatter;
	int r = 1;

	s->n = s->n_iov = s->len = 0;
	s->full = false;
	while (r > 0) {
		bool whole = ch->iov[0].iov_len >= header;
		uint32_t room = (uint32_t)MIN(iov_size(ch->iov, ch->n_in) - header, want - s->len);

		s->full = !whole;
		if (!whole && s->n) {
			virtq_unpop(&v->dev.vq[QUEUE_RX], 1);
			break;
		}
		s->buffers[s->n].hdr = whole ? ch->iov[0].iov_base : NULL;
		s->buffers[s->n].head = ch->head;
		s->buffers[s->n++].room = room;
		s->n_iov += iov_slice(ch->iov, ch->n_in, header, room, s->iov + s->n_iov);
		s->len += room;
		if (!whole || s->len == want || s->n == SCATTER_MAX || s->n_iov > SCATTER_MAX)
			break;
		do
			r = vsock_pop_rx(v, ch);
		while (r == 0 && all && virtq_rearm(&v->dev.vq[QUEUE_RX], 0));
	}
	return r < 0 ? r : 1;
}

/* Pass on what the host has sent, up to `want` bytes, a message as a whole; `ch` is the first
 * buffer for it. A packet's worth of a stream, then the next in line: nobody waits long for a busy
 * one. */
static int vsock_fill(struct vsock *v, struct conn *c, struct chain *ch, uint32_t want)
{
	struct virtq *vq = &v->dev.vq[QUEUE_RX];
	struct vsock_scatter *s = &v->scatter;
	bool message = c->type == TYPE_SEQPACKET;
	int r = vsock_scatter(v, ch, want, message);
	uint32_t got = 0;
	unsigned i;

	if (r > 0 && message && s->len < want) {
		/* There will be more buffers, unless these are all that a ring can hold. */
		if (s->full || s->n == vq->num || s->n_iov > SCATTER_MAX)
			conn_reset(c);
		else
			r = 0;
	} else if (r > 0) {
		got = conn_fill(c, s->iov, s->n_iov, s->len);
	}
	for (i = 0; i < s->n && got; i++) {
		struct vsock_hdr hdr = conn_header(c, OP_RW);

		hdr.len = MIN(got, s->buffers[i].room);
		got -= hdr.len;
		hdr.flags = message && !got ? SEQ_EOM : 0;
		if (s->buffers[i].hdr)
			memcpy(s->buffers[i].hdr, &hdr, sizeof(hdr));
		else
			iov_copy_in(ch->iov, ch->n_in, &hdr, sizeof(hdr));
		virtq_put(vq, s->buffers[i].head, (uint32_t)sizeof(hdr) + hdr.len);
	}
	virtq_unpop(vq, s->n - i);
	virtq_publish(vq);
	if (i)
		v->streamed = 0;
	return r;
}

static void vsock_put(struct vsock *v, struct chain *ch, const struct vsock_hdr *hdr)
{
	iov_copy_in(ch->iov, ch->n_in, hdr, sizeof(*hdr));
	virtq_push(&v->dev.vq[QUEUE_RX], ch->head, sizeof(*hdr));
}

/* Say what the first in line has to say. */
static int vsock_speak(struct vsock *v, struct chain *ch)
{
	struct conn *c = v->ready_first;
	struct vsock_hdr hdr;
	uint32_t want;
	int r = 1;

	if (v->n_resets) {
		v->n_resets--;
		hdr = (struct vsock_hdr){.src_cid = HOST_CID,
					 .dst_cid = v->guest_cid,
					 .src_port = v->resets[v->n_resets].host_port,
					 .dst_port = v->resets[v->n_resets].guest_port,
					 .type = v->resets[v->n_resets].type,
					 .op = OP_RST};
		vsock_put(v, ch, &hdr);
		return 1;
	}
	if (conn_next(c, &hdr))
		vsock_put(v, ch, &hdr);
	else if ((want = conn_wants(c)) > 0)
		r = vsock_fill(v, c, ch, want);
	else
		virtq_unpop(&v->dev.vq[QUEUE_RX], 1);
	if (r > 0) { /* or it waits for more buffers, the first in line still */
		vsock_leave_line(c);
		if (conn_has_more(c))
			vsock_line_up(c);
	}
	return r;
}

void vsock_serve_rx(struct vsock *v)
{
	struct virtq *vq = &v->dev.vq[QUEUE_RX];
	uint16_t before = vq->used_idx;
	struct chain ch;
	int r = 0;

	if (!vsock_may_serve(v, QUEUE_RX))
		return;
	while (v->n_resets || v->ready_first) {
		r = vsock_pop_rx(v, &ch);
		if (r == 0 && virtq_rearm(vq, 0))
			continue;
		if (r > 0)
			r = vsock_speak(v, &ch);
		if (r <= 0)
			break;
	}
	v->rx_short = v->ready_first && (v->rx_short || vq->used_idx != before);
	if (r < 0)
		virtio_break(&v->dev);
	else if (virtio_notify(&v->dev, vq))
		v->dev.vq[QUEUE_TX].signalled = v->dev.vq[QUEUE_TX].used_idx;
}
