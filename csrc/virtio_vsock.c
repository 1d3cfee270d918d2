/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-vsock (Virtio 1.2 §5.10): the device, what the guest sends, and which connection it is
 * for.
 *
 * Replies that belong to no connection (RST) wait in a short line; while that is full the TX queue
 * is not served, so nothing a guest does makes us hold more than a bounded amount.
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
#define STREAM		WINDOW	     /* bytes without a word from the host are one */

/* There is always room: see vsock_serve_tx(). */
static void vsock_refuse(struct vsock *v, const struct vsock_hdr *hdr)
{
	v->resets[v->n_resets].host_port = hdr->dst_port;
	v->resets[v->n_resets].guest_port = hdr->src_port;
	v->resets[v->n_resets++].type = hdr->type == TYPE_SEQPACKET ? TYPE_SEQPACKET : TYPE_STREAM;
}

bool vsock_may_serve(const struct vsock *v, unsigned q)
{
	return virtio_running(&v->dev) && v->dev.vq[q].ready;
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
 * that cost most: one for each half of its window is enough. While it is sent more than it has
 * buffers for, it mostly tells of credit, and RX's next kick does as well. Should it stop short of
 * that, the loop looks after a moment (vsock_quiet()). */
static uint16_t vsock_put_off(const struct vsock *v, unsigned packets, uint32_t bytes)
{
	uint16_t most = v->dev.vq[QUEUE_TX].num / 4;

	if (v->n_resets == MAX_RESETS)
		return 0; /* it is not served before RX is */
	if (v->rx_short && !bytes)
		return most;
	if (v->streamed < STREAM || !packets || !bytes)
		return 0;
	return (uint16_t)MIN(most, WINDOW / 2 / (bytes / packets + 1));
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

	v->dev.vm->linger_rounds = 0;
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

	v->dev.vm->lingers = v->put_off || untold || v->starved ? &v->dev : NULL;
	v->dev.vm->linger_ms = v->put_off ? SOON_MS : LATE_MS;
}

/* Serve RX, and TX if it waited for that, until neither can go on. */
static void vsock_go_on(struct vsock *v)
{
	bool was_short = v->rx_short;

	vsock_serve_event(v);
	vsock_serve_rx(v);
	while ((v->tx_waits || v->rx_short != was_short) && v->n_resets < MAX_RESETS &&
	       vsock_may_serve(v, QUEUE_TX)) {
		was_short = v->rx_short;
		vsock_serve_tx(v);
		vsock_serve_rx(v);
	}
	vsock_linger(v);
}

/* The host has done something, or the guest. What that put off telling us is looked at, too. */
void vsock_run(struct vsock *v)
{
	if (v->put_off && vsock_may_serve(v, QUEUE_TX) && virtq_waits(&v->dev.vq[QUEUE_TX]))
		vsock_serve_tx(v);
	vsock_go_on(v);
}

static void vsock_serve(struct virtio_dev *dev, unsigned q)
{
	struct vsock *v = (struct vsock *)dev;

	if (q == QUEUE_TX)
		vsock_serve_tx(v);
	vsock_run(v);
}

/* The driver has said nothing for a moment: it may be waiting for us, or for a CPU, and after some
 * such moments it is no stream. Or it sends so slowly that a look now and then costs less than its
 * kicks. */
static void vsock_quiet(struct virtio_dev *dev)
{
	struct vsock *v = (struct vsock *)dev;

	if (!vsock_may_serve(v, QUEUE_TX))
		return;
	if (!virtq_waits(&dev->vq[QUEUE_TX])) {
		v->streamed = MIN(v->streamed, STREAM) / 4 * 3;
		v->rx_short = false;
	}
	vsock_serve_tx(v);
	virtio_notify(dev, &dev->vq[QUEUE_TX]);
	for (struct conn *c = NULL; v->starved && (c = table_used(v, c));)
		conn_ask_credit(c);
	v->starved = false;
	vsock_go_on(v);
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
	v->rx_short = false;
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

int vm_add_vsock(struct vm *vm, uint64_t guest_cid, uint32_t buffer)
{
	struct vsock *v = calloc(1, sizeof(*v));
	int slot;

	if (!v)
		return -ENOMEM;
	v->guest_cid = guest_cid;
	v->channel.fd = -1;
	slot = table_init(v, buffer);
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
