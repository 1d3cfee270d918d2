/* The life of a guest, from the kernel's exec of /init to the reset. */
#include <linux/prctl.h>
#include <linux/time.h>

#include "init.h"
#include "sys.h"

/*
 * The kernel drops a fatal signal to init unless init handles it, so blocking them all loses
 * nothing. Not dumpable, /proc/1 belongs to a root with capabilities: the program cannot look in.
 */
static void init_shield(void)
{
	const sigset_t all = ~0ul;

	sys_rt_sigprocmask(SIG_SETMASK, &all, NULL, sizeof(all));
	sys_prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	sys_umask(0);
}

/* Only forward: a guest that has kvm-clock knows the time, which the host told a moment ago. */
static void clock_set(uint64_t ns)
{
	struct sys_time t;
	long err;

	sys_clock_gettime(CLOCK_REALTIME, &t);
	if (t.sec * NSEC_PER_SEC + t.nsec >= ns)
		return;
	t.sec = ns / NSEC_PER_SEC;
	t.nsec = ns % NSEC_PER_SEC;
	err = sys_clock_settime(CLOCK_REALTIME, &t);
	if (err < 0)
		fail_errno(CODE_INTERNAL, "clock", err);
}

/* The machine is there for its sessions, until the host ends it. */
static _Noreturn void init_hold(void)
{
	struct program none = {.in = -1, .out = {-1, -1}, .start_ns = clock_ns()};
	struct exit_report report = {0};

	host_mark(MARK_START);
	proto_send(FRAME_STARTED, 0, &none.start_ns, sizeof(none.start_ns));
	pump_run(&none, &report);
	process_end();
}

void init_main(void)
{
	uint64_t init_ns = clock_ns();
	struct config config = {0};
	struct user user;
	struct frame opening;
	char *data;

	host_open_ports();
	host_mark(MARK_INIT);
	init_shield();
	boot_console();
	boot_modules();

	/* Connected first, so that the host hears why anything below failed; the disk is mounted
	 * while the host answers HELLO. */
	proto_fd = host_connect();
	proto_hello(init_ns);
	boot_disk();
	data = proto_read_opening(&opening);
	if (opening.type != FRAME_CONFIG)
		proto_broken("the first frame is no CONFIG");
	config_parse(&config, NULL, data, opening.length);
	if (config.clock_ns)
		clock_set(config.clock_ns);

	mounts_make(config.privileged);
	mounts_switch_root();
	net_loopback();
	if (!config.privileged)
		mounts_protect();
	net_names(config.hostname);
	sessions_open(&config, init_ns);
	forward_open(&config);
	if (config.hold)
		init_hold();
	user_resolve(&user, config.user);

	for (;;) {
		struct exit_report report = {0};
		struct program program;

		spawn_program(&program, &config, &user);
		proto_send(FRAME_STARTED, 0, &program.start_ns, sizeof(program.start_ns));
		pump_run(&program, &report);
		usage_collect(&report);
		proto_send(FRAME_EXIT, 0, &report, sizeof(report));
		files_send(&config);
		proto_send(FRAME_END, 0, NULL, 0);
		pump_wait_again();
		files_remove(&config);
	}
}
