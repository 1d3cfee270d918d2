/*
 * Sessions: connections of the host's to the guest's port 1024, while the program runs. Each is
 * served by a process forked from init, so that all of init's code that serves one run serves one
 * here.
 */
#include <linux/prctl.h>

#include "init.h"
#include "sys.h"

#define SESSION_PORT 1024
#define SESSIONS_MAX 256 /* a process that waits for a server which it started counts, too */

int sessions_fd = -1;

static const struct config *machine;
static uint64_t boot_ns;
static int alive[SESSIONS_MAX];
static size_t count;

void sessions_open(const struct config *c, uint64_t init_ns)
{
	long fd = host_listen(SESSION_PORT);

	if (fd < 0)
		fail_errno(CODE_INTERNAL, "vsock: listening on port 1024", fd);
	sessions_fd = fd;
	machine = c;
	boot_ns = init_ns;
}

static _Noreturn void session_program(char *data, uint32_t length)
{
	struct config config;
	struct user user;
	struct program program;
	struct exit_report report = {0};

	config_parse(&config, machine, data, length);
	user_resolve(&user, config.user);
	spawn_program(&program, &config, &user);
	proto_send(FRAME_STARTED, 0, &program.start_ns, sizeof(program.start_ns));
	pump_run(&program, &report);
	usage_collect(&report);
	proto_send(FRAME_EXIT, 0, &report, sizeof(report));
	proto_send(FRAME_END, 0, NULL, 0);
	pump_linger();
}

static _Noreturn void session_main(int fd)
{
	struct frame opening;
	char *payload;

	host_drop_ports();
	pump_leave();
	forward_leave();
	sessions_leave();
	sys_prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);

	proto_fd = fd;
	proto_hello(boot_ns);
	payload = proto_read_opening(&opening);
	switch (opening.type) {
	case FRAME_CONFIG:
		session_program(payload, opening.length);
	case FRAME_GET:
		tree_get((uint8_t *)payload, opening.length);
		break;
	case FRAME_PUT:
		tree_put((uint8_t *)payload, opening.length);
		break;
	case FRAME_PROBE:
		probe_port((uint8_t *)payload, opening.length);
		break;
	default:
		proto_broken("the first frame opens no session");
	}
	proto_finish();
}

/* Takes one, if there is one; false if there was none. */
bool sessions_accept(void)
{
	long fd = host_accept(sessions_fd, 0), pid;

	if (fd < 0)
		return false;
	if (count < SESSIONS_MAX) {
		pid = sys_fork();
		if (!pid)
			session_main(fd);
		if (pid > 0)
			alive[count++] = pid;
	}
	sys_close(fd);
	return true;
}

bool sessions_reaped(int pid)
{
	for (size_t i = 0; i < count; i++)
		if (alive[i] == pid) {
			alive[i] = alive[--count];
			return true;
		}
	return false;
}

bool sessions_alive(void)
{
	return count;
}

void sessions_leave(void)
{
	sys_close(sessions_fd);
	sessions_fd = -1;
	count = 0;
}
