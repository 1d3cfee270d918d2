/* SPDX-License-Identifier: Apache-2.0
 *
 * One vsock connection's life: made, let in, told of, ended. vsock_data.c moves its bytes.
 *
 * The loop tells of changes of the host's socket only (EPOLLET), so nothing that cannot be acted on
 * now makes it spin.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "virtio_vsock.h"

#define WATCHED (EPOLLIN | EPOLLRDHUP | EPOLLET)

void conn_say(struct conn *c, unsigned what)
{
	c->say |= what;
	vsock_line_up(c);
}

bool conn_has_more(const struct conn *c)
{
	return c->say || conn_may_send(c);
}

/* Room in the socket is of interest only while there is something for it. */
void conn_watch(struct conn *c)
{
	loop_modify(c->vsock->dev.vm, &c->ev, conn_pending(c) ? WATCHED | EPOLLOUT : WATCHED);
}

static void conn_detach(struct conn *c)
{
	if (c->vsock->gather.conn == c)
		c->vsock->gather.conn = NULL;
	if (c->ev.fd < 0)
		return;
	loop_remove(c->vsock->dev.vm, &c->ev);
	close(c->ev.fd);
	c->ev.fd = -1;
}

/* No trace of it stays, and the guest is not told. */
void conn_free(struct conn *c)
{
	vsock_leave_line(c);
	conn_detach(c);
	table_release(c);
}

/* It is over for the host; the guest is yet to be told. */
void conn_reset(struct conn *c)
{
	conn_detach(c);
	c->state = CONN_CLOSING;
	c->held_len = c->partial = 0;
	c->say = 0;
	conn_say(c, SAY_RST);
}

/* It is over for the guest. What it sent before still goes to the host. */
static void conn_gone(struct conn *c)
{
	if (!conn_pending(c)) {
		conn_free(c);
		return;
	}
	vsock_leave_line(c);
	table_unname(c);
	c->state = CONN_DRAINING;
	c->say = 0;
}

/* Tell the host's reader of the guest's shutdown once all that came before is through. */
static void conn_pass_shutdown(struct conn *c)
{
	if (conn_pending(c) || c->guest_shutdown == c->passed_shutdown)
		return;
	c->passed_shutdown = c->guest_shutdown;
	if (c->guest_shutdown == (SHUTDOWN_RCV | SHUTDOWN_SEND))
		conn_reset(c); /* §5.10.6.5: a clean disconnect is answered by RST */
	else
		shutdown(c->ev.fd, c->guest_shutdown & SHUTDOWN_SEND ? SHUT_WR : SHUT_RD);
}

/* Tell a guest that may still send of a host that has gone, where no end of file will be read that
 * does. */
static void conn_tell_gone(struct conn *c)
{
	if (c->state != CONN_LINKED || !c->hung_up || c->told_gone ||
	    c->guest_shutdown & SHUTDOWN_SEND || !(c->host_eof || c->guest_shutdown & SHUTDOWN_RCV))
		return;
	c->host_eof = true;
	conn_say(c, SAY_SHUTDOWN);
}

static void conn_event(struct event *ev, uint32_t events)
{
	struct conn *c = (struct conn *)ev;
	struct vsock *v = c->vsock;
	bool over = events & (EPOLLERR | EPOLLHUP);

	pthread_mutex_lock(&v->dev.lock);
	/* The slot may have another connection by now: what follows does it no harm. */
	c->readable = true;
	c->hung_up |= over;
	c->half_closed |= over || events & EPOLLRDHUP;
	if (c->ev.fd >= 0 && conn_pending(c) && !conn_flush(c)) {
		c->held_len = c->partial = 0; /* nobody will read it */
		if (c->state == CONN_LINKED)
			conn_reset(c);
	}
	if (c->ev.fd >= 0)
		conn_watch(c);
	if (c->state == CONN_DRAINING && !conn_pending(c)) {
		conn_free(c);
	} else if (c->state == CONN_REQUESTED && over) {
		/* The caller has given up. */
		if (c->say & SAY_REQUEST)
			conn_free(c);
		else
			conn_reset(c);
	} else if (c->state == CONN_LINKED) {
		conn_pass_shutdown(c);
		conn_tell_gone(c);
		if (conn_has_more(c))
			vsock_line_up(c);
	}
	vsock_run(v);
	pthread_mutex_unlock(&v->dev.lock);
}

/* Give it the host's socket, which is the connection's from then unless this fails. */
int conn_attach(struct conn *c, int fd)
{
	int r;

	c->ev = (struct event){.fd = fd, .fn = conn_event};
	r = loop_add(c->vsock->dev.vm, &c->ev, WATCHED);
	if (r)
		c->ev.fd = -1;
	return r;
}

void conn_set_type(struct conn *c, uint16_t type)
{
	c->type = type;
	c->window = type == TYPE_SEQPACKET ? seqpacket_window(c) : c->size;
}

/* The guest asks for it. */
void conn_asked(struct conn *c, const struct vsock_hdr *hdr)
{
	conn_set_type(c, hdr->type);
	table_name(c, hdr->dst_port, hdr->src_port);
	c->peer_alloc = hdr->buf_alloc;
	c->peer_fwd = hdr->fwd_cnt;
	c->state = CONN_ASKED;
}

/* And is let in. */
void conn_accept(struct conn *c)
{
	c->state = CONN_LINKED;
	conn_say(c, SAY_RESPONSE);
}

/* The guest lets us in. */
static void conn_answered(struct conn *c)
{
	char line[16];
	int n = snprintf(line, sizeof(line), "OK %u\n", c->host_port);

	if (!c->quiet && send(c->ev.fd, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) != n) {
		conn_reset(c);
		return;
	}
	c->state = CONN_LINKED;
	if (conn_has_more(c))
		vsock_line_up(c);
}

struct vsock_hdr conn_header(struct conn *c, uint16_t op)
{
	c->forwarded_told = c->forwarded;
	c->say &= ~(unsigned)SAY_CREDIT_UPDATE; /* each header is one */
	return (struct vsock_hdr){.src_cid = HOST_CID,
				  .dst_cid = c->vsock->guest_cid,
				  .src_port = c->host_port,
				  .dst_port = c->guest_port,
				  .type = c->type,
				  .op = op,
				  .buf_alloc = c->window,
				  .fwd_cnt = c->forwarded};
}

/* What this connection has to say beside data; false if nothing. After an RST it is no more. */
bool conn_next(struct conn *c, struct vsock_hdr *hdr)
{
	static const uint16_t ops[] = {OP_RST,	    OP_REQUEST,	      OP_RESPONSE,
				       OP_SHUTDOWN, OP_CREDIT_UPDATE, OP_CREDIT_REQUEST};
	unsigned i = 0;

	if (!c->say)
		return false;
	while (!(c->say & 1u << i))
		i++;
	c->say &= ~(1u << i);
	*hdr = conn_header(c, ops[i]);
	if (ops[i] == OP_SHUTDOWN) {
		c->told_gone = c->hung_up;
		hdr->flags = c->hung_up ? SHUTDOWN_RCV | SHUTDOWN_SEND : SHUTDOWN_SEND;
	}
	if (ops[i] == OP_RST)
		conn_free(c);
	return true;
}

/* A packet for a connection that is not linked; false if that is wrong. */
static bool conn_early(struct conn *c, const struct vsock_hdr *hdr)
{
	if (c->state == CONN_CLOSING)
		return true; /* it crossed our RST */
	if (c->state != CONN_REQUESTED || hdr->op != OP_RESPONSE || c->say & SAY_REQUEST)
		return false;
	conn_answered(c);
	return true;
}

void conn_packet(struct conn *c, const struct vsock_hdr *hdr, struct iovec *iov, unsigned n)
{
	if (hdr->op != OP_RW)
		vsock_flush(c); /* what came before it */
	c->peer_alloc = hdr->buf_alloc;
	c->peer_fwd = hdr->fwd_cnt;
	if (hdr->op == OP_RST) {
		conn_gone(c);
		return;
	}
	if (c->state != CONN_LINKED) {
		if (!conn_early(c, hdr))
			conn_reset(c);
		return;
	}
	switch (hdr->op) {
	case OP_RW:
		/* More than its credit, or after it said that it would send no more: a liar. */
		if (hdr->len > c->window - (c->received - c->forwarded) ||
		    c->guest_shutdown & SHUTDOWN_SEND)
			break;
		c->received += hdr->len;
		if (c->type == TYPE_STREAM) {
			vsock_gather(c, iov, n, hdr->len);
		} else {
			if (!seqpacket_take(c, iov, n, hdr))
				break;
			conn_watch(c);
		}
		if (conn_has_more(c))
			vsock_line_up(c);
		return;
	case OP_SHUTDOWN:
		c->guest_shutdown |= hdr->flags & (SHUTDOWN_RCV | SHUTDOWN_SEND);
		conn_pass_shutdown(c);
		conn_tell_gone(c);
		return;
	case OP_CREDIT_REQUEST:
		conn_say(c, SAY_CREDIT_UPDATE);
		return;
	case OP_CREDIT_UPDATE:
		if (conn_has_more(c))
			vsock_line_up(c);
		return;
	default:
		break; /* REQUEST or RESPONSE for what is connected, or an unknown one */
	}
	conn_reset(c);
}
