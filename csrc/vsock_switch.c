/* SPDX-License-Identifier: Apache-2.0
 *
 * The switch channel: over a SOCK_SEQPACKET socket the caller hands in the host's ends of
 * connections and says which ports it listens on, and is asked when the guest wants one of those.
 * Each message is four numbers, with at most one descriptor. The caller is trusted; what it says
 * may be late, though: by then the guest may have gone away.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "virtio_vsock.h"

enum { CONNECT = 1, LISTEN, UNLISTEN, ACCEPT, REFUSE, RESET }; /* from the caller */
enum { ASKED = 1 };					       /* to it */

#define QUIET	  1u
#define SEQPACKET 2u
#define EVERY	  0xffffffffu /* port */
#define FIRST	  (1u << 30)  /* host port of a connection that the host made, as others do it */
#define LAST	  (2u << 30)  /* the one after the last of them */

struct message {
	uint32_t op, a, b, flags;
};

static unsigned listener(const struct vsock *v, uint32_t port)
{
	unsigned i = 0;

	while (i < v->n_listeners && v->listeners[i] != port)
		i++;
	return i;
}

bool switch_listens(const struct vsock *v, uint32_t port)
{
	return listener(v, port) < v->n_listeners || listener(v, EVERY) < v->n_listeners;
}

/* Tell the caller of the guest's wish; false if it cannot be told. */
bool switch_ask(struct vsock *v, struct conn *c)
{
	struct message m = {.op = ASKED,
			    .a = table_id(c),
			    .b = c->host_port,
			    .flags = c->type == TYPE_SEQPACKET ? SEQPACKET : 0};

	return v->channel.fd >= 0 &&
	       send(v->channel.fd, &m, sizeof(m), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(m);
}

/* A host port that is not one of a connection to that port of the guest's. */
static uint32_t free_port(struct vsock *v, uint32_t guest_port)
{
	do
		v->next_port = v->next_port + 1 < LAST ? v->next_port + 1 : FIRST;
	while (table_find(v, v->next_port, guest_port));
	return v->next_port;
}

/* The device owns fd. */
static void switch_connect(struct vsock *v, const struct message *m, int fd)
{
	struct conn *c = table_new(v);

	if (!c || conn_attach(c, fd)) {
		close(fd);
		if (c)
			table_release(c);
		return;
	}
	conn_set_type(c, m->flags & SEQPACKET ? TYPE_SEQPACKET : TYPE_STREAM);
	table_name(c, free_port(v, m->a), m->a);
	c->state = CONN_REQUESTED;
	c->quiet = m->flags & QUIET;
	c->say = SAY_REQUEST;
	vsock_line_up(c);
}

static void switch_answer(struct vsock *v, const struct message *m, int fd)
{
	struct conn *c = table_at(v, m->a);

	if (c && c->state != CONN_ASKED)
		c = NULL;
	if (c && fd >= 0 && !conn_attach(c, fd)) {
		conn_accept(c);
		return;
	}
	if (fd >= 0)
		close(fd);
	if (c)
		conn_reset(c);
}

static void switch_message(struct vsock *v, const struct message *m, int fd)
{
	unsigned i = listener(v, m->a);

	switch (m->op) {
	case CONNECT:
		if (fd >= 0)
			switch_connect(v, m, fd);
		return;
	case ACCEPT:
	case REFUSE:
		switch_answer(v, m, fd);
		return;
	case LISTEN:
		if (i == v->n_listeners && i < MAX_LISTENERS)
			v->listeners[v->n_listeners++] = m->a;
		break;
	case UNLISTEN:
		if (i < v->n_listeners)
			v->listeners[i] = v->listeners[--v->n_listeners];
		break;
	case RESET:
		vsock_transport_reset(v);
		break;
	default:
		break;
	}
	if (fd >= 0)
		close(fd);
}

/* The next message; its size, 0 at the end of file, -1 if there is none now. */
static ssize_t switch_receive(struct vsock *v, struct message *m, int *fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = {m, sizeof(*m)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = CMSG_LEN(sizeof(int))}; /* no room for two */
	const struct cmsghdr *rights;
	ssize_t n;

	do
		n = recvmsg(v->channel.fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	*fd = -1;
	rights = n < 0 ? NULL : CMSG_FIRSTHDR(&msg);
	if (rights && rights->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(rights), sizeof(*fd));
	return n;
}

static void switch_event(struct event *ev, uint32_t events)
{
	struct vsock *v = (struct vsock *)((char *)ev - offsetof(struct vsock, channel));
	struct message m;
	ssize_t n;
	int fd;

	(void)events;
	pthread_mutex_lock(&v->dev.lock);
	while ((n = switch_receive(v, &m, &fd)) > 0) {
		if (n == sizeof(m))
			switch_message(v, &m, fd);
		else if (fd >= 0)
			close(fd);
	}
	vsock_run(v);
	pthread_mutex_unlock(&v->dev.lock);
}

int vm_set_switch(struct vm *vm, int slot, int fd)
{
	struct vsock *v = vsock_in(vm, slot);
	int r;

	if (!v)
		return -ENODEV;
	v->next_port = FIRST - 1;
	v->channel = (struct event){.fd = fd, .fn = switch_event};
	r = loop_add(vm, &v->channel, EPOLLIN | EPOLLET);
	if (r)
		v->channel.fd = -1;
	return r;
}
