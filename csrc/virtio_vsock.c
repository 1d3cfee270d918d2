/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-vsock (Virtio 1.2 §5.10): stream connections from the guest to ports that the host offers.
 *
 * An offered port is a connected stream socket. When the guest asks for the port (REQUEST), the
 * socket and the guest's connection become one:
 *
 *   guest -> host  RW packets go from the guest's buffers straight into the socket; what it does
 * not take waits in `held`. The guest may have BUF_ALLOC bytes on the way (credit). host -> guest
 * when the socket is readable, the connection stands in line for the RX queue
 *                  (`ready`), and is read straight into the guest's buffers, as far as the guest's
 *                  credit goes. While it stands in line or waits, the loop does not watch it.
 *
 * Replies that belong to no connection (RST) wait in a short line of their own; while that is full
 * the TX queue is not served, so nothing a guest does makes us hold more than a bounded amount.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core.h"

#define VIRTIO_ID_VSOCK 19
#define HOST_CID	2
#define TYPE_STREAM	1

enum { QUEUE_RX = 0, QUEUE_TX = 1, QUEUE_EVENT = 2 };
enum {
	OP_REQUEST = 1,
	OP_RESPONSE = 2,
	OP_RST = 3,
	OP_SHUTDOWN = 4,
	OP_RW = 5,
	OP_CREDIT_UPDATE = 6,
	OP_CREDIT_REQUEST = 7,
};
#define SHUTDOWN_RCV  1u
#define SHUTDOWN_SEND 2u

#define BUF_ALLOC  (1u << 20) /* what a guest may send ahead of the host's reader, a connection */
#define MAX_PACKET (1u << 16) /* VIRTIO_VSOCK_MAX_PKT_BUF_SIZE of Linux */
#define MAX_PORTS  16
#define MAX_RESETS 64
#define TX_RESETS  (MAX_RESETS - MAX_PORTS) /* the rest is for the connections: one each */

/* §5.10.6, struct virtio_vsock_hdr */
struct vsock_hdr {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port, len;
	uint16_t type, op;
	uint32_t flags, buf_alloc, fwd_cnt;
} __attribute__((packed));

_Static_assert(sizeof(struct vsock_hdr) == 44, "the header has 44 bytes on the wire");

struct vsock;

struct conn {
	struct event ev; /* first: the loop hands it back */
	struct vsock *vsock;
	uint32_t host_port, guest_port;
	bool offered, linked; /* waits for the guest's REQUEST; is a connection the guest knows */
	/* host -> guest */
	struct conn *next; /* in the ready line */
	bool in_line, respond, send_credit, send_request, readable, host_eof, shutdown_sent;
	uint32_t peer_alloc, peer_fwd, sent;
	/* guest -> host */
	uint8_t *held;
	uint32_t held_at, held_len; /* ring of BUF_ALLOC bytes */
	uint32_t received, forwarded, forwarded_told;
	uint32_t guest_shutdown; /* SHUTDOWN_* flags */
};

struct vsock {
	struct virtio_dev dev;
	uint64_t guest_cid;
	struct conn conns[MAX_PORTS];
	struct conn *ready_first, *ready_last;
	struct {
		uint32_t host_port, guest_port;
	} resets[MAX_RESETS];
	unsigned n_resets;
	bool tx_waits; /* until there is room for the resets that its packets may need */
};

static void vsock_run(struct vsock *v);

static void conn_line_up(struct conn *c)
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

static void conn_leave_line(struct conn *c)
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

static uint32_t conn_credit(const struct conn *c)
{
	uint32_t in_flight = c->sent - c->peer_fwd;

	return in_flight < c->peer_alloc ? c->peer_alloc - in_flight : 0;
}

static bool conn_may_send(const struct conn *c)
{
	return c->readable && conn_credit(c) && !(c->guest_shutdown & SHUTDOWN_RCV);
}

/* Watch the socket for just what can be acted on, so that nothing spins. */
static void conn_watch(struct conn *c)
{
	uint32_t events = 0;

	if (c->ev.fd < 0)
		return;
	if (c->linked && !c->readable && !c->host_eof && !(c->guest_shutdown & SHUTDOWN_RCV))
		events |= EPOLLIN;
	if (c->held_len)
		events |= EPOLLOUT;
	/* A hang-up is reported whether asked for or not: without a wish we leave the loop. */
	if (events && c->ev.events)
		loop_modify(c->vsock->dev.vm, &c->ev, events);
	else if (events)
		loop_add(c->vsock->dev.vm, &c->ev, events);
	else if (c->ev.events)
		loop_remove(c->vsock->dev.vm, &c->ev);
	c->ev.events = events;
}

static void conn_free(struct conn *c)
{
	if (c->ev.fd < 0)
		return;
	conn_leave_line(c);
	if (c->ev.events)
		loop_remove(c->vsock->dev.vm, &c->ev);
	close(c->ev.fd);
	free(c->held);
	*c = (struct conn){.ev = {.fd = -1}, .vsock = c->vsock};
}

/* There is always room: see vsock_serve_tx(). */
static void vsock_reset_peer(struct vsock *v, uint32_t host_port, uint32_t guest_port)
{
	v->resets[v->n_resets].host_port = host_port;
	v->resets[v->n_resets++].guest_port = guest_port;
}

/* The guest's side is over. What it sent before still goes to the host. */
static void conn_unlink(struct conn *c)
{
	c->linked = false;
	conn_leave_line(c);
	if (c->held_len)
		conn_watch(c);
	else
		conn_free(c);
}

/* Tell the host's reader of the guest's shutdown once all that came before is through. */
static void conn_pass_shutdown(struct conn *c)
{
	if (c->held_len || !c->guest_shutdown)
		return;
	if (c->guest_shutdown == (SHUTDOWN_RCV | SHUTDOWN_SEND)) {
		/* §5.10.6.5: a clean disconnect is answered by RST. */
		vsock_reset_peer(c->vsock, c->host_port, c->guest_port);
		conn_free(c);
	} else if (c->guest_shutdown & SHUTDOWN_SEND) {
		shutdown(c->ev.fd, SHUT_WR);
	} else {
		shutdown(c->ev.fd, SHUT_RD);
	}
}

static void conn_forwarded(struct conn *c, uint32_t n)
{
	/* Linux (since "vsock/virtio: cap TX credit to local buffer size") keeps no more on the way
	 * than its own buffer holds, however large ours is: 256 KiB. */
	uint32_t window = MIN(BUF_ALLOC, c->peer_alloc);

	c->forwarded += n;
	/* Before the guest believes its window half full, say that it is not. */
	if (c->linked && c->forwarded - c->forwarded_told >= window / 2) {
		c->send_credit = true;
		conn_line_up(c);
	}
}

/* Write what is held; false if the host's reader is gone. */
static bool conn_flush(struct conn *c)
{
	while (c->held_len) {
		uint32_t part = MIN(c->held_len, BUF_ALLOC - c->held_at);
		ssize_t n = send(c->ev.fd, c->held + c->held_at, part, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		c->held_at = (c->held_at + (uint32_t)n) % BUF_ALLOC;
		c->held_len -= (uint32_t)n;
		conn_forwarded(c, (uint32_t)n);
	}
	return true;
}

/* Take len bytes at iov (part of a guest's packet) for the host; false if the reader is gone. */
static bool conn_take(struct conn *c, struct iovec *iov, unsigned n_iov, uint32_t len)
{
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n_iov};
	ssize_t n = 0;

	if (c->held_len == 0) {
		do
			n = sendmsg(c->ev.fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		while (n < 0 && errno == EINTR);
		if (n < 0 && errno != EAGAIN)
			return false;
		n = n < 0 ? 0 : n;
		conn_forwarded(c, (uint32_t)n);
	}
	if ((uint32_t)n == len)
		return true;
	if (!c->held && !(c->held = malloc(BUF_ALLOC)))
		return false;
	for (size_t skip = (size_t)n; skip < len;) {
		uint32_t end = (c->held_at + c->held_len) % BUF_ALLOC;
		size_t part = MIN(len - skip, BUF_ALLOC - end);
		struct iovec rest[VQ_IOV_MAX];
		unsigned parts = iov_slice(iov, n_iov, skip, part, rest);

		iov_copy_out(rest, parts, c->held + end, part);
		c->held_len += (uint32_t)part;
		skip += part;
	}
	return true;
}

static void conn_event(struct event *ev, uint32_t events)
{
	struct conn *c = (struct conn *)ev;
	struct vsock *v = c->vsock;
	bool alive = true;

	pthread_mutex_lock(&v->dev.lock);
	if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP) && c->held_len) {
		alive = conn_flush(c);
		if (!alive)
			c->held_len = 0; /* nobody will read it */
	}
	if (!c->linked) {
		if (c->held_len == 0)
			conn_free(c);
	} else if (!alive) {
		vsock_reset_peer(v, c->host_port, c->guest_port);
		conn_free(c);
	} else {
		if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
			c->readable = true;
			conn_line_up(c);
		}
		conn_watch(c);
		conn_pass_shutdown(c);
	}
	vsock_run(v);
	pthread_mutex_unlock(&v->dev.lock);
}

/* ---- to the guest ---- */

static void vsock_put(struct vsock *v, struct chain *ch, const struct vsock_hdr *hdr)
{
	struct virtq *vq = &v->dev.vq[QUEUE_RX];

	iov_copy_in(ch->iov, ch->n_in, hdr, sizeof(*hdr));
	virtq_push(vq, ch->head, (uint32_t)sizeof(*hdr) + hdr->len);
}

static struct vsock_hdr conn_header(struct conn *c, uint16_t op)
{
	c->forwarded_told = c->forwarded;
	return (struct vsock_hdr){.src_cid = HOST_CID,
				  .dst_cid = c->vsock->guest_cid,
				  .src_port = c->host_port,
				  .dst_port = c->guest_port,
				  .type = TYPE_STREAM,
				  .op = op,
				  .buf_alloc = BUF_ALLOC,
				  .fwd_cnt = c->forwarded};
}

/* Fill the guest's buffer from the socket; false if there was nothing to send after all. */
static bool conn_fill(struct conn *c, struct chain *ch, struct vsock_hdr *hdr)
{
	size_t room = iov_size(ch->iov, ch->n_in) - sizeof(*hdr);
	uint32_t want = (uint32_t)MIN(MIN(room, MAX_PACKET), conn_credit(c));
	struct iovec iov[VQ_IOV_MAX];
	unsigned n = iov_slice(ch->iov, ch->n_in, sizeof(*hdr), want, iov);
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};
	ssize_t got;

	do
		got = recvmsg(c->ev.fd, &msg, MSG_DONTWAIT);
	while (got < 0 && errno == EINTR);
	if (got < 0 && errno == EAGAIN) {
		c->readable = false;
		return false;
	}
	if (got <= 0) {
		/* End of file, or the peer died. It may still read, if it only shut down. */
		c->readable = false;
		c->host_eof = c->shutdown_sent = true;
		*hdr = conn_header(c, OP_SHUTDOWN);
		hdr->flags = got < 0 ? SHUTDOWN_RCV | SHUTDOWN_SEND : SHUTDOWN_SEND;
		return true;
	}
	c->sent += (uint32_t)got;
	*hdr = conn_header(c, OP_RW);
	hdr->len = (uint32_t)got;
	return true;
}

/* What this connection has to say next; false if nothing. */
static bool conn_next(struct conn *c, struct chain *ch, struct vsock_hdr *hdr)
{
	if (c->respond) {
		c->respond = false;
		*hdr = conn_header(c, OP_RESPONSE);
	} else if (c->send_credit) {
		c->send_credit = false;
		*hdr = conn_header(c, OP_CREDIT_UPDATE);
	} else if (c->send_request) {
		c->send_request = false;
		*hdr = conn_header(c, OP_CREDIT_REQUEST);
	} else if (conn_may_send(c)) {
		if (!conn_fill(c, ch, hdr))
			return false;
		/* Out of credit: have the guest say when there is some again. */
		c->send_request = c->readable && conn_credit(c) == 0;
	} else {
		return false;
	}
	return true;
}

static bool conn_has_more(const struct conn *c)
{
	return c->respond || c->send_credit || c->send_request || conn_may_send(c);
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
		conn_leave_line(c);
		if (conn_next(c, &ch, &hdr))
			vsock_put(v, &ch, &hdr);
		else
			virtq_unpop(vq);
		if (conn_has_more(c))
			conn_line_up(c);
		conn_watch(c);
	}
	if (r < 0)
		virtio_break(&v->dev);
	else
		virtio_notify(&v->dev, vq);
}

/* ---- from the guest ---- */

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
		c->offered = false;
		c->linked = true;
		c->guest_port = hdr->src_port;
		c->peer_alloc = hdr->buf_alloc;
		c->peer_fwd = hdr->fwd_cnt;
		c->respond = true;
		conn_line_up(c);
		conn_watch(c);
		return;
	}
	vsock_reset_peer(v, hdr->dst_port, hdr->src_port);
}

static void conn_packet(struct conn *c, const struct vsock_hdr *hdr, struct iovec *iov, unsigned n)
{
	struct vsock *v = c->vsock;

	c->peer_alloc = hdr->buf_alloc;
	c->peer_fwd = hdr->fwd_cnt;
	if (conn_has_more(c))
		conn_line_up(c);
	switch (hdr->op) {
	case OP_RST:
		conn_unlink(c);
		return;
	case OP_RW:
		/* More than its credit, or after it said that it would send no more: a liar. */
		if (hdr->len > BUF_ALLOC - (c->received - c->forwarded) ||
		    c->guest_shutdown & SHUTDOWN_SEND)
			break;
		c->received += hdr->len;
		if (!conn_take(c, iov, n, hdr->len))
			break;
		conn_watch(c);
		return;
	case OP_SHUTDOWN:
		c->guest_shutdown |= hdr->flags & (SHUTDOWN_RCV | SHUTDOWN_SEND);
		conn_watch(c);
		conn_pass_shutdown(c);
		return;
	case OP_CREDIT_REQUEST:
		c->send_credit = true;
		conn_line_up(c);
		return;
	case OP_CREDIT_UPDATE:
		return;
	default:
		break; /* REQUEST or RESPONSE for what is connected, or an unknown one */
	}
	vsock_reset_peer(v, c->host_port, c->guest_port);
	conn_free(c);
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
static void vsock_run(struct vsock *v)
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
		c->ev = (struct event){.fd = fd, .fn = conn_event};
		c->host_port = port;
		c->offered = true;
		return 0;
	}
	return -ENOSPC;
}
