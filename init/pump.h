/* The state that pump.c and pump_host.c share. */
#ifndef PYVMM_INIT_PUMP_H
#define PYVMM_INIT_PUMP_H

#include "init.h"
#include "sys.h"

/* A whole frame of output is one packet: Linux's are 64 KiB at most. */
#define OUTPUT_MAX (FRAME_MAX - sizeof(struct frame))
#define OUT_SIZE   (16 * FRAME_MAX + 1024) /* of them as many as fill a pipe, and some small ones */

enum source_id { HOST, CHILDREN, INPUT, OUTPUT, ERRORS, SESSIONS, PORTS, SOURCES };

struct source {
	int fd; /* -1: closed */
	bool ready;
	long left; /* of what a session's program may have written when it ended */
};

struct pump {
	int epoll;
	int pid; /* the program's, 0: none */
	struct source source[SOURCES];
	struct exit_report *report;
	bool session; /* not PID 1: what it kills and waits for is its own program */
	bool tty;
	bool over;	   /* END is sent, and AGAIN has not come */
	bool lingers;	   /* nothing is for the host any more */
	bool host_blocked; /* EPOLLOUT is watched only then: each credit of the host's is an edge */
	bool ended;	   /* the program is */
	bool crowded;	   /* there were sessions when it ended */
	bool childless;
	bool input_ended;
	uint8_t input_last;
	size_t out_head, out_tail;
	size_t in_len;
	size_t stdin_head, stdin_tail;
	uint32_t stdin_taken;
	uint8_t out[OUT_SIZE]; /* frames, to the host */
	uint8_t in[sizeof(struct frame) + FRAME_MAX];
	uint8_t stdin[STDIN_WINDOW];
};

/* pump_host.c */
void host_frames(struct pump *p);
bool pump_host(struct pump *p);
bool pump_stdin(struct pump *p);

/* pump.c */
void source_close(struct source *s);
_Noreturn void pump_host_gone(struct pump *p, const char *why);

#endif
