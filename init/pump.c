/*
 * While the program runs: one epoll loop between the connection, the program's pipes and its end.
 * It sleeps unless there is something to move, so that nothing of init's is in the measurement.
 *
 * Every descriptor is watched edge-triggered and carries a `ready` flag that only EAGAIN clears:
 * one that must wait (a full buffer, say) costs neither a system call to stop watching it nor a
 * wake-up meanwhile.
 */
#include <linux/signalfd.h>
#include <linux/wait.h>

#include "init.h"
#include "sys.h"

#define OUT_SIZE (4 * (sizeof(struct frame) + FRAME_MAX))

enum source_id { HOST, CHILDREN, INPUT, OUTPUT, ERRORS, SOURCES };

struct source {
	int fd; /* -1: closed */
	bool ready;
};

static struct pump {
	int epoll;
	int pid;
	struct source source[SOURCES];
	struct exit_report *report;
	bool over;	   /* END is sent, and AGAIN has not come */
	bool host_blocked; /* EPOLLOUT is watched only then: each credit of the host's is an edge */
	bool ended;	   /* the program is */
	bool childless;
	bool input_ended;
	size_t out_head, out_tail;
	size_t in_len;
	size_t stdin_head, stdin_tail;
	uint32_t stdin_taken;
	uint8_t out[OUT_SIZE]; /* frames, to the host */
	uint8_t in[sizeof(struct frame) + FRAME_MAX];
	uint8_t stdin[STDIN_WINDOW];
} pump;

static void source_watch(struct pump *p, enum source_id id, int op, uint32_t events)
{
	struct epoll_event e = {.events = events | EPOLLET, .data = id};
	long err = sys_epoll_ctl(p->epoll, op, p->source[id].fd, &e);

	if (err < 0)
		fail_errno(CODE_INTERNAL, "epoll", err);
}

static void source_open(struct pump *p, enum source_id id, int fd, uint32_t events)
{
	p->source[id] = (struct source){fd, fd >= 0};
	if (fd >= 0)
		source_watch(p, id, EPOLL_CTL_ADD, events);
}

static void source_close(struct source *s)
{
	sys_close(s->fd);
	*s = (struct source){-1, false};
}

static bool out_empty(const struct pump *p)
{
	return p->out_head == p->out_tail;
}

static bool out_has_room(const struct pump *p, size_t payload)
{
	return OUT_SIZE - p->out_tail >= sizeof(struct frame) + payload;
}

/* The payload is in place behind the header already. */
static void out_push(struct pump *p, uint16_t type, uint32_t length)
{
	const struct frame head = {length, type, 0};

	memcpy(p->out + p->out_tail, &head, sizeof(head));
	p->out_tail += sizeof(head) + length;
}

static bool pump_flush(struct pump *p)
{
	long n;

	if (out_empty(p) || p->host_blocked)
		return false;
	n = sys_sendto(proto_fd, p->out + p->out_head, p->out_tail - p->out_head,
		       MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0);
	if (n == -EAGAIN) {
		p->host_blocked = true;
		source_watch(p, HOST, EPOLL_CTL_MOD, EPOLLIN | EPOLLRDHUP | EPOLLOUT);
		return false;
	}
	if (n < 0)
		proto_broken(errno_text(n));
	p->out_head += n;
	if (out_empty(p))
		p->out_head = p->out_tail = 0;
	return true;
}

static bool pump_output(struct pump *p, enum source_id id, uint16_t type)
{
	struct source *s = &p->source[id];
	long n;

	if (!s->ready || !out_has_room(p, FRAME_MAX))
		return false;
	n = sys_read(s->fd, p->out + p->out_tail + sizeof(struct frame), FRAME_MAX);
	if (n == -EAGAIN)
		s->ready = false;
	else if (n <= 0)
		source_close(s);
	else
		out_push(p, type, n);
	return n != -EAGAIN;
}

static void stdin_drop(struct pump *p)
{
	p->stdin_taken += p->stdin_tail - p->stdin_head;
	p->stdin_head = p->stdin_tail = 0;
}

static bool pump_stdin(struct pump *p)
{
	struct source *s = &p->source[INPUT];
	long n;

	if (s->fd < 0) {
		stdin_drop(p);
		return false;
	}
	if (p->stdin_head == p->stdin_tail) {
		if (p->input_ended)
			source_close(s);
		return false;
	}
	if (!s->ready)
		return false;
	n = sys_write(s->fd, p->stdin + p->stdin_head, p->stdin_tail - p->stdin_head);
	if (n == -EAGAIN) {
		s->ready = false;
		return false;
	}
	if (n < 0) {
		source_close(s); /* EPIPE: the program wants no more */
		return true;
	}
	p->stdin_head += n;
	p->stdin_taken += n;
	return true;
}

static bool pump_stdin_taken(struct pump *p)
{
	if (!p->stdin_taken || !out_has_room(p, sizeof(p->stdin_taken)))
		return false;
	memcpy(p->out + p->out_tail + sizeof(struct frame), &p->stdin_taken,
	       sizeof(p->stdin_taken));
	out_push(p, FRAME_STDIN_TAKEN, sizeof(p->stdin_taken));
	p->stdin_taken = 0;
	return true;
}

static void host_stdin(struct pump *p, const uint8_t *payload, uint32_t length)
{
	size_t held = p->stdin_tail - p->stdin_head;

	if (!length)
		p->input_ended = true;
	if (held + p->stdin_taken + length > STDIN_WINDOW)
		proto_broken("more STDIN than the window allows");
	if (length > STDIN_WINDOW - p->stdin_tail) {
		memmove(p->stdin, p->stdin + p->stdin_head, held);
		p->stdin_head = 0;
		p->stdin_tail = held;
	}
	memcpy(p->stdin + p->stdin_tail, payload, length);
	p->stdin_tail += length;
}

static void host_kill(const uint8_t *payload, uint32_t length)
{
	uint32_t signal;

	if (length != sizeof(signal))
		proto_broken("a KILL frame of the wrong size");
	memcpy(&signal, payload, sizeof(signal));
	if (!signal || signal > SIGNAL_LAST)
		proto_broken("a KILL frame with no such signal");
	sys_kill(-1, signal);
}

/* Up to an AGAIN: what follows that is for the next run. */
static void host_frames(struct pump *p)
{
	size_t at = 0;
	struct frame head;

	while (p->in_len - at >= sizeof(head)) {
		const uint8_t *payload = p->in + at + sizeof(head);

		memcpy(&head, p->in + at, sizeof(head));
		if (head.length > FRAME_MAX)
			proto_broken("a frame is too long");
		if (p->in_len - at - sizeof(head) < head.length)
			break;
		if (head.type == FRAME_STDIN)
			host_stdin(p, payload, head.length);
		else if (head.type == FRAME_KILL)
			host_kill(payload, head.length);
		else if (head.type == FRAME_AGAIN && !head.length && p->over)
			p->over = false;
		else
			proto_broken("an unexpected frame");
		at += sizeof(head) + head.length;
		if (head.type == FRAME_AGAIN)
			break;
	}
	memmove(p->in, p->in + at, p->in_len - at);
	p->in_len -= at;
}

/* Never held back: init always has room for what the STDIN window lets the host send. */
static bool pump_host(struct pump *p)
{
	struct source *s = &p->source[HOST];
	long n;

	if (!s->ready)
		return false;
	n = sys_recvfrom(proto_fd, p->in + p->in_len, sizeof(p->in) - p->in_len, MSG_DONTWAIT, NULL,
			 NULL);
	if (n == -EAGAIN) {
		s->ready = false;
		return false;
	}
	if (n <= 0)
		proto_broken(n ? errno_text(n) : "closed by the host");
	p->in_len += n;
	host_frames(p);
	return true;
}

/* What the program leaves behind may hold its pipes: it ends with it. */
static void program_ended(struct pump *p, int status)
{
	struct exit_report *r = p->report;

	r->end_ns = clock_ns();
	host_mark(MARK_END);
	sys_kill(-1, SIGKILL);
	r->signal = status & 0x7f;
	r->code = r->signal ? 128 + r->signal : (status >> 8 & 0xff);
	p->ended = true;
}

static bool pump_children(struct pump *p)
{
	struct source *s = &p->source[CHILDREN];
	struct signalfd_siginfo info;
	struct rusage usage;
	int status;
	long pid;

	if (!s->ready)
		return false;
	/* While one SIGCHLD is pending the next makes no event: it is taken before the reaping. */
	sys_read(s->fd, &info, sizeof(info));
	s->ready = false;
	while ((pid = sys_wait4(-1, &status, WNOHANG, &usage)) > 0) {
		if (pid == p->pid)
			program_ended(p, status);
		usage_add(p->report, &usage);
	}
	p->childless = pid == -ECHILD;
	return true;
}

static void pump_wait(struct pump *p)
{
	struct epoll_event events[SOURCES];
	long n = sys_epoll_wait(p->epoll, events, SOURCES, -1);

	for (long i = 0; i < n; i++) {
		enum source_id id = events[i].data;

		if (id == HOST && p->host_blocked && events[i].events & ~EPOLLIN) {
			p->host_blocked = false;
			source_watch(p, HOST, EPOLL_CTL_MOD, EPOLLIN | EPOLLRDHUP);
		}
		p->source[id].ready = true;
	}
}

static bool pump_done(const struct pump *p)
{
	return p->ended && p->childless && p->source[OUTPUT].fd < 0 && p->source[ERRORS].fd < 0 &&
	       out_empty(p);
}

void pump_run(const struct program *program, struct exit_report *report)
{
	const sigset_t child = 1ul << (SIGCHLD - 1);
	struct pump *p = &pump;

	p->pid = program->pid;
	p->report = report;
	p->epoll = sys_epoll_create1(O_CLOEXEC);
	source_open(p, HOST, proto_fd, EPOLLIN | EPOLLRDHUP);
	source_open(p, CHILDREN, sys_signalfd4(-1, &child, sizeof(child), O_CLOEXEC | O_NONBLOCK),
		    EPOLLIN);
	source_open(p, INPUT, program->in, EPOLLOUT);
	source_open(p, OUTPUT, program->out[0], EPOLLIN);
	source_open(p, ERRORS, program->out[1], EPOLLIN);
	host_frames(p); /* that came together with AGAIN */

	while (!pump_done(p)) {
		bool moved = pump_children(p);

		moved |= pump_output(p, OUTPUT, FRAME_STDOUT);
		moved |= pump_output(p, ERRORS, FRAME_STDERR);
		moved |= pump_host(p);
		moved |= pump_stdin(p);
		moved |= pump_stdin_taken(p);
		moved |= pump_flush(p);
		if (!moved)
			pump_wait(p);
	}
}

static void pump_reset(struct pump *p)
{
	sys_close(p->epoll);
	for (enum source_id id = CHILDREN; id < SOURCES; id++)
		if (p->source[id].fd >= 0)
			source_close(&p->source[id]);
	p->ended = p->childless = p->input_ended = false;
	p->stdin_head = p->stdin_tail = p->stdin_taken = 0;
}

/*
 * After END. The host may take its time with what it has: it closes when it is done. What it still
 * had to say to the program comes too late: a KILL finds nobody, STDIN is thrown away.
 */
void pump_wait_again(void)
{
	struct pump *p = &pump;

	p->over = true;
	while (p->over) {
		long n = sys_read(proto_fd, p->in + p->in_len, sizeof(p->in) - p->in_len);

		if (n <= 0)
			host_reset();
		p->in_len += n;
		host_frames(p);
	}
	pump_reset(p);
}
