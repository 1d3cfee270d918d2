/*
 * Published ports: each connection of the host's to guest vsock port 65536 + N is joined with a TCP
 * connection to port N of the loopback. One process for all of them, forked at the first.
 *
 * Every descriptor is watched edge-triggered, and only EAGAIN clears what is known of it. What one
 * side sends and the other does not take yet is kept in a buffer that is there only then; no more
 * is read meanwhile.
 */
#include <linux/mman.h>

#include "init.h"
#include "sys.h"

#define FORWARD_BASE 65536u
#define JOINTS_MAX   4096
#define BUFFER	     65536
#define NOFILE	     (2 * JOINTS_MAX + 1024)
#define EVENTS	     64
#define LISTENER     (1ull << 32) /* in an event's data, with the port's ordinal */

struct side {
	int fd;
	bool in, out; /* may be readable, writable */
	bool ended;   /* its end of file is read, */
	bool passed;  /* and told to the other side */
	uint8_t *buffer;
	uint32_t head, tail; /* of what is read and not yet written */
};

struct joint {
	struct side side[2]; /* the host's, the server's */
	int family;	     /* of the server's address that is being tried, 0: connected */
	uint16_t port;
	bool used, queued;
};

int ports_fd = -1;

static const struct config *machine;
static int *listeners;
static int forwarder;

static int epoll;
static struct joint joints[JOINTS_MAX];
static uint16_t queue[JOINTS_MAX]; /* of those that have something to do; a ring */
static uint32_t queue_head, queue_tail;

static void watch(int set, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event e = {.events = events | EPOLLET, .data = data};
	long err = sys_epoll_ctl(set, EPOLL_CTL_ADD, fd, &e);

	if (err < 0)
		fail_errno(CODE_INTERNAL, "epoll", err);
}

void forward_open(const struct config *c)
{
	if (!c->port_count)
		return;
	machine = c;
	listeners = mem_alloc(c->port_count * sizeof(listeners[0]));
	ports_fd = sys_epoll_create1(O_CLOEXEC);
	for (size_t i = 0; i < c->port_count; i++) {
		long fd = host_listen(FORWARD_BASE + c->ports[i]);

		if (fd < 0)
			fail_errno(CODE_INTERNAL, "vsock: listening for a published port", fd);
		listeners[i] = fd;
		watch(ports_fd, fd, EPOLLIN, LISTENER + i);
	}
}

static void queue_add(struct joint *j)
{
	if (j->queued)
		return;
	j->queued = true;
	queue[queue_tail++ % JOINTS_MAX] = j - joints;
}

static void joint_close(struct joint *j)
{
	for (int i = 0; i < 2; i++) {
		struct side *s = &j->side[i];

		if (s->fd >= 0)
			sys_close(s->fd);
		if (s->buffer)
			sys_munmap(s->buffer, BUFFER);
	}
	*j = (struct joint){.queued = j->queued};
}

static bool joint_connect(struct joint *j, int family)
{
	long fd = loopback_connect(family, j->port);
	const int on = 1;

	if (fd < 0)
		return false;
	j->family = family;
	j->side[1] = (struct side){.fd = fd};
	sys_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	watch(epoll, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP, (uint64_t)(j - joints) * 2 + 1);
	return true;
}

/* The loopback's answer is there at once, but connect() may not have waited for it. */
static bool joint_connected(struct joint *j)
{
	struct side *s = &j->side[1];
	unsigned length = sizeof(int);
	int error = 0;

	if (!s->out)
		return false;
	sys_getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &length);
	if (!error) {
		j->family = 0;
		return true;
	}
	sys_close(s->fd);
	*s = (struct side){.fd = -1};
	if (j->family == AF_INET6 || !joint_connect(j, AF_INET6))
		joint_close(j);
	return false;
}

/* All that is left after a short write is kept. False: the joint cannot go on. */
static bool side_write(struct side *from, struct side *to, const uint8_t *data, uint32_t length)
{
	long n = to->out ? sys_sendto(to->fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0)
			 : -EAGAIN;
	long buffer;

	if (n < 0 && n != -EAGAIN)
		return false;
	if (n < 0) {
		to->out = false;
		n = 0;
	}
	if (from->buffer) {
		from->head += n;
	} else if (n < length) {
		buffer = sys_mmap(NULL, BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				  -1, 0);
		if (buffer < 0)
			return false;
		from->buffer = (uint8_t *)buffer;
		from->head = 0;
		from->tail = length - n;
		memcpy(from->buffer, data + n, from->tail);
	}
	if (from->buffer && from->head == from->tail) {
		sys_munmap(from->buffer, BUFFER);
		from->buffer = NULL;
	}
	return true;
}

/* One read and one write. False: the joint cannot go on; *moved: there may be more to do. */
static bool side_step(struct side *from, struct side *to, bool *moved)
{
	static uint8_t scratch[BUFFER];
	long n;

	if (from->buffer) {
		if (!to->out)
			return true;
		*moved = true;
		return side_write(from, to, from->buffer + from->head, from->tail - from->head);
	}
	if (from->ended && !from->passed) {
		from->passed = true;
		sys_shutdown(to->fd, SHUT_WR);
	}
	if (from->ended || !from->in)
		return true;
	n = sys_recvfrom(from->fd, scratch, sizeof(scratch), MSG_DONTWAIT, NULL, NULL);
	if (n == -EAGAIN) {
		from->in = false;
		return true;
	}
	*moved = true;
	from->ended = !n;
	return n > 0 ? side_write(from, to, scratch, n) : !n;
}

static void joint_step(struct joint *j)
{
	struct side *a = &j->side[0], *b = &j->side[1];
	bool moved = false;

	if (!j->used || (j->family && !joint_connected(j)))
		return;
	if (!side_step(a, b, &moved) || !side_step(b, a, &moved) || (a->passed && b->passed))
		joint_close(j);
	else if (moved)
		queue_add(j);
}

static struct joint *joint_free(void)
{
	static uint32_t next;

	for (uint32_t tried = 0; tried < JOINTS_MAX; tried++, next++)
		if (!joints[next % JOINTS_MAX].used)
			return &joints[next++ % JOINTS_MAX];
	return NULL;
}

/* One that cannot be had any more, or be joined, is closed at once: the host sees a refusal. */
static void forward_accept(size_t port)
{
	for (;;) {
		long fd = host_accept(listeners[port], SOCK_NONBLOCK);
		struct joint *j;

		if (fd < 0)
			return;
		j = joint_free();
		if (!j) {
			sys_close(fd);
			continue;
		}
		j->used = true;
		j->port = machine->ports[port];
		j->side[0] = (struct side){.fd = fd};
		j->side[1] = (struct side){.fd = -1};
		if (joint_connect(j, AF_INET) || joint_connect(j, AF_INET6))
			watch(epoll, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP,
			      (uint64_t)(j - joints) * 2);
		else
			joint_close(j);
	}
}

static void forward_event(const struct epoll_event *e)
{
	struct joint *j;
	struct side *s;

	if (e->data >= LISTENER) {
		forward_accept(e->data - LISTENER);
		return;
	}
	j = &joints[e->data / 2];
	s = &j->side[e->data % 2];
	s->in |= (e->events & ~EPOLLOUT) != 0;
	s->out |= (e->events & ~(EPOLLIN | EPOLLRDHUP)) != 0;
	queue_add(j);
}

/* Each has one turn, then the next, and the events that came meanwhile. */
static _Noreturn void forward_main(void)
{
	const struct rlimit files = {NOFILE, NOFILE};

	sys_setrlimit(RLIMIT_NOFILE, &files);
	epoll = sys_epoll_create1(O_CLOEXEC);
	for (size_t i = 0; i < machine->port_count; i++)
		watch(epoll, listeners[i], EPOLLIN, LISTENER + i);
	for (;;) {
		struct epoll_event events[EVENTS];
		uint32_t turns = queue_tail - queue_head;
		long n = sys_epoll_wait(epoll, events, EVENTS, turns ? 0 : -1);

		for (long i = 0; i < n; i++)
			forward_event(&events[i]);
		while (turns--) {
			struct joint *j = &joints[queue[queue_head++ % JOINTS_MAX]];

			j->queued = false;
			joint_step(j);
		}
	}
}

/* False: it cannot be, for want of memory, say. */
bool forward_start(void)
{
	forwarder = sys_fork();
	if (forwarder)
		return forwarder > 0;
	host_drop_ports();
	pump_leave();
	sessions_leave();
	sys_close(ports_fd);
	forward_main();
}

void forward_leave(void)
{
	forwarder = 0;
	if (ports_fd < 0)
		return;
	sys_close(ports_fd);
	ports_fd = -1;
	for (size_t i = 0; i < machine->port_count; i++)
		sys_close(listeners[i]);
}

bool forward_reaped(int pid)
{
	if (pid != forwarder)
		return false;
	forwarder = 0;
	return true;
}
