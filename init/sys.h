/* System calls for x86-64 without a libc. Each returns the kernel's value: negative is -errno. */
#ifndef PYVMM_INIT_SYS_H
#define PYVMM_INIT_SYS_H

#include <stddef.h>
#include <stdint.h>

#include <asm/signal.h>
#include <asm/stat.h>
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/eventpoll.h>
#include <linux/fcntl.h>
#include <linux/filter.h>
#include <linux/poll.h>
#include <linux/resource.h>
#include <linux/stat.h>

#define AF_UNSPEC   0
#define AF_INET	    2
#define AF_INET6    10
#define AF_VSOCK    40
#define SOCK_STREAM 1
#define SOCK_DGRAM  2

#define SOCK_CLOEXEC  O_CLOEXEC
#define SOCK_NONBLOCK O_NONBLOCK
#define SHUT_WR	      1
#define SOL_SOCKET    1
#define SO_ERROR      4
#define IPPROTO_TCP   6
#define TCP_NODELAY   1

#define SEEK_SET  0
#define SEEK_DATA 3
#define SEEK_HOLE 4

#define MSG_DONTWAIT 0x40
#define MSG_NOSIGNAL 0x4000

/*
 * Older build machines' kernel headers lack, or spread over changing files, what follows here; the
 * values are the kernel's ABI.
 */
struct sys_time {
	int64_t sec;
	int64_t nsec;
};

#define MS_RDONLY  1
#define MS_NOSUID  2
#define MS_NODEV   4
#define MS_NOEXEC  8
#define MS_REMOUNT 32
#define MS_BIND	   4096
#define MS_MOVE	   8192
#define MS_REC	   16384

struct iovec {
	void *base;
	size_t len;
};

#ifdef __clang_analyzer__ /* which does not see that assembly writes to memory */
long sys_call(long nr, long a, long b, long c, long d, long e, long f);
#else
static inline long sys_call(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}
#endif

#define SYS0(name)                                                                                 \
	static inline long sys_##name(void)                                                        \
	{                                                                                          \
		return sys_call(__NR_##name, 0, 0, 0, 0, 0, 0);                                    \
	}
#define SYS1(name, A)                                                                              \
	static inline long sys_##name(A a)                                                         \
	{                                                                                          \
		return sys_call(__NR_##name, (long)a, 0, 0, 0, 0, 0);                              \
	}
#define SYS2(name, A, B)                                                                           \
	static inline long sys_##name(A a, B b)                                                    \
	{                                                                                          \
		return sys_call(__NR_##name, (long)a, (long)b, 0, 0, 0, 0);                        \
	}
#define SYS3(name, A, B, C)                                                                        \
	static inline long sys_##name(A a, B b, C c)                                               \
	{                                                                                          \
		return sys_call(__NR_##name, (long)a, (long)b, (long)c, 0, 0, 0);                  \
	}
#define SYS4(name, A, B, C, D)                                                                     \
	static inline long sys_##name(A a, B b, C c, D d)                                          \
	{                                                                                          \
		return sys_call(__NR_##name, (long)a, (long)b, (long)c, (long)d, 0, 0);            \
	}
#define SYS5(name, A, B, C, D, E)                                                                  \
	static inline long sys_##name(A a, B b, C c, D d, E e)                                     \
	{                                                                                          \
		return sys_call(__NR_##name, (long)a, (long)b, (long)c, (long)d, (long)e, 0);      \
	}
#define SYS6(name, A, B, C, D, E, F)                                                               \
	static inline long sys_##name(A a, B b, C c, D d, E e, F f)                                \
	{                                                                                          \
		return sys_call(__NR_##name, (long)a, (long)b, (long)c, (long)d, (long)e,          \
				(long)f);                                                          \
	}

/* clang-format off */
SYS4(accept4, int, void *, unsigned *, int)
SYS3(bind, int, const void *, unsigned)
SYS2(capset, void *, const void *)
SYS1(chdir, const char *)
SYS2(chmod, const char *, unsigned)
SYS1(chroot, const char *)
SYS2(clock_gettime, int, struct sys_time *)
SYS2(clock_settime, int, const struct sys_time *)
SYS1(close, int)
SYS3(connect, int, const void *, unsigned)
SYS2(dup2, int, int)
SYS1(epoll_create1, int)
SYS4(epoll_ctl, int, int, int, struct epoll_event *)
SYS4(epoll_wait, int, struct epoll_event *, int, int)
SYS3(execve, const char *, char *const *, char *const *)
SYS1(exit_group, int)
SYS2(fchmod, int, unsigned)
SYS3(fchown, int, unsigned, unsigned)
SYS5(fchownat, int, const char *, unsigned, unsigned, int)
SYS3(fcntl, int, int, long)
SYS3(finit_module, int, const char *, int)
SYS0(fork)
SYS2(fstat, int, struct stat *)
SYS2(ftruncate, int, long)
SYS3(getdents64, int, void *, size_t)
SYS0(getpid)
SYS5(getsockopt, int, int, int, void *, unsigned *)
SYS3(ioctl, int, unsigned long, void *)
SYS1(iopl, int)
SYS2(kill, int, int)
SYS5(linkat, int, const char *, int, const char *, int)
SYS2(listen, int, int)
SYS3(lseek, int, long, int)
SYS2(lstat, const char *, struct stat *)
SYS2(mkdir, const char *, unsigned)
SYS3(mkdirat, int, const char *, unsigned)
SYS3(mknod, const char *, unsigned, unsigned)
SYS4(mknodat, int, const char *, unsigned, unsigned)
SYS6(mmap, void *, size_t, int, int, int, long)
SYS5(mount, const char *, const char *, const char *, unsigned long, const char *)
SYS2(munmap, void *, size_t)
SYS2(nanosleep, const struct sys_time *, struct sys_time *)
SYS4(newfstatat, int, const char *, struct stat *, int)
SYS3(open, const char *, int, unsigned)
SYS4(openat, int, const char *, int, unsigned)
SYS2(pipe2, int *, int)
SYS3(poll, struct pollfd *, unsigned, int)
SYS5(prctl, int, unsigned long, unsigned long, unsigned long, unsigned long)
SYS4(pread64, int, void *, size_t, long)
SYS3(read, int, void *, size_t)
SYS4(readlinkat, int, const char *, char *, size_t)
SYS4(reboot, int, int, int, void *)
SYS6(recvfrom, int, void *, size_t, int, void *, void *)
SYS4(rt_sigprocmask, int, const sigset_t *, sigset_t *, size_t)
SYS3(sched_getaffinity, int, size_t, void *)
SYS3(sched_setscheduler, int, int, const int *)
SYS3(seccomp, int, int, const void *)
SYS6(sendto, int, const void *, size_t, int, const void *, unsigned)
SYS2(setgroups, size_t, const unsigned *)
SYS2(sethostname, const char *, size_t)
SYS3(setresgid, unsigned, unsigned, unsigned)
SYS3(setresuid, unsigned, unsigned, unsigned)
SYS2(setrlimit, int, const struct rlimit *)
SYS0(setsid)
SYS5(setsockopt, int, int, int, const void *, unsigned)
SYS2(shutdown, int, int)
SYS4(signalfd4, int, const sigset_t *, size_t, int)
SYS3(socket, int, int, int)
SYS2(stat, const char *, struct stat *)
SYS2(symlink, const char *, const char *)
SYS3(symlinkat, const char *, int, const char *)
SYS1(sysinfo, void *)
SYS1(umask, unsigned)
SYS1(unlink, const char *)
SYS3(unlinkat, int, const char *, int)
SYS4(utimensat, int, const char *, const struct sys_time *, int)
SYS4(wait4, int, int *, int, struct rusage *)
SYS3(write, int, const void *, size_t)
SYS3(writev, int, const struct iovec *, int)
/* clang-format on */

#endif
