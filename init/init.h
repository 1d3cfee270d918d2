/* The guest's PID 1. docs/protocol.md is what it speaks with the host. */
#ifndef PYVMM_INIT_H
#define PYVMM_INIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define NSEC_PER_SEC  1000000000ull

/* host.c: the machine and the host outside. The unit tests link their own. */
enum host_mark { MARK_INIT = 1, MARK_START = 2, MARK_END = 3 };
void host_open_ports(void);
bool host_print(const char *text, size_t length);
void host_drop_ports(void);
void host_mark(enum host_mark mark);
int host_connect(void);
long host_listen(uint32_t port);
long host_accept(int listener, int flags);
_Noreturn void host_reset(void);

/* boot.c: modules and the disk, mounted on /root. The unit tests link their own. */
void boot_console(void);
void boot_modules(void);
void boot_disk(void);

/* str.c */
struct span {
	const char *at;
	size_t len;
};

struct text {
	char *buf;
	size_t size;
	size_t len;
};

void *memcpy(void *restrict dst, const void *restrict src, size_t n);
void *memmove(void *dst, const void *src, size_t n);
void *memset(void *dst, int c, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t str_len(const char *s);
const char *str_find(const char *s, char c);
struct span span_of(const char *s);
bool span_is(struct span s, struct span other);
struct span span_cut(struct span *rest, char separator);
bool span_number(struct span s, uint64_t *value);
void text_add(struct text *t, const char *s);
void text_add_span(struct text *t, struct span s);
void text_add_number(struct text *t, uint64_t n);
uint64_t clock_ns(void);
void *mem_alloc(size_t size);

/* fail.c: what ends a run or a session early */
void log_line(const char *what, long err);
_Noreturn void fail(uint32_t code, const char *part, ...);
_Noreturn void fail_errno(uint32_t code, const char *what, long err);
_Noreturn void process_end(void);
const char *errno_text(long err);

/* proto.c: frames */
enum frame_type {
	FRAME_HELLO = 1,
	FRAME_STARTED,
	FRAME_STDOUT,
	FRAME_STDERR,
	FRAME_EXIT,
	FRAME_FILE_BEGIN,
	FRAME_FILE_DATA,
	FRAME_FILE_END,
	FRAME_FAILED,
	FRAME_END,
	FRAME_STDIN_TAKEN,
};

enum host_frame_type {
	FRAME_CONFIG = 1,
	FRAME_STDIN,
	FRAME_KILL,
	FRAME_AGAIN,
	FRAME_RESIZE,
	FRAME_GET,
	FRAME_PUT,
	FRAME_PROBE,
};

#define FRAME_MAX     65536u
#define CONFIG_MAX    (16u << 20)
#define STDIN_WINDOW  (256u << 10)
#define SIGNAL_LAST   64
#define CODE_INTERNAL 125
#define CODE_NOEXEC   126
#define CODE_NOTFOUND 127

struct frame {
	uint32_t length;
	uint16_t type;
	uint16_t index;
};

extern int proto_fd;
void proto_send(uint16_t type, uint16_t index, const void *payload, uint32_t length);
void proto_hello(uint64_t init_ns);
char *proto_read_opening(struct frame *head);
const uint8_t *proto_read_frame(struct frame *head);
_Noreturn void proto_finish(void);
_Noreturn void proto_broken(const char *why);

/* tty.c */
struct tty_size {
	uint16_t rows;
	uint16_t columns;
};

int tty_open(int *slave, struct tty_size size);
void tty_resize(int master, struct tty_size size);
long tty_control(int slave);

/* config.c */
struct config {
	char **args;
	char **env; /* room for the defaults and the NULL is kept at its end */
	char **outputs;
	uint16_t *ports; /* published */
	size_t arg_count, env_count, output_count, port_count;
	size_t env_given; /* of env_count: those that are no defaults */
	const char *workdir;
	const char *user;
	const char *hostname;
	uint64_t clock_ns;
	uint64_t limit; /* bytes of each output that the host keeps */
	struct tty_size size;
	bool stdin_pipe;
	bool privileged;
	bool tty;
	bool hold; /* no program: sessions only */
};

void config_parse(struct config *c, const struct config *base, char *data, uint32_t length);
const char *config_env(const struct config *c, const char *key);
void config_env_default(struct config *c, const char *key, const char *value);

/* user.c */
struct user {
	uint32_t uid;
	uint32_t gid;
	const char *home;
	uint32_t *groups;
	size_t group_count;
};

void user_resolve(struct user *u, const char *name);

/* mounts.c and net.c */
void mounts_make(bool privileged);
void mounts_switch_root(void);
void mounts_protect(void);
void net_loopback(void);
void net_names(const char *hostname);

/* spawn.c and seccomp.c */
#define PIPE_SIZE (1 << 20)

struct program {
	int pid;    /* 0: none, the machine is held */
	int in;	    /* -1: the program reads /dev/null */
	int out[2]; /* of a terminal only the first */
	bool tty;
	uint64_t start_ns;
};

void spawn_program(struct program *program, struct config *c, const struct user *u);
long seccomp_install(void);

/* usage.c */
struct exit_report {
	uint32_t code;
	uint32_t signal;
	uint64_t end_ns;
	uint64_t user_us;
	uint64_t system_us;
	uint64_t peak_rss;
	uint64_t minor_faults;
	uint64_t major_faults;
	uint64_t block_in;
	uint64_t block_out;
	uint64_t voluntary_switches;
	uint64_t involuntary_switches;
	uint64_t steal_ns;
	uint64_t oom_kills;
};

struct rusage;
void usage_start(void);
void usage_add(struct exit_report *r, const struct rusage *u);
void usage_collect(struct exit_report *r);

/* pump.c and files.c */
void pump_run(const struct program *p, struct exit_report *r);
void pump_wait_again(void);
void pump_leave(void);
_Noreturn void pump_linger(void);
void files_send(const struct config *c);
void files_remove(const struct config *c);

/* session.c: what else the host asks of a running guest, each in a process of its own */
extern int sessions_fd; /* listens, -1 in those processes */
void sessions_open(const struct config *c, uint64_t init_ns);
bool sessions_accept(void);
bool sessions_reaped(int pid);
bool sessions_alive(void);
void sessions_leave(void);

/* probe.c */
long loopback_connect(int family, uint16_t port);
void probe_port(const uint8_t *payload, uint32_t length);

/* forward.c: connections of the host's to published ports, all in one process */
extern int ports_fd; /* readable if there is one; -1: no ports */
void forward_open(const struct config *c);
bool forward_start(void);
void forward_leave(void);
bool forward_reaped(int pid);

/* tree_get.c and tree_put.c: files to and from the host, in a session's process; END is not theirs
 * to send */
void tree_get(const uint8_t *payload, uint32_t length);
void tree_put(const uint8_t *payload, uint32_t length);

_Noreturn void init_main(void);

#endif
