/* SPDX-License-Identifier: Apache-2.0
 *
 * One vsock connection: the host's stream socket on one side, the guest's packets on the other.
 *
 * Guest to host: RW packets go from the guest's buffers straight into the socket; what it does not
 * take waits in `held`. The guest may have BUF_ALLOC bytes on the way, its credit.
 *
 * Host to guest: when the socket is readable, the connection stands in line for the RX queue and is
 * read straight into the guest's buffers, as far as the guest's credit goes. While it stands in
 * line or waits, the loop does not watch it.
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "virtio_vsock.h"

#define MAX_PACKET (1u << 16) /* VIRTIO_VSOCK_MAX_PKT_BUF_SIZE of Linux */

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
void conn_watch(struct conn *c)
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

void conn_free(struct conn *c)
{
	if (c->ev.fd < 0)
		return;
	vsock_leave_line(c);
	if (c->ev.events)
		loop_remove(c->vsock->dev.vm, &c->ev);
	close(c->ev.fd);
	if (c->held)
		munmap(c->held, BUF_ALLOC);
	*c = (struct conn){.ev = {.fd = -1}, .vsock = c->vsock};
}

/* The guest's side is over. What it sent before still goes to the host. */
static void conn_unlink(struct conn *c)
{
	c->linked = false;
	vsock_leave_line(c);
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
	if (c->linked && n && c->forwarded - c->forwarded_told >= window / 2) {
		c->send_credit = true;
		vsock_line_up(c);
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
	if (!c->held) {
		/* Not malloc(): what that asks of the kernel, no seccomp filter could foresee. */
		void *held = mmap(NULL, BUF_ALLOC, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (held == MAP_FAILED)
			return false;
		c->held = held;
	}
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
			vsock_line_up(c);
		}
		conn_watch(c);
		conn_pass_shutdown(c);
	}
	vsock_run(v);
	pthread_mutex_unlock(&v->dev.lock);
}

void conn_offer(struct conn *c, uint32_t port, int fd)
{
	c->ev = (struct event){.fd = fd, .fn = conn_event};
	c->host_port = port;
	c->offered = true;
}

/* The guest asks for the port: the offer becomes a connection. */
void conn_link(struct conn *c, const struct vsock_hdr *hdr)
{
	c->offered = false;
	c->linked = true;
	c->guest_port = hdr->src_port;
	c->peer_alloc = hdr->buf_alloc;
	c->peer_fwd = hdr->fwd_cnt;
	c->respond = true;
	vsock_line_up(c);
	conn_watch(c);
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
		c->host_eof = true;
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
bool conn_next(struct conn *c, struct chain *ch, struct vsock_hdr *hdr)
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

bool conn_has_more(const struct conn *c)
{
	return c->respond || c->send_credit || c->send_request || conn_may_send(c);
}

void conn_packet(struct conn *c, const struct vsock_hdr *hdr, struct iovec *iov, unsigned n)
{
	struct vsock *v = c->vsock;

	c->peer_alloc = hdr->buf_alloc;
	c->peer_fwd = hdr->fwd_cnt;
	if (conn_has_more(c))
		vsock_line_up(c);
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
		vsock_line_up(c);
		return;
	case OP_CREDIT_UPDATE:
		return;
	default:
		break; /* REQUEST or RESPONSE for what is connected, or an unknown one */
	}
	vsock_reset_peer(v, c->host_port, c->guest_port);
	conn_free(c);
}
