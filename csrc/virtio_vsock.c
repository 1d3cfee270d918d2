/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-vsock (Virtio 1.2 §5.10): stream connections from the guest to ports that the host offers.
 * An offered port is a connected stream socket; when the guest asks for the port (REQUEST), the
 * socket and the guest's connection become one (vsock_conn.c).
 *
 * Connections with something to say stand in line for the RX queue. Replies that belong to no
 * connection (RST) wait in a short line of their own; while that is full the TX queue is not
 * served, so nothing a guest does makes us hold more than a bounded amount.
 */
#include <errno.h>
#include <stdlib.h>

#include "virtio_vsock.h"

#define VIRTIO_ID_VSOCK 19
#define TX_RESETS	(MAX_RESETS - MAX_PORTS) /* the rest is for the connections: one each */

enum { QUEUE_RX = 0, QUEUE_TX = 1 };

void vsock_line_up(struct conn *c)
{
	struct vsock *v = c->vsock;

	if (c->in_line)
		return;
	c->in_line = true;
	c->next = NULL;
	if (v->ready_last)
		v->ready_last->next = c;
	else
		v->ready_first = c;
	v->ready_last = c;
}

void vsock_leave_line(struct conn *c)
{
	struct conn **at = &c->vsock->ready_first, *before = NULL;

	if (!c->in_line)
		return;
	while (*at != c) {
		before = *at;
		at = &before->next;
	}
	*at = c->next;
	if (c->vsock->ready_last == c)
		c->vsock->ready_last = before;
	c->in_line = false;
}

/* There is always room: see vsock_serve_tx(). */
void vsock_reset_peer(struct vsock *v, uint32_t host_port, uint32_t guest_port)
{
	v->resets[v->n_resets].host_port = host_port;
	v->resets[v->n_resets++].guest_port = guest_port;
}

static void vsock_put(struct vsock *v, struct chain *ch, const struct vsock_hdr *hdr)
{
	struct virtq *vq = &v->dev.vq[QUEUE_RX];

	iov_copy_in(ch->iov, ch->n_in, hdr, sizeof(*hdr));
	virtq_push(vq, ch->head, (uint32_t)sizeof(*hdr) + hdr->len);
}

static bool vsock_may_serve(const struct vsock *v, unsigned q)
{
	return virtio_running(&v->dev) && v->dev.vq[q].ready;
}

static void vsock_serve_rx(struct vsock *v)
{
	struct virtq *vq = &v->dev.vq[QUEUE_RX];
	int r = 0;

	if (!vsock_may_serve(v, QUEUE_RX))
		return;
	while (v->n_resets || v->ready_first) {
		struct conn *c = v->ready_first;
		struct chain ch;
		struct vsock_hdr hdr;

		r = virtq_pop(v->dev.vm, vq, &ch);
		if (r == 0 && virtq_rearm(vq))
			continue;
		if (r > 0 && (ch.n_out || iov_size(ch.iov, ch.n_in) <= sizeof(hdr)))
			r = -EINVAL;
		if (r <= 0)
			break;
		if (v->n_resets) {
			v->n_resets--;
			hdr = (struct vsock_hdr){.src_cid = HOST_CID,
						 .dst_cid = v->guest_cid,
						 .src_port = v->resets[v->n_resets].host_port,
						 .dst_port = v->resets[v->n_resets].guest_port,
						 .type = TYPE_STREAM,
						 .op = OP_RST};
			vsock_put(v, &ch, &hdr);
			continue;
		}
		/* One packet each, then to the end of the line: nobody waits for a busy one. */
		vsock_leave_line(c);
		if (conn_next(c, &ch, &hdr))
			vsock_put(v, &ch, &hdr);
		else
			virtq_unpop(vq);
		if (conn_has_more(c))
			vsock_line_up(c);
		conn_watch(c);
	}
	if (r < 0)
		virtio_break(&v->dev);
	else
		virtio_notify(&v->dev, vq);
}

static struct conn *vsock_find(struct vsock *v, uint32_t host_port, uint32_t guest_port)
{
	for (unsigned i = 0; i < MAX_PORTS; i++) {
		struct conn *c = &v->conns[i];

		if (c->linked && c->host_port == host_port && c->guest_port == guest_port)
			return c;
	}
	return NULL;
}

static void vsock_request(struct vsock *v, const struct vsock_hdr *hdr)
{
	for (unsigned i = 0; i < MAX_PORTS; i++) {
		struct conn *c = &v->conns[i];

		if (!c->offered || c->host_port != hdr->dst_port)
			continue;
		conn_link(c, hdr);
		return;
	}
	vsock_reset_peer(v, hdr->dst_port, hdr->src_port);
}

static void vsock_packet(struct vsock *v, struct chain *ch)
{
	struct vsock_hdr hdr;
	struct iovec iov[VQ_IOV_MAX];
	struct conn *c;
	unsigned n;

	if (iov_copy_out(ch->iov, ch->n_out, &hdr, sizeof(hdr)) != sizeof(hdr))
		return;
	if (hdr.src_cid != v->guest_cid || hdr.dst_cid != HOST_CID)
		return; /* §5.10.6.4.1 leaves us nobody to answer */
	c = vsock_find(v, hdr.dst_port, hdr.src_port);
	n = iov_slice(ch->iov, ch->n_out, sizeof(hdr), hdr.len, iov);
	if (hdr.type != TYPE_STREAM || iov_size(iov, n) != hdr.len) {
		if (hdr.op != OP_RST)
			vsock_reset_peer(v, hdr.dst_port, hdr.src_port);
		if (c)
			conn_free(c);
	} else if (c) {
		conn_packet(c, &hdr, iov, n);
	} else if (hdr.op == OP_REQUEST) {
		vsock_request(v, &hdr);
	} else if (hdr.op != OP_RST) {
		vsock_reset_peer(v, hdr.dst_port, hdr.src_port);
	}
}

static void vsock_serve_tx(struct vsock *v)
{
	struct virtq *vq = &v->dev.vq[QUEUE_TX];
	struct chain ch;
	int r = 0;

	do {
		/* A packet makes at most one reset: with the line full, wait for RX to empty it. */
		while (v->n_resets < TX_RESETS && (r = virtq_pop(v->dev.vm, vq, &ch)) > 0) {
			vsock_packet(v, &ch);
			virtq_push(vq, ch.head, 0);
		}
	} while (r == 0 && v->n_resets < TX_RESETS && virtq_rearm(vq));
	v->tx_waits = v->n_resets >= TX_RESETS;
	if (r < 0)
		virtio_break(&v->dev);
	else
		virtio_notify(&v->dev, vq);
}

/* Serve RX, and TX if it waited for that, until neither can go on. */
void vsock_run(struct vsock *v)
{
	vsock_serve_rx(v);
	while (v->tx_waits && v->n_resets < TX_RESETS && vsock_may_serve(v, QUEUE_TX)) {
		vsock_serve_tx(v);
		vsock_serve_rx(v);
	}
}

static void vsock_serve(struct virtio_dev *dev, unsigned q)
{
	struct vsock *v = (struct vsock *)dev;

	if (q == QUEUE_TX)
		vsock_serve_tx(v);
	vsock_run(v);
}

/* A driver that starts over knows none of the connections any more. */
static void vsock_reset(struct virtio_dev *dev)
{
	struct vsock *v = (struct vsock *)dev;

	for (unsigned i = 0; i < MAX_PORTS; i++)
		if (!v->conns[i].offered)
			conn_free(&v->conns[i]);
	v->n_resets = 0;
	v->tx_waits = false;
}

static void vsock_free(struct virtio_dev *dev)
{
	struct vsock *v = (struct vsock *)dev;

	for (unsigned i = 0; i < MAX_PORTS; i++)
		conn_free(&v->conns[i]);
	free(v);
}

static const struct virtio_ops vsock_ops = {
	.id = VIRTIO_ID_VSOCK,
	.n_queues = 3,
	.serve = vsock_serve,
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
	for (unsigned i = 0; i < MAX_PORTS; i++)
		v->conns[i] = (struct conn){.ev = {.fd = -1}, .vsock = v};
	slot = virtio_register(vm, &v->dev, &vsock_ops, 0, &v->guest_cid, sizeof(v->guest_cid));
	if (slot < 0)
		free(v);
	return slot;
}

int vm_offer_port(struct vm *vm, int slot, uint32_t port, int fd)
{
	struct vsock *v;

	if (slot < 0 || (unsigned)slot >= vm->n_devices || vm->devices[slot]->ops != &vsock_ops)
		return -ENODEV;
	v = (struct vsock *)vm->devices[slot];
	for (unsigned i = 0; i < MAX_PORTS; i++) {
		struct conn *c = &v->conns[i];

		if (c->ev.fd >= 0)
			continue;
		conn_offer(c, port, fd);
		return 0;
	}
	return -ENOSPC;
}
