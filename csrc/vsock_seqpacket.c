/* SPDX-License-Identifier: Apache-2.0
 *
 * SOCK_SEQPACKET connections (Virtio 1.2 §5.10.6.4): messages, of one packet or several, the last
 * of which says so. The host's socket is one of AF_UNIX, which takes and gives a message whole.
 *
 * A guest's message that cannot go at once is put together, or waits, in the connection's buffer:
 * its length, then its bytes. The guest knows of a fifth of that buffer only, so that messages of a
 * single byte have room there as well; and a message is never longer than what it knows of.
 *
 * Empty messages are not passed on: to a reader of either kind of socket they are an end of file.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "virtio_vsock.h"

#define LENGTH ((uint32_t)sizeof(uint32_t)) /* before each message in the buffer */

uint32_t seqpacket_window(const struct conn *c)
{
	return c->size / (LENGTH + 1) & ~4095u;
}

/* Copy between the buffer, a ring, at an offset from its oldest byte, and p. */
static void ring_copy(const struct conn *c, uint32_t offset, void *p, uint32_t len, bool in)
{
	uint8_t *ring = table_buffer(c), *bytes = p;
	uint32_t at = (c->held_at + offset) % c->size;
	uint32_t first = MIN(len, c->size - at);

	memcpy(in ? ring + at : bytes, in ? bytes : ring + at, first);
	memcpy(in ? ring : bytes + first, in ? bytes + first : ring, len - first);
}

/* Send one message: 1, 0 if the host has no room for it now, -1 if it never will take it. */
static int send_message(struct conn *c, struct iovec *iov, unsigned n, uint32_t len)
{
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};
	ssize_t sent;

	do
		sent = sendmsg(c->ev.fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (sent < 0 && errno == EINTR);
	if (sent < 0)
		return errno == EAGAIN ? 0 : -1;
	conn_forwarded(c, len);
	return 1;
}

/* Send the messages that are held; false if the host's reader is gone. */
bool seqpacket_flush(struct conn *c)
{
	uint8_t *ring = table_buffer(c);

	while (c->held_len > c->partial) {
		uint32_t len, at = (c->held_at + LENGTH) % c->size;
		struct iovec iov[2];
		int r;

		ring_copy(c, 0, &len, LENGTH, false);
		iov[0] = (struct iovec){ring + at, MIN(len, c->size - at)};
		iov[1] = (struct iovec){ring, len - iov[0].iov_len};
		r = send_message(c, iov, 2, len);
		if (r <= 0)
			return r == 0;
		c->held_at = (c->held_at + LENGTH + len) % c->size;
		c->held_len -= LENGTH + len;
	}
	return true;
}

/* Hold a packet; false if there is no room for it. */
static bool hold(struct conn *c, const struct iovec *iov, unsigned n, uint32_t len)
{
	uint32_t room = c->size - c->held_len;

	if (len + (c->partial ? 0 : LENGTH) > room)
		return false;
	c->held_any = true;
	if (!c->partial) {
		c->held_len += LENGTH;
		c->partial = LENGTH;
	}
	for (; n; n--, iov++) {
		ring_copy(c, c->held_len, iov->iov_base, (uint32_t)iov->iov_len, true);
		c->held_len += (uint32_t)iov->iov_len;
	}
	c->partial += len;
	return true;
}

/* Take a packet of the guest's; false if it is more than there may be, or for nobody. */
bool seqpacket_take(struct conn *c, struct iovec *iov, unsigned n, const struct vsock_hdr *hdr)
{
	bool last = hdr->flags & SEQ_EOM;
	uint32_t len;

	if (last && !c->held_len) {
		int r = hdr->len ? send_message(c, iov, n, hdr->len) : 1;

		if (r)
			return r > 0;
	}
	if (hdr->len && !hold(c, iov, n, hdr->len))
		return false;
	if (!last) {
		/* What is held counts until its end is there: the rest needs all other credit. */
		if (c->forwarded != c->forwarded_told)
			conn_say(c, SAY_CREDIT_UPDATE);
		return true;
	}
	if (!c->partial)
		return true;
	len = c->partial - LENGTH;
	ring_copy(c, c->held_len - c->partial, &len, LENGTH, true);
	c->partial = 0;
	return seqpacket_flush(c);
}

/* How long the host's next message is: 0 if it ends here, -1 with errno if there is none now. */
ssize_t seqpacket_next(const struct conn *c)
{
	ssize_t n;

	do
		n = recv(c->ev.fd, NULL, 0, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
	while (n < 0 && (errno == EINTR || errno == ECONNRESET)); /* see conn_fill() */
	return n;
}
