/* SPDX-License-Identifier: Apache-2.0
 *
 * The bytes of a vsock connection, both ways.
 *
 * Guest to host: RW packets go from the guest's buffers straight into the socket; what it does not
 * take is held in the connection's buffer, a ring. The guest may have as much on the way as that
 * has room for, its credit.
 *
 * Host to guest: when the socket is readable, the connection stands in line for the RX queue and is
 * read straight into the guest's buffers, as far as the guest's credit goes.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "virtio_vsock.h"

/* Whether there is something that the host's socket has no room for. */
bool conn_pending(const struct conn *c)
{
	return c->held_len > c->partial;
}

static uint32_t conn_credit(const struct conn *c)
{
	uint32_t in_flight = c->sent - c->peer_fwd;

	return in_flight < c->peer_alloc ? c->peer_alloc - in_flight : 0;
}

bool conn_may_send(const struct conn *c)
{
	uint32_t credit = conn_credit(c);

	return c->state == CONN_LINKED && c->readable && !c->host_eof && credit &&
	       credit >= c->next_len && !(c->guest_shutdown & SHUTDOWN_RCV);
}

void conn_forwarded(struct conn *c, uint32_t n)
{
	/* Linux (since "vsock/virtio: cap TX credit to local buffer size") keeps no more on the way
	 * than its own buffer holds, however large ours is: 256 KiB. */
	uint32_t window = MIN(c->window, c->peer_alloc);

	c->forwarded += n;
	/* Before the guest believes its window half full, say that it is not. */
	if (c->state == CONN_LINKED && n && c->forwarded - c->forwarded_told >= window / 2)
		conn_say(c, SAY_CREDIT_UPDATE);
}

/* Write what is held; false if the host's reader is gone. */
bool conn_flush(struct conn *c)
{
	const uint8_t *held = table_buffer(c);

	if (c->type == TYPE_SEQPACKET)
		return seqpacket_flush(c);
	while (c->held_len) {
		uint32_t part = MIN(c->held_len, c->size - c->held_at);
		ssize_t n = send(c->ev.fd, held + c->held_at, part, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		c->held_at = (c->held_at + (uint32_t)n) % c->size;
		c->held_len -= (uint32_t)n;
		conn_forwarded(c, (uint32_t)n);
	}
	return true;
}

/* Hold all but the first `skip` bytes of iov. The guest's credit is what there is room for. */
static void conn_hold(struct conn *c, const struct iovec *iov, unsigned n, size_t skip)
{
	uint8_t *held = table_buffer(c);

	c->held_any = true;
	for (; n; n--, iov++) {
		size_t done = MIN(skip, iov->iov_len);

		skip -= done;
		while (done < iov->iov_len) {
			uint32_t end = (c->held_at + c->held_len) % c->size;
			size_t part = MIN(iov->iov_len - done, c->size - end);

			memcpy(held + end, (const uint8_t *)iov->iov_base + done, part);
			c->held_len += (uint32_t)part;
			done += part;
		}
	}
}

/* Take the len bytes at iov, which are the guest's, for the host. */
void conn_take(struct conn *c, struct iovec *iov, unsigned n, uint32_t len)
{
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};
	ssize_t sent = 0;

	if (c->held_len == 0) {
		do
			sent = sendmsg(c->ev.fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		while (sent < 0 && errno == EINTR);
		if (sent < 0 && errno != EAGAIN) {
			conn_reset(c); /* the reader is gone */
			return;
		}
		sent = sent < 0 ? 0 : sent;
		conn_forwarded(c, (uint32_t)sent);
	}
	if ((uint32_t)sent < len) {
		conn_hold(c, iov, n, (size_t)sent);
		conn_watch(c);
	}
}

/* The host will send no more. It may still read, if it only shut down. */
static void conn_end(struct conn *c)
{
	c->readable = false;
	if (!c->host_eof)
		c->say |= SAY_SHUTDOWN;
	c->host_eof = true;
}

/* How long the host's next message is, if the guest has credit for it, which must be all of it. */
static uint32_t conn_next_message(struct conn *c)
{
	ssize_t n = seqpacket_next(c);

	c->next_len = n > 0 ? (uint32_t)MIN(n, UINT32_MAX) : 0;
	if (n < 0 && errno == EAGAIN) {
		c->readable = false;
	} else if (n <= 0) {
		c->hung_up |= n < 0;
		conn_end(c);
	} else if (c->next_len > c->peer_alloc) {
		conn_reset(c); /* it can never be sent */
		return 0;
	} else if (c->next_len > conn_credit(c)) {
		c->say |= SAY_CREDIT_REQUEST;
		return 0;
	}
	return c->next_len;
}

/* How much data to read for the guest, at most; of messages exactly that. */
uint32_t conn_wants(struct conn *c)
{
	if (!conn_may_send(c))
		return 0;
	return c->type == TYPE_SEQPACKET ? conn_next_message(c) : MIN(conn_credit(c), MAX_PACKET);
}

/* Read for the guest what there is, up to len bytes; 0 if nothing after all. */
uint32_t conn_fill(struct conn *c, struct iovec *iov, unsigned n, uint32_t len)
{
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};
	ssize_t got;

	/* That the peer left with data unread is said first, and once; what it sent comes then. */
	do
		got = recvmsg(c->ev.fd, &msg, MSG_DONTWAIT);
	while (got < 0 && (errno == EINTR || errno == ECONNRESET));
	if (got > 0) {
		/* Fewer were all (epoll(7)), unless descriptors among them made an end, or there is
		 * an end of file behind them. */
		c->next_len = 0;
		if (got < len && !(msg.msg_flags & MSG_CTRUNC) && !c->half_closed)
			c->readable = false;
		c->sent += (uint32_t)got;
		c->vsock->starved |= c->readable && conn_credit(c) == 0;
		return (uint32_t)got;
	}
	c->readable = false;
	if (got < 0 && errno == EAGAIN)
		return 0;
	c->hung_up |= got < 0; /* the peer died */
	conn_end(c);
	return 0;
}

/* Out of credit for a while: have the guest say how much there is. Linux tells of itself, as its
 * readers read, and would do it twice if it were asked at once. */
void conn_ask_credit(struct conn *c)
{
	if (c->state == CONN_LINKED && c->readable && conn_credit(c) == 0)
		conn_say(c, SAY_CREDIT_REQUEST);
}
