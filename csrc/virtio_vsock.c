/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-vsock (Virtio 1.2 §5.10): its queues, and which connection a packet is for.
 *
 * Connections with something to say stand in line for the RX queue. Replies that belong to no
 * connection (RST) wait in a short line of their own; while that is full the TX queue is not
 * served, so nothing a guest does makes us hold more than a bounded amount.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "virtio_vsock.h"

#define VIRTIO_ID_VSOCK 19
#define WINDOW		(256u << 10) /* what Linux keeps on the way: its own buffer's size */
#define SOON_MS		1	     /* a guest may wait for what was not kicked for */
#define LATE_MS		20	     /* it waits for no buffer, it only has the use of it */
#define STREAM		(1u << 20)   /* bytes without a word from the host are one */

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

/* There is always room: see vsock_serve_tx(). */
static void vsock_refuse(struct vsock *v, const struct vsock_hdr *hdr)
{
	v->resets[v->n_resets].host_port = hdr->dst_port;
	v->resets[v->n_resets].guest_port = hdr->src_port;
	v->resets[v->n_resets++].type = hdr->type == TYPE_SEQPACKET ? TYPE_SEQPACKET : TYPE_STREAM;
}

static bool vsock_may_serve(const struct vsock *v, unsigned q)
{
	return virtio_running(&v->dev) && v->dev.vq[q].ready;
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
	while (r > 0) {
		bool whole = ch->iov[0].iov_len >= header;
		uint32_t room = (uint32_t)MIN(iov_size(ch->iov, ch->n_in) - header, want - s->len);

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
		if (s->n == vq->num || s->n_iov > SCATTER_MAX)
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

static void vsock_serve_rx(struct vsock *v)
{
	struct virtq *vq = &v->dev.vq[QUEUE_RX];
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
	if (r < 0)
		virtio_break(&v->dev);
	else if (virtio_notify(&v->dev, vq))
		v->dev.vq[QUEUE_TX].signalled = v->dev.vq[QUEUE_TX].used_idx;
}

/* Send what was gathered of this connection. The driver may have all buffers back. */
void vsock_flush(struct conn *c)
{
	struct vsock_gather *g = &c->vsock->gather;

	if (g->conn != c)
		return;
	g->conn = NULL;
	conn_take(c, g->iov, g->n, g->len);
	virtq_publish(&c->vsock->dev.vq[QUEUE_TX]);
}

void vsock_gather(struct conn *c, const struct iovec *iov, unsigned n, uint32_t len)
{
	struct vsock *v = c->vsock;
	struct vsock_gather *g = &v->gather;

	if (g->conn && (g->conn != c || g->n + n > GATHER_IOV || g->len >= GATHER_BYTES))
		vsock_flush(g->conn);
	if (c->state != CONN_LINKED)
		return; /* that was the end of it */
	if (!g->conn) {
		g->conn = c;
		g->n = g->len = 0;
	}
	memcpy(g->iov + g->n, iov, n * sizeof(*iov));
	g->n += n;
	g->len += len;
	v->streamed += len;
}

/* The guest wants a connection that there is not yet. */
static void vsock_request(struct vsock *v, const struct vsock_hdr *hdr)
{
	struct conn *c = table_find(v, hdr->dst_port, PORT_ANY);

	if (c && hdr->type == TYPE_STREAM) { /* an offer */
		table_unname(c);
		conn_asked(c, hdr);
		conn_accept(c);
		return;
	}
	c = switch_listens(v, hdr->dst_port) ? table_new(v) : NULL;
	if (c) {
		conn_asked(c, hdr);
		if (switch_ask(v, c))
			return;
		conn_free(c);
	}
	vsock_refuse(v, hdr);
}

static bool vsock_has_type(const struct vsock *v, uint16_t type)
{
	return type == TYPE_STREAM ||
	       (type == TYPE_SEQPACKET && v->dev.driver_features & VIRTIO_VSOCK_F_SEQPACKET);
}

static void vsock_packet(struct vsock *v, struct chain *ch)
{
	struct vsock_hdr hdr;
	struct iovec iov[VQ_IOV_MAX];
	struct conn *c;
	unsigned n;
	bool wrong;

	if (iov_copy_out(ch->iov, ch->n_out, &hdr, sizeof(hdr)) != sizeof(hdr))
		return;
	if (hdr.src_cid != v->guest_cid || hdr.dst_cid != HOST_CID)
		return; /* §5.10.6.4.1 leaves us nobody to answer */
	/* That port is nobody's; here it names offers. */
	c = hdr.src_port == PORT_ANY ? NULL : table_find(v, hdr.dst_port, hdr.src_port);
	n = iov_slice(ch->iov, ch->n_out, sizeof(hdr), hdr.len, iov);
	wrong = hdr.type != (c ? c->type : hdr.type) || !vsock_has_type(v, hdr.type) ||
		iov_size(iov, n) != hdr.len || hdr.src_port == PORT_ANY;
	if (c && wrong && hdr.op != OP_RST)
		conn_reset(c);
	else if (c)
		conn_packet(c, &hdr, iov, n);
	else if (hdr.op == OP_REQUEST && !wrong)
		vsock_request(v, &hdr);
	else if (hdr.op != OP_RST)
		vsock_refuse(v, &hdr);
}

/* How many packets more than one to wait for. While the guest does nothing but send, it is kicks
 * that cost most: one for each half of its window is enough. Should it stop short of that, the loop
 * looks after a moment (vsock_quiet()). */
static uint16_t vsock_put_off(const struct vsock *v, unsigned packets, uint32_t bytes)
{
	if (v->streamed < STREAM || !bytes)
		return 0;
	return (uint16_t)MIN(v->dev.vq[QUEUE_TX].num / 4, WINDOW / 2 / (bytes / packets + 1));
}

/* That a used buffer of this queue is used the driver hears with the next interrupt for RX, when
 * many are, or after a moment: it waits for none of them but for all. */
static void vsock_serve_tx(struct vsock *v)
{
	struct virtq *vq = &v->dev.vq[QUEUE_TX];
	uint32_t before = v->streamed;
	unsigned packets = 0;
	struct chain ch;
	int r = 0;

	do {
		/* A packet makes at most one reset: with the line full, wait for RX to empty it. */
		while (v->n_resets < MAX_RESETS && (r = virtq_pop(v->dev.vm, vq, &ch)) > 0) {
			vsock_packet(v, &ch);
			virtq_put(vq, ch.head, 0);
			packets++;
		}
		if (v->gather.conn)
			vsock_flush(v->gather.conn);
		virtq_publish(vq);
		v->put_off = vsock_put_off(v, packets, v->streamed - before);
	} while (r == 0 && v->n_resets < MAX_RESETS && virtq_rearm(vq, v->put_off));
	v->tx_waits = v->n_resets == MAX_RESETS;
	if (r < 0)
		virtio_break(&v->dev);
	else if ((uint16_t)(vq->used_idx - vq->signalled) >= vq->num / 4)
		virtio_notify(&v->dev, vq);
}

/* The driver has said nothing for a moment: it may be waiting for us. */
static void vsock_quiet(struct virtio_dev *dev)
{
	struct vsock *v = (struct vsock *)dev;

	if (!vsock_may_serve(v, QUEUE_TX))
		return;
	v->streamed = 0;
	vsock_serve_tx(v);
	virtio_notify(dev, &dev->vq[QUEUE_TX]);
	vsock_run(v);
}

/* Tell the driver that its connections are gone, once there is a buffer to tell it in. */
static void vsock_serve_event(struct vsock *v)
{
	static const uint32_t transport_reset; /* VIRTIO_VSOCK_EVENT_TRANSPORT_RESET is 0 */
	struct virtq *vq = &v->dev.vq[QUEUE_EVENT];
	struct chain ch;
	int r = 0;

	while (v->event_waits && vsock_may_serve(v, QUEUE_EVENT)) {
		r = virtq_pop(v->dev.vm, vq, &ch);
		if (r == 0 && virtq_rearm(vq, 0))
			continue;
		if (r > 0 && (ch.n_out || iov_size(ch.iov, ch.n_in) < sizeof(transport_reset)))
			r = -EINVAL;
		if (r <= 0)
			break;
		iov_copy_in(ch.iov, ch.n_in, &transport_reset, sizeof(transport_reset));
		virtq_push(vq, ch.head, sizeof(transport_reset));
		virtio_notify(&v->dev, vq);
		v->event_waits = false;
	}
	if (r < 0)
		virtio_break(&v->dev);
}

/* Have vsock_quiet() called after a moment if something was put off. */
static void vsock_linger(struct vsock *v)
{
	const struct virtq *tx = &v->dev.vq[QUEUE_TX];
	bool untold = tx->used_idx != tx->signalled;

	v->dev.vm->lingers = v->put_off || untold ? &v->dev : NULL;
	v->dev.vm->linger_ms = v->put_off ? SOON_MS : LATE_MS;
}

/* Serve RX, and TX if it waited for that, until neither can go on. */
void vsock_run(struct vsock *v)
{
	vsock_serve_event(v);
	vsock_serve_rx(v);
	while (v->tx_waits && v->n_resets < MAX_RESETS && vsock_may_serve(v, QUEUE_TX)) {
		vsock_serve_tx(v);
		vsock_serve_rx(v);
	}
	vsock_linger(v);
}

static void vsock_serve(struct virtio_dev *dev, unsigned q)
{
	struct vsock *v = (struct vsock *)dev;

	if (q == QUEUE_TX)
		vsock_serve_tx(v);
	vsock_run(v);
}

/* Forget all that the driver knows of, not what it has yet to hear of. */
static void vsock_forget(struct vsock *v)
{
	for (struct conn *c = NULL; (c = table_used(v, c));)
		if (c->state != CONN_OFFERED &&
		    !(c->state == CONN_REQUESTED && c->say & SAY_REQUEST))
			conn_free(c);
	v->n_resets = 0;
}

void vsock_transport_reset(struct vsock *v)
{
	vsock_forget(v);
	v->event_waits = virtio_running(&v->dev);
}

static void vsock_reset(struct virtio_dev *dev)
{
	struct vsock *v = (struct vsock *)dev;

	vsock_forget(v);
	v->tx_waits = v->event_waits = false;
	v->put_off = 0;
}

static void vsock_free(struct virtio_dev *dev)
{
	struct vsock *v = (struct vsock *)dev;

	for (struct conn *c = NULL; (c = table_used(v, c));)
		conn_free(c);
	if (v->channel.fd >= 0)
		close(v->channel.fd);
	table_free(v);
	free(v);
}

static const struct virtio_ops vsock_ops = {
	.id = VIRTIO_ID_VSOCK,
	.n_queues = 3,
	.serve = vsock_serve,
	.quiet = vsock_quiet,
	.reset = vsock_reset,
	.free = vsock_free,
};

int vm_add_vsock(struct vm *vm, uint64_t guest_cid)
{
	struct vsock *v = calloc(1, sizeof(*v));
	int slot;

	if (!v)
		return -ENOMEM;
	v->guest_cid = guest_cid;
	v->channel.fd = -1;
	slot = table_init(v);
	if (slot == 0)
		slot = virtio_register(vm, &v->dev, &vsock_ops,
				       VIRTIO_VSOCK_F_STREAM | VIRTIO_VSOCK_F_SEQPACKET,
				       &v->guest_cid, sizeof(v->guest_cid));
	if (slot < 0) {
		table_free(v);
		free(v);
	}
	return slot;
}

struct vsock *vsock_in(struct vm *vm, int slot)
{
	if (slot < 0 || (unsigned)slot >= vm->n_devices || vm->devices[slot]->ops != &vsock_ops)
		return NULL;
	return (struct vsock *)vm->devices[slot];
}

int vm_offer_port(struct vm *vm, int slot, uint32_t port, int fd)
{
	struct vsock *v = vsock_in(vm, slot);
	struct conn *c = v ? table_new(v) : NULL;
	int r;

	if (!c)
		return v ? -ENOSPC : -ENODEV;
	r = conn_attach(c, fd);
	if (r) {
		table_release(c);
		return r;
	}
	table_name(c, port, PORT_ANY);
	c->state = CONN_OFFERED;
	return 0;
}
