/*
 * Stands in for init's host.c and boot.c, so that the rest runs natively as PID 1 of new
 * namespaces: the connection, the image's root and the marks are inherited descriptors. Where the
 * guest listens on a vsock port there is a Unix socket of that name in a directory that is another.
 */
#include "init.h"
#include "sys.h"

#define AF_UNIX	   1
#define MS_PRIVATE (1 << 18)

enum { HOST_FD = 3, ROOT_FD = 4, MARK_FD = 5, PORTS_FD = 6 };

void host_open_ports(void)
{
	/* init kills with kill(-1): nowhere but as the first process of a namespace. */
	if (sys_getpid() != 1)
		sys_exit_group(99);
	for (int fd = HOST_FD; fd <= PORTS_FD; fd++)
		sys_fcntl(fd, F_SETFD, FD_CLOEXEC);
	/* A kernel starts init with no signal ignored; who started this may have. */
	for (int number = 1; number <= 64; number++) {
		unsigned long default_action[4] = {0};

		sys_call(__NR_rt_sigaction, number, (long)default_action, 0, 8, 0, 0);
	}
}

static bool dropped;

void host_drop_ports(void)
{
	dropped = true;
}

/* Nobody has a port here: to descriptor 2, then. */
bool host_print(const char *text, size_t length)
{
	(void)text;
	(void)length;
	return false;
}

void host_mark(enum host_mark mark)
{
	char byte = mark;

	if (!dropped)
		sys_write(MARK_FD, &byte, 1);
}

int host_connect(void)
{
	return HOST_FD;
}

long host_listen(uint32_t port)
{
	struct {
		uint16_t family;
		char path[108];
	} address = {.family = AF_UNIX};
	struct text t = {address.path, sizeof(address.path), 0};
	long fd = sys_socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	long err = fd;

	text_add(&t, "/proc/self/fd/6/");
	text_add_number(&t, port);
	if (fd >= 0)
		err = sys_bind(fd, &address, sizeof(address));
	if (!err)
		err = sys_listen(fd, 128);
	return err < 0 ? err : fd;
}

long host_accept(int listener, int flags)
{
	return sys_accept4(listener, NULL, NULL, SOCK_CLOEXEC | flags);
}

void host_reset(void)
{
	sys_exit_group(0);
	__builtin_unreachable();
}

void boot_console(void)
{
}

void boot_modules(void)
{
}

void boot_disk(void)
{
	/* By its path: the descriptor is of the mount namespace that this one was copied from. */
	char root[4096] = "";
	long err = sys_call(__NR_readlink, (long)"/proc/self/fd/4", (long)root, sizeof(root) - 1, 0,
			    0, 0);

	if (err > 0)
		err = sys_mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
	if (!err)
		err = sys_mount(root, "/root", NULL, MS_BIND, NULL);
	if (!err)
		err = sys_mount("/usr", "/root/usr", NULL, MS_BIND, NULL);
	if (err)
		fail_errno(CODE_INTERNAL, "the harness's root", err);
}
