/* Preloaded into a worker: tries to get out of it, on each of its kinds of threads, after that has
 * put on its seccomp filter. What is tried where, and what came of it, is in a page that the test
 * has mapped too (escape.py).
 *
 * No attempt does harm where it succeeds: signals are such as nobody minds, and things become what
 * they are.
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <linux/keyctl.h>
#include <linux/kvm.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAIN, IO, VCPU };
enum { ALL = -1, MUCH = 128 << 20 };

static struct page {
	uint32_t seccomp; /* whether the filters are put on */
	uint32_t kind;	  /* of the thread that tries */
	int32_t only;	  /* this attempt, or ALL */
	int32_t at;	  /* the attempt that was begun last */
	uint32_t done;
	int32_t host_pid;  /* the test's, in its own PID namespace */
	int32_t shm_key;   /* of a segment of the test */
	uint32_t port;	   /* that the test listens at */
	uint32_t other_id; /* a user and group that we are not */
	char abstract[32];
	char path[128]; /* of a socket of the test */
	char key[32];	/* a user's key in the session's keyring */
	int64_t results[256];
} *page;

/* ---- what there is in a worker ---- */

static int kvm = 4, vm = -1, base = -1, overlay = -1, console = 2, rights[2], results = -1;
static int looked, entered;
static mode_t base_mode;
static off_t disk_size;
static char one_page[4096] __attribute__((aligned(4096)));
static __thread int confined;

static long raw(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

#define L(x)				((long)(x))
#define PICK(nr, a, b, c, d, e, f, ...) raw(nr, L(a), L(b), L(c), L(d), L(e), L(f))
#define CALL(...)			PICK(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

/* Before the walls are up: which descriptor is what, and a message with one in it. */
static void look_around(void)
{
	char control[CMSG_SPACE(sizeof(int))] = {0}, byte = 0;
	struct iovec iov = {&byte, 1};
	struct msghdr message = {.msg_iov = &iov,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&message);
	off_t largest[2] = {0};
	struct stat st;

	for (int fd = 0; fd < 256; fd++) {
		int flags = fcntl(fd, F_GETFL), *to = &base, writable = 0;

		if (flags < 0 || fstat(fd, &st))
			continue;
		if (isatty(fd))
			console = fd;
		if (vm < 0 && fd > kvm && CALL(SYS_ioctl, fd, KVM_CHECK_EXTENSION, 3) > 0)
			vm = fd;
		if (fd > kvm && S_ISSOCK(st.st_mode))
			results = fd;
		if ((flags & O_ACCMODE) == O_RDWR) {
			to = &overlay;
			writable = 1;
		}
		if (S_ISREG(st.st_mode) && st.st_size > largest[writable]) {
			largest[writable] = st.st_size;
			*to = fd;
			if (!writable)
				base_mode = st.st_mode & 07777;
		}
	}
	disk_size = largest[1];
	*c = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(c), &kvm, sizeof(int));
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, rights) || sendmsg(rights[0], &message, 0) != 1)
		abort();
}

#include "escape_calls.h"

enum {
#define A(name, ...) TRY_##name,
#include "escape_attempts.h"
#undef A
	ATTEMPTS
};

const char *const escape_names[] = {
#define A(name, ...) #name,
#include "escape_attempts.h"
#undef A
	NULL,
};

static long attempt(int number)
{
	switch (number) {
#define A(name, ...)                                                                               \
	case TRY_##name:                                                                           \
		return __VA_ARGS__;
#include "escape_attempts.h"
#undef A
	}
	return 0;
}

/* From Linux 6.14 on KVM adds a thread of its own to the process at the first KVM_RUN. */
static void enter(int fd)
{
	struct kvm_run *run = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (run == MAP_FAILED)
		abort();
	run->immediate_exit = 1;
	CALL(SYS_ioctl, fd, KVM_RUN, 0);
	run->immediate_exit = 0;
	munmap(run, 4096);
	__atomic_store_n(&entered, 1, __ATOMIC_SEQ_CST);
}

static void escape(uint32_t kind)
{
	if (page->kind != kind || page->done)
		return;
	if (!page->seccomp) {
		while (!__atomic_load_n(&entered, __ATOMIC_SEQ_CST))
			__builtin_ia32_pause();
		/* What NOFILE still leaves room for. */
		CALL(SYS_close, 0);
		CALL(SYS_close, 1);
	}
	for (int i = 0; i < ATTEMPTS; i++) {
		if (page->only != ALL && page->only != i)
			continue;
		page->at = i;
		page->results[i] = attempt(i);
	}
	__atomic_store_n(&page->done, 1, __ATOMIC_SEQ_CST);
}

/* ---- in libc's stead ---- */

static long returned(long result)
{
	if (result >= 0 || result < -4095)
		return result;
	errno = (int)-result;
	return -1;
}

long syscall(long nr, ...)
{
	long a[6];
	va_list list;

	va_start(list, nr);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (page && nr == SYS_seccomp) {
		if (!__atomic_exchange_n(&looked, 1, __ATOMIC_SEQ_CST))
			look_around();
		confined = 1;
		if (!page->seccomp)
			return 0;
	}
	return returned(raw(nr, a[0], a[1], a[2], a[3], a[4], a[5]));
}

int poll(struct pollfd *fds, nfds_t n, int timeout)
{
	if (confined)
		escape(MAIN);
	return (int)returned(CALL(SYS_poll, fds, n, timeout));
}

int epoll_wait(int fd, struct epoll_event *events, int n, int timeout)
{
	if (confined)
		escape(IO);
	return (int)returned(CALL(SYS_epoll_wait, fd, events, n, timeout));
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list list;
	void *argument;

	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);
	if (confined && request == KVM_RUN) {
		if (!page->seccomp && !entered)
			enter(fd);
		escape(VCPU);
	}
	return (int)returned(CALL(SYS_ioctl, fd, request, argument));
}

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("ESCAPE_PAGE");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;

	if (fd < 0)
		return;
	page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED)
		abort();
	close(fd);
}
