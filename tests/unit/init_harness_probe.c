/* Runs as the program under init: tries what it must not be able to do, one line of result each. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static void show(const char *what, long ret)
{
	printf("%s %s\n", what, ret < 0 ? strerrorname_np(errno) : "ok");
}

int main(void)
{
	struct timespec now = {0};
	struct iovec here = {&now, 1}, there = {(void *)0x401000, 1};

	show("mount", mount("none", "/mnt", "tmpfs", 0, NULL));
	show("umount", umount2("/proc", MNT_DETACH));
	show("reboot", syscall(SYS_reboot, 0, 0, 0, 0)); /* bad magic: harmless if let through */
	show("unshare_user", unshare(CLONE_NEWUSER));
	show("unshare_files", unshare(CLONE_FILES));
	show("clone_user", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
	show("clone3", syscall(SYS_clone3, NULL, 0));
	show("x32", syscall(0x40000000 | SYS_getpid));
	show("setns", setns(-1, 0));
	show("bpf", syscall(SYS_bpf, 0, NULL, 0));
	show("keyctl", syscall(SYS_keyctl, 0, 0, 0, 0, 0));
	show("clock_settime", clock_settime(CLOCK_REALTIME, &now));
	show("iopl", syscall(SYS_iopl, 3));
	show("ptrace_init", ptrace(PTRACE_ATTACH, 1, NULL, NULL));
	show("read_init", process_vm_readv(1, &here, 1, &there, 1, 0));
	show("init_mem", open("/proc/1/mem", O_RDONLY));
	show("init_fd", open("/proc/1/fd/3", O_RDWR));
	show("init_root", open("/proc/1/root/etc", O_RDONLY));
	show("core_pattern", open("/proc/sys/kernel/core_pattern", O_WRONLY));
	show("sysrq", open("/proc/sysrq-trigger", O_WRONLY));
	show("sysfs", open("/sys/kernel/probe", O_WRONLY | O_CREAT, 0600));
	show("mknod", mknod("/probe-node", S_IFCHR | 0600, 1 << 8 | 1));
	show("chroot", chroot("/"));
	show("kill_init", kill(1, SIGKILL));
	show("term_init", kill(1, SIGTERM));
	show("getppid", getppid() == 1 ? 0 : -1);
	return 0;
}
