/* SPDX-License-Identifier: Apache-2.0
 *
 * The system calls behind pyvmm/jail.py, which says what they are for. Each returns a negative
 * errno or what it says. The process has one thread.
 */
#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"

/* fork() into new namespaces (CLONE_NEW*) and, unless it is negative, a cgroup: 0 in the child, in
 * the parent the child's process id and a pidfd.
 *
 * What libc and Python do about locks and other threads at a fork has no object in a process with
 * one thread. */
int jail_clone(uint64_t flags, int cgroup_fd, int *pidfd)
{
	struct clone_args args = {
		.flags = flags | CLONE_PIDFD | (cgroup_fd < 0 ? 0 : CLONE_INTO_CGROUP),
		.pidfd = (uintptr_t)pidfd,
		.exit_signal = SIGCHLD,
		.cgroup = cgroup_fd < 0 ? 0 : (uint64_t)cgroup_fd,
	};
	uint64_t tid = 0;
	long pid;

	/* libc remembers its thread's number: let the kernel put the child's there, as fork()
	 * does. A kernel that does not say where is one on which raise() misses. */
	if (!prctl(PR_GET_TID_ADDRESS, &tid) && tid) {
		args.flags |= CLONE_CHILD_SETTID;
		args.child_tid = tid;
	}
	pid = syscall(SYS_clone3, &args, sizeof(args));
	return pid < 0 ? -errno : (int)pid;
}

/* Have an empty read-only root, in a mount namespace of our own: no path leads anywhere. */
int jail_root(void)
{
	/* A mount point that every host has. */
	static const char at[] = "/proc";
	const unsigned long flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;

	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("none", at, "tmpfs", flags, "size=4k,nr_inodes=1,mode=555") || chdir(at) ||
	    /* The old root comes to lie over the new one (pivot_root(2), NOTES), */
	    syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		return -errno;
	return 0;
}

static int drop_bounding_set(void)
{
	for (unsigned long cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; cap++)
		if (prctl(PR_CAPBSET_DROP, cap))
			return -errno;
	return 0;
}

/* Give up all privileges, for good; as root, also the identity: `id` becomes user and group.
 * -EINVAL: our user namespace has no such id. */
int jail_drop(uint32_t id)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {0};
	int r = drop_bounding_set();

	if (r)
		return r;
	if (id && (setgroups(0, NULL) || setresgid(id, id, id) || setresuid(id, id, id)))
		return -errno;
	/* The last is forgotten when a process changes its user. */
	if (syscall(SYS_capset, &header, none) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_DUMPABLE, 0) || prctl(PR_SET_PDEATHSIG, SIGKILL))
		return -errno;
	return 0;
}

/* Forbid, by Landlock, every right that this kernel's can, on everything: it knows of no path that
 * would be allowed. What is open stays usable. Returns the version of its ABI. */
int jail_landlock(void)
{
	/* landlock(7): the rights of each version. The struct grows, and an old kernel takes only
	 * its own size of it. */
	static const struct {
		uint64_t fs, net, scoped;
		size_t size;
	} versions[] = {
		{0x1fff, 0, 0, 8},  {0x3fff, 0, 0, 8},	{0x7fff, 0, 0, 8},
		{0x7fff, 3, 0, 16}, {0xffff, 3, 0, 16}, {0xffff, 3, 3, 24},
	};
	const int known = sizeof(versions) / sizeof(*versions);
	int abi = (int)syscall(SYS_landlock_create_ruleset, NULL, 0, 1);
	int fd;

	if (abi <= 0)
		return abi ? -errno : -ENOSYS;
	fd = (int)syscall(SYS_landlock_create_ruleset, &versions[MIN(abi, known) - 1],
			  versions[MIN(abi, known) - 1].size, 0);
	if (fd < 0)
		return -errno;
	if (syscall(SYS_landlock_restrict_self, fd, 0))
		abi = -errno;
	close(fd);
	return abi;
}

/* Where we may have less already, it stays at that. */
int jail_limit(int resource, uint64_t limit)
{
	struct rlimit both;

	if (getrlimit((__rlimit_resource_t)resource, &both))
		return -errno;
	both.rlim_max = MIN(limit, both.rlim_max);
	both.rlim_cur = both.rlim_max;
	return setrlimit((__rlimit_resource_t)resource, &both) ? -errno : 0;
}
