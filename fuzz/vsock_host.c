/* SPDX-License-Identifier: Apache-2.0 */
/* The host's ends of connections: the switch channel, and sockets like any other. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vsock_flows.h"

#define ASKS  64
#define QUIET 1u
#define EVERY 0xffffffffu

enum { CONNECT = 1, LISTEN, UNLISTEN, ACCEPT, REFUSE, RESET };

struct message {
	uint32_t op, a, b, flags;
};

unsigned resets_sent;

static int channel;
static uint32_t next_port;
static struct message asks[ASKS];
static unsigned n_asks;

/* narrow: few messages of the device's are on the way at once. */
void host_begin(bool narrow)
{
	int ends[2], little = 4096;

	check(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends), "socketpair");
	if (narrow)
		setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &little, sizeof(little));
	channel = keep_fd(ends[0]);
	check(!vm_set_switch(vm, 0, ends[1]), "vm_set_switch");
	next_port = 5000;
	n_asks = resets_sent = 0;
}

/* fd (-1: none) goes with it, and is closed here. */
static bool say(const struct message *m, size_t size, int fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {(void *)(uintptr_t)m, size};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	bool sent;

	if (fd >= 0) {
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
		control.header = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
						  .cmsg_type = SCM_RIGHTS,
						  .cmsg_len = CMSG_LEN(sizeof(int))};
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	}
	sent = sendmsg(channel, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size;
	if (fd >= 0)
		check(!close(fd), "close");
	trace("  caller: op %u a %u b %u flags %u fd %d\n", m->op, m->a, m->b, m->flags, fd);
	progress += sent;
	return sent;
}

/* A pair: the flow's own end, and the device's, which may have a short buffer. */
static int pair(struct flow *f, uint8_t flags)
{
	int type = f->seqpacket ? SOCK_SEQPACKET : SOCK_STREAM, ends[2], little = 4096;

	check(!socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, ends), "socketpair");
	if (flags & 0x80 && !f->seqpacket)
		setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &little, sizeof(little));
	if (flags & 0x40 && !f->seqpacket)
		setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &little, sizeof(little));
	f->fd = keep_fd(ends[0]);
	f->had_fd = true;
	return ends[1];
}

void host_connect(uint8_t flags)
{
	struct flow *f = flow_new();
	struct message m = {.op = CONNECT, .flags = flags & 1 ? QUIET : 0};

	if (!f)
		return;
	f->seqpacket = flags & 2 && seqpacket_offered;
	if (f->seqpacket)
		m.flags |= SEQPACKET;
	f->wants_ok = !(flags & 1);
	f->guest_port = m.a = next_port++;
	if (!say(&m, sizeof(m), pair(f, flags)))
		f->vague = true;
}

void host_offer(uint8_t flags)
{
	struct flow *f = flow_new();
	int fd;

	if (!f)
		return;
	f->host_port = next_port++;
	fd = pair(f, flags);
	check(!vm_offer_port(vm, 0, f->host_port, fd), "vm_offer_port");
}

void host_listen(uint8_t what)
{
	struct message m = {.op = what & 1 ? LISTEN : UNLISTEN, .a = EVERY};

	if (what & 2)
		m.a = 3000 + what / 4;
	say(&m, sizeof(m), -1);
}

static void hear(void)
{
	struct message m;

	while (n_asks < ASKS && recv(channel, &m, sizeof(m), MSG_DONTWAIT) == sizeof(m)) {
		check(m.op == 1 && (m.flags & ~2u) == 0, "the device says something else");
		asks[n_asks++] = m;
		trace("  asked: a %u b %u flags %u\n", m.a, m.b, m.flags);
		progress++;
	}
}

/* Answer the guest's first request that waits for one. */
void host_answer(bool accept, uint8_t flags)
{
	struct flow *f = NULL;
	struct message m = {.op = accept ? ACCEPT : REFUSE};

	hear();
	if (!n_asks)
		return;
	m.a = asks[0].a;
	for (unsigned i = 0; i < FLOWS; i++)
		if (flows[i].used && flows[i].host_port == asks[0].b &&
		    flows[i].guest != GUEST_NONE && !flows[i].had_fd)
			f = &flows[i];
	check(hostile || !f || f->vague || f->seqpacket == (asks[0].flags == 2), "the other type");
	memmove(asks, asks + 1, --n_asks * sizeof(*asks));
	if (!accept || !f)
		m.op = REFUSE;
	if (!say(&m, sizeof(m), m.op == ACCEPT ? pair(f, flags) : -1) && f)
		f->vague = true;
}

void host_reset(void)
{
	struct message m = {.op = RESET};

	if (!say(&m, sizeof(m), -1))
		return;
	resets_sent++;
	settle(); /* when it comes to that, it is over for what began meanwhile, too */
	flows_forget(false);
}

/* A message that no caller sends. */
void host_say_anything(void)
{
	struct message m = {.op = below(9)};
	int fd = -1;

	hostile = true;
	m.a = in16();
	m.b = in8();
	m.flags = in8() & 7u;
	if (n_asks && below(2))
		m.a = asks[below(n_asks)].a;
	if (below(2))
		check((fd = dup(channel)) >= 0, "dup");
	say(&m, below(8) ? sizeof(m) : below(sizeof(m)) + 1u, fd);
}

void host_write(struct flow *f, uint32_t len)
{
	ssize_t n;

	if (f->fd < 0 || f->host_shut_write || !len)
		return;
	len = MIN(len, CHUNK);
	if (f->seqpacket && (f->to_guest.last + 1) % MESSAGES_MAX == f->to_guest.first)
		return;
	n = send(f->fd, flow_bytes(f, false, f->host_tx), len, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n <= 0)
		return;
	f->host_tx += (size_t)n;
	progress++;
	f->vague |= f->seqpacket && f->guest == GUEST_OVER; /* see message_lost() */
	if (f->seqpacket)
		message_put(&f->to_guest, f->host_tx);
}

/* "OK <port>" comes first, all at once. */
static bool read_ok(struct flow *f)
{
	char line[16] = "", expected[16];
	ssize_t n = recv(f->fd, line, sizeof(line) - 1, MSG_DONTWAIT | MSG_PEEK);
	size_t len = (size_t)snprintf(expected, sizeof(expected), "OK %u\n", f->host_port);

	if (n <= 0) {
		f->host_eof |= n == 0 || errno != EAGAIN;
		return false;
	}
	f->wants_ok = false;
	if (hostile || f->vague)
		return true;
	check((size_t)n >= len && !memcmp(line, expected, len), "no OK");
	check(recv(f->fd, line, len, MSG_DONTWAIT) == (ssize_t)len, "recv");
	return true;
}

void host_read(struct flow *f, uint32_t len)
{
	static uint8_t data[CHUNK + 1];
	struct messages *m = &f->to_host;
	ssize_t n;

	if (f->fd < 0 || f->host_eof || f->host_shut_read || (f->wants_ok && !read_ok(f)))
		return;
	n = recv(f->fd, data, f->seqpacket ? sizeof(data) : MIN(len, CHUNK), MSG_DONTWAIT);
	if (n <= 0) {
		f->host_eof |= (n == 0 && len) || (n < 0 && errno != EAGAIN);
		return;
	}
	progress++;
	goal_met |= f->rx > 0;
	if (!hostile && !f->vague) {
		check(f->host_rx + (size_t)n <= f->tx, "data that the guest did not send");
		check(!memcmp(data, flow_bytes(f, true, f->host_rx), (size_t)n), "other data");
	}
	f->host_rx += (size_t)n;
	if (!f->seqpacket || hostile || f->vague)
		return;
	check(m->first != m->last && m->ends[m->first] == f->host_rx, "another message");
	m->first = (m->first + 1) % MESSAGES_MAX;
}

void host_shut(struct flow *f, uint8_t how)
{
	if (f->fd < 0)
		return;
	trace("  shut %u: %u\n", f->host_port, how % 4);
	progress++;
	if (how % 4 == 0) {
		drop_fd(f->fd);
		f->fd = -1;
		return;
	}
	f->host_shut_read |= how & 1;
	f->host_shut_write |= how & 2;
	shutdown(f->fd, how % 4 - 1);
}
