/*
 * What the program may not ask of the guest's kernel. It has no capabilities, so most of these
 * fail without the filter as well: it is there for what a user namespace would give back and for
 * kernel paths that a benchmark never needs. It must cost the measured program nothing: syscalls
 * that are allowed whatever their arguments bypass it in the kernel's bitmap, and the speculation
 * mitigations that come with a filter by default are left off.
 */
#include <linux/audit.h>
#include <linux/sched.h>
#include <linux/seccomp.h>

#include "init.h"
#include "sys.h"

/* Younger than the kernel headers of some build machines. */
#ifndef __NR_open_tree
#define __NR_open_tree	428
#define __NR_move_mount 429
#define __NR_fsopen	430
#define __NR_fsconfig	431
#define __NR_fsmount	432
#define __NR_fspick	433
#endif
#ifndef __NR_clone3
#define __NR_clone3 435
#endif
#ifndef __NR_mount_setattr
#define __NR_mount_setattr 442
#endif
#ifndef __NR_quotactl_fd
#define __NR_quotactl_fd 443
#endif

#define X32_BIT 0x40000000

#define LOAD(field)	   BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RETURN(action)	   BPF_STMT(BPF_RET | BPF_K, (action))
#define SKIP_UNLESS(nr, n) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (nr), 0, (n))
#define DENY(name)	   SKIP_UNLESS(__NR_##name, 1), RETURN(SECCOMP_RET_ERRNO | EPERM)

/* The flags' low half is at args[0]: little-endian. */
#define DENY_FLAG(name, flag)                                                                      \
	SKIP_UNLESS(__NR_##name, 4), LOAD(args[0]),                                                \
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (flag), 0, 1),                                \
		RETURN(SECCOMP_RET_ERRNO | EPERM), RETURN(SECCOMP_RET_ALLOW)

static const struct sock_filter filter[] = {
	LOAD(arch),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
	RETURN(SECCOMP_RET_KILL_PROCESS),
	LOAD(nr),
	BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1),
	RETURN(SECCOMP_RET_ERRNO | ENOSYS),

	/* A new user namespace would hold every capability. clone3 has its flags in memory that
	 * a filter cannot see; libcs fall back to clone. */
	DENY_FLAG(clone, CLONE_NEWUSER),
	DENY_FLAG(unshare, CLONE_NEWUSER),
	SKIP_UNLESS(__NR_clone3, 1),
	RETURN(SECCOMP_RET_ERRNO | ENOSYS),
	DENY(setns),

	DENY(reboot),
	DENY(kexec_load),
	DENY(kexec_file_load),
	DENY(init_module),
	DENY(finit_module),
	DENY(delete_module),

	DENY(mount),
	DENY(umount2),
	DENY(pivot_root),
	DENY(move_mount),
	DENY(open_tree),
	DENY(fsopen),
	DENY(fsconfig),
	DENY(fsmount),
	DENY(fspick),
	DENY(mount_setattr),
	DENY(open_by_handle_at),
	DENY(swapon),
	DENY(swapoff),
	DENY(quotactl),
	DENY(quotactl_fd),
	DENY(acct),

	DENY(settimeofday),
	DENY(clock_settime),
	DENY(iopl),
	DENY(ioperm),
	DENY(bpf),
	DENY(add_key),
	DENY(request_key),
	DENY(keyctl),
	DENY(vhangup),

	RETURN(SECCOMP_RET_ALLOW),
};

long seccomp_install(void)
{
	const struct sock_fprog program = {ARRAY_SIZE(filter), (struct sock_filter *)filter};

	return sys_seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program);
}
