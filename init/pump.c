/*
 * While the program runs: one epoll loop between the connection, the program's pipes and its end.
 * It sleeps unless there is something to move, so that nothing of init's is in the measurement.
 *
 * Every descriptor is watched edge-triggered and carries a `ready` flag that only EAGAIN clears:
 * one that must wait (a full buffer, say) costs neither a system call to stop watching it nor a
 * wake-up meanwhile.
 */
#include <linux/sched.h>
#include <linux/signalfd.h>
#include <linux/wait.h>

#include "pump.h"

static struct pump pump;

static void source_watch(struct pump *p, enum source_id id, int op, uint32_t events)
{
	struct epoll_event e = {.events = events | EPOLLET, .data = id};
	long err = sys_epoll_ctl(p->epoll, op, p->source[id].fd, &e);

	if (err < 0)
		fail_errno(CODE_INTERNAL, "epoll", err);
}

static void source_open(struct pump *p, enum source_id id, int fd, uint32_t events)
{
	p->source[id] = (struct source){fd, fd >= 0, 0};
	if (fd >= 0)
		source_watch(p, id, EPOLL_CTL_ADD, events);
}

void source_close(struct source *s)
{
	sys_close(s->fd);
	*s = (struct source){-1, false, 0};
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
	n = sys_sendto(p->source[HOST].fd, p->out + p->out_head, p->out_tail - p->out_head,
		       MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0);
	if (n == -EAGAIN) {
		p->host_blocked = true;
		source_watch(p, HOST, EPOLL_CTL_MOD, EPOLLIN | EPOLLRDHUP | EPOLLOUT);
		return false;
	}
	if (n < 0)
		pump_host_gone(p, errno_text(n));
	p->out_head += n;
	if (out_empty(p))
		p->out_head = p->out_tail = 0;
	return true;
}

static bool pump_output(struct pump *p, enum source_id id, uint16_t type)
{
	struct source *s = &p->source[id];
	long n;

	if (s->fd < 0 || !s->ready || !out_has_room(p, OUTPUT_MAX))
		return false;
	n = sys_read(s->fd, p->out + p->out_tail + sizeof(struct frame), OUTPUT_MAX);
	if (n == -EAGAIN)
		s->ready = false;
	else if (n <= 0)
		source_close(s); /* EIO is the end of a terminal */
	else if (!p->lingers)
		out_push(p, type, n);
	if (n > 0 && p->ended)
		s->left -= n;
	return n != -EAGAIN;
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

/*
 * What the program leaves behind ends with it, and so do the sessions: they may hold its pipes. A
 * session's leaves servers running: what is in its pipes now is its own, what comes later theirs.
 */
static void program_ended(struct pump *p, int status)
{
	struct exit_report *r = p->report;

	r->end_ns = clock_ns();
	host_mark(MARK_END);
	if (!p->session)
		sys_kill(-1, SIGKILL);
	r->signal = status & 0x7f;
	r->code = r->signal ? 128 + r->signal : (status >> 8 & 0xff);
	p->ended = true;
	p->crowded = sessions_alive();
	for (enum source_id id = OUTPUT; id <= ERRORS; id++) {
		p->source[id].ready = p->source[id].fd >= 0;
		p->source[id].left = PIPE_SIZE;
	}
}

static void child_ended(struct pump *p, int pid, int status, const struct rusage *usage)
{
	if (sessions_reaped(pid))
		return;
	if (forward_reaped(pid)) {
		if (!p->ended)
			source_open(p, PORTS, ports_fd, EPOLLIN);
		return;
	}
	/* Killed together with the sessions, whose orphans init has got: nobody knows whose. */
	if (p->ended && p->crowded)
		return;
	usage_add(p->report, usage);
	if (pid == p->pid)
		program_ended(p, status);
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
	while ((pid = sys_wait4(-1, &status, WNOHANG, &usage)) > 0)
		child_ended(p, pid, status, &usage);
	p->childless = pid == -ECHILD;
	return true;
}

/* A new process of init's begins in here, and does not come back. */
static bool pump_sessions(struct pump *p)
{
	struct source *s = &p->source[SESSIONS];

	if (!s->ready || p->ended)
		return false;
	s->ready = sessions_accept();
	return s->ready;
}

/* The forwarder takes all that comes, for as long as it lives. */
static bool pump_ports(struct pump *p)
{
	struct source *s = &p->source[PORTS];

	if (!s->ready || p->ended)
		return false;
	s->ready = false;
	if (!forward_start())
		return false;
	source_watch(p, PORTS, EPOLL_CTL_DEL, 0);
	s->fd = -1;
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
		p->source[id].ready = p->source[id].fd >= 0;
	}
}

static bool output_done(const struct pump *p, const struct source *s)
{
	return s->fd < 0 || (p->session && (!s->ready || s->left <= 0));
}

static bool pump_done(const struct pump *p)
{
	return p->ended && (p->childless || p->session) && output_done(p, &p->source[OUTPUT]) &&
	       output_done(p, &p->source[ERRORS]) && out_empty(p);
}

/*
 * A program that writes is not to be interrupted for what it has written: batch tasks do not
 * preempt (kernel/sched/fair.c), so that where both share a CPU the program goes on until it waits,
 * or its pipe is full, or its slice is over; and its pipe has much in one go. Not for init's
 * children.
 */
static void pump_be_patient(void)
{
	const int priority = 0;

	sys_sched_setscheduler(0, SCHED_BATCH | SCHED_RESET_ON_FORK, &priority);
}

void pump_run(const struct program *program, struct exit_report *report)
{
	const sigset_t child = 1ul << (SIGCHLD - 1);
	struct pump *p = &pump;

	p->pid = program->pid;
	p->tty = program->tty;
	p->input_last = '\n';
	p->report = report;
	p->epoll = sys_epoll_create1(O_CLOEXEC);
	source_open(p, HOST, proto_fd, EPOLLIN | EPOLLRDHUP);
	source_open(p, CHILDREN, sys_signalfd4(-1, &child, sizeof(child), O_CLOEXEC | O_NONBLOCK),
		    EPOLLIN);
	source_open(p, INPUT, program->in, EPOLLOUT);
	source_open(p, OUTPUT, program->out[0], EPOLLIN);
	source_open(p, ERRORS, program->out[1], EPOLLIN);
	source_open(p, SESSIONS, sessions_fd, EPOLLIN);
	source_open(p, PORTS, ports_fd, EPOLLIN);
	pump_be_patient();
	host_frames(p); /* that came together with AGAIN */

	while (!pump_done(p)) {
		bool moved = pump_children(p);

		moved |= pump_output(p, OUTPUT, FRAME_STDOUT);
		moved |= pump_output(p, ERRORS, FRAME_STDERR);
		moved |= pump_host(p);
		moved |= pump_stdin(p);
		moved |= pump_stdin_taken(p);
		if (!moved || !out_has_room(p, OUTPUT_MAX))
			moved |= pump_flush(p); /* all that there is at once */
		moved |= pump_sessions(p);
		moved |= pump_ports(p);
		if (!moved && !pump_done(p))
			pump_wait(p);
	}
}

static void pump_reset(struct pump *p)
{
	sys_close(p->epoll);
	for (enum source_id id = CHILDREN; id <= ERRORS; id++)
		if (p->source[id].fd >= 0)
			source_close(&p->source[id]);
	p->ended = p->childless = p->crowded = p->input_ended = false;
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

/* In a process of init's that has just begun: what it was forked from is init's. */
void pump_leave(void)
{
	struct pump *p = &pump;

	pump_reset(p);
	source_close(&p->source[HOST]);
	proto_fd = -1;
	p->session = true;
	p->pid = 0;
	p->host_blocked = false;
	p->in_len = p->out_head = p->out_tail = 0;
}

/*
 * A session after END, or without a host: for as long as something that its program started runs,
 * whose output goes nowhere. Without this process it would be the main program's.
 */
void pump_linger(void)
{
	struct pump *p = &pump;

	p->lingers = true;
	p->out_head = p->out_tail = 0;
	while (!p->childless || p->source[HOST].fd >= 0) {
		bool moved = pump_children(p);

		moved |= pump_output(p, OUTPUT, FRAME_STDOUT);
		moved |= pump_output(p, ERRORS, FRAME_STDERR);
		moved |= pump_host(p);
		if (!moved)
			pump_wait(p);
	}
	sys_exit_group(0);
	__builtin_unreachable();
}

/* Before END: the run ends with its host. So does a session, which leaves alone what others began.
 */
void pump_host_gone(struct pump *p, const char *why)
{
	if (!p->session)
		proto_broken(why);
	if (!p->ended)
		sys_kill(-p->pid, SIGKILL);
	source_close(&p->source[HOST]);
	pump_linger();
}
