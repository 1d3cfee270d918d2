/* What the host says while the program runs. */
#include "pump.h"

#define VEOF_KEY 4 /* ^D, a new terminal's */

static void stdin_drop(struct pump *p)
{
	p->stdin_taken += p->stdin_tail - p->stdin_head;
	p->stdin_head = p->stdin_tail = 0;
}

/* At a terminal that is a key: it hands over a line that is begun, and a second time ends the
 * input. */
static void stdin_end(struct pump *p, struct source *s)
{
	static const char keys[] = {VEOF_KEY, VEOF_KEY};

	if (p->tty && s->ready)
		s->ready = sys_write(s->fd, keys, p->input_last == '\n' ? 1 : 2) != -EAGAIN;
	if (s->ready || !p->tty)
		source_close(s);
}

bool pump_stdin(struct pump *p)
{
	struct source *s = &p->source[INPUT];
	long n;

	if (s->fd < 0) {
		stdin_drop(p);
		return false;
	}
	if (p->stdin_head == p->stdin_tail) {
		if (p->input_ended)
			stdin_end(p, s);
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
	p->input_last = p->stdin[p->stdin_head + n - 1];
	p->stdin_head += n;
	p->stdin_taken += n;
	return true;
}

static void host_stdin(struct pump *p, const uint8_t *payload, uint32_t length)
{
	size_t held = p->stdin_tail - p->stdin_head;

	if (!length)
		p->input_ended = true;
	if (held + p->stdin_taken + length > STDIN_WINDOW)
		pump_host_gone(p, "more STDIN than the window allows");
	if (length > STDIN_WINDOW - p->stdin_tail) {
		memmove(p->stdin, p->stdin + p->stdin_head, held);
		p->stdin_head = 0;
		p->stdin_tail = held;
	}
	memcpy(p->stdin + p->stdin_tail, payload, length);
	p->stdin_tail += length;
}

static void host_kill(struct pump *p, const uint8_t *payload, uint32_t length)
{
	uint32_t signal;

	if (length != sizeof(signal))
		pump_host_gone(p, "a KILL frame of the wrong size");
	memcpy(&signal, payload, sizeof(signal));
	if (!signal || signal > SIGNAL_LAST)
		pump_host_gone(p, "a KILL frame with no such signal");
	if (!p->session)
		sys_kill(-1, signal);
	else if (!p->ended)
		sys_kill(-p->pid, signal);
}

static void host_resize(struct pump *p, const uint8_t *payload, uint32_t length)
{
	struct tty_size size;

	if (length != sizeof(size) || !p->tty)
		pump_host_gone(p, "a RESIZE frame of the wrong size, or without a terminal");
	memcpy(&size, payload, sizeof(size));
	if (p->source[OUTPUT].fd >= 0)
		tty_resize(p->source[OUTPUT].fd, size);
}

/* Up to an AGAIN: what follows that is for the next run. */
void host_frames(struct pump *p)
{
	size_t at = 0;
	struct frame head;

	while (p->in_len - at >= sizeof(head)) {
		const uint8_t *payload = p->in + at + sizeof(head);

		memcpy(&head, p->in + at, sizeof(head));
		if (head.length > FRAME_MAX)
			pump_host_gone(p, "a frame is too long");
		if (p->in_len - at - sizeof(head) < head.length)
			break;
		if (head.type == FRAME_STDIN)
			host_stdin(p, payload, head.length);
		else if (head.type == FRAME_KILL)
			host_kill(p, payload, head.length);
		else if (head.type == FRAME_RESIZE)
			host_resize(p, payload, head.length);
		else if (head.type == FRAME_AGAIN && !head.length && p->over)
			p->over = false;
		else
			pump_host_gone(p, "an unexpected frame");
		at += sizeof(head) + head.length;
		if (head.type == FRAME_AGAIN)
			break;
	}
	memmove(p->in, p->in + at, p->in_len - at);
	p->in_len -= at;
}

/* Never held back: init always has room for what the STDIN window lets the host send. */
bool pump_host(struct pump *p)
{
	struct source *s = &p->source[HOST];
	long n;

	if (!s->ready)
		return false;
	n = sys_recvfrom(s->fd, p->in + p->in_len, sizeof(p->in) - p->in_len, MSG_DONTWAIT, NULL,
			 NULL);
	if (n == -EAGAIN) {
		s->ready = false;
		return false;
	}
	if (p->lingers) {
		if (n <= 0)
			source_close(s);
		return true;
	}
	if (n <= 0)
		pump_host_gone(p, n ? errno_text(n) : "closed by the host");
	p->in_len += n;
	host_frames(p);
	return true;
}
