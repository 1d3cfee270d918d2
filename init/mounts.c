/* The file systems that a program expects beside its image, and what of them it may change. */
#include "init.h"
#include "sys.h"

#define QUIET (MS_NOSUID | MS_NODEV | MS_NOEXEC)

static const struct {
	const char *path;
	unsigned minor;
} devices[] = {
	/* Major 1, linux/Documentation/admin-guide/devices.txt */
	{"dev/null", 3}, {"dev/zero", 5}, {"dev/full", 7}, {"dev/random", 8}, {"dev/urandom", 9},
};

static const struct {
	const char *path;
	const char *target;
} links[] = {
	{"dev/fd", "/proc/self/fd"},	   {"dev/stdin", "/proc/self/fd/0"},
	{"dev/stdout", "/proc/self/fd/1"}, {"dev/stderr", "/proc/self/fd/2"},
	{"dev/ptmx", "pts/ptmx"},
};

/* uid 0 needs no capability to write most of these: core_pattern or sysrq would end the guest. */
static const char *const read_only[] = {
	"/proc/bus",	       "/proc/fs", "/proc/irq",	     "/proc/sys",
	"/proc/sysrq-trigger", "/sys",	   "/sys/fs/cgroup",
};

static const char *const masked[] = {"/proc/kcore", "/proc/keys", "/proc/timer_list"};

/* The image decides what lies there: a link would take the mount somewhere else. */
static void mount_point(const char *path, unsigned mode)
{
	struct stat st;
	long err = sys_lstat(path, &st);

	if (!err && S_ISDIR(st.st_mode))
		return;
	if (!err)
		sys_unlink(path);
	err = sys_mkdir(path, mode);
	if (err < 0)
		fail_errno(CODE_INTERNAL, path, err);
}

/* A kernel without an optional file system (ENODEV) makes a poorer guest, but a guest. */
static void mount_new(const char *type, const char *path, unsigned long flags, const char *data)
{
	long err = sys_mount(type, path, type, flags, data);

	if (err < 0 && err != -ENODEV)
		fail_errno(CODE_INTERNAL, path, err);
}

static void mounts_devices(void)
{
	mount_new("tmpfs", "dev", MS_NOSUID, "mode=0755,size=64m");
	for (size_t i = 0; i < ARRAY_SIZE(devices); i++)
		sys_mknod(devices[i].path, S_IFCHR | 0666, 1 << 8 | devices[i].minor);
	sys_mknod("dev/tty", S_IFCHR | 0666, 5 << 8);
}

/*
 * In the new root, which is the working directory. A program without capabilities gets Docker's
 * /dev: devtmpfs would hand uid 0 the raw disk. /run and /tmp stay the image's own, also as there:
 * images keep directories in them.
 */
void mounts_make(bool privileged)
{
	long err = sys_chdir("/root");

	if (err < 0)
		fail_errno(CODE_INTERNAL, "/root", err);
	mount_point("proc", 0555);
	mount_point("sys", 0555);
	mount_point("dev", 0755);
	mount_point("run", 0755);
	if (!sys_mkdir("tmp", 01777))
		sys_chmod("tmp", 01777);

	mount_new("proc", "proc", QUIET, NULL);
	mount_new("sysfs", "sys", QUIET, NULL);
	mount_new("cgroup2", "sys/fs/cgroup", QUIET, NULL);
	if (privileged)
		mount_new("devtmpfs", "dev", MS_NOSUID, NULL);
	else
		mounts_devices();
	sys_mkdir("dev/pts", 0755);
	sys_mkdir("dev/shm", 01777);
	sys_mkdir("dev/mqueue", 01777);
	for (size_t i = 0; i < ARRAY_SIZE(links); i++)
		sys_symlink(links[i].target, links[i].path);
	mount_new("devpts", "dev/pts", MS_NOSUID | MS_NOEXEC,
		  "newinstance,ptmxmode=0666,mode=0620,gid=5");
	mount_new("tmpfs", "dev/shm", QUIET, "mode=1777");
	mount_new("mqueue", "dev/mqueue", QUIET, NULL);
}

void mounts_switch_root(void)
{
	long err = sys_mount(".", "/", NULL, MS_MOVE, NULL);

	if (!err)
		err = sys_chroot(".");
	if (!err)
		err = sys_chdir("/");
	if (err < 0)
		fail_errno(CODE_INTERNAL, "switching to the image's root", err);
}

/* What is no mount is bound to itself first. The file system stays writable, this view does not. */
static void mount_read_only(const char *path)
{
	unsigned long flags = MS_REMOUNT | MS_BIND | MS_RDONLY | QUIET;
	long err = sys_mount(NULL, path, NULL, flags, NULL);

	if (err == -EINVAL) {
		err = sys_mount(path, path, NULL, MS_BIND, NULL);
		if (!err)
			err = sys_mount(NULL, path, NULL, flags, NULL);
	}
	if (err < 0 && err != -ENOENT)
		fail_errno(CODE_INTERNAL, path, err);
}

static void mount_mask(const char *path)
{
	long err = sys_mount("/dev/null", path, NULL, MS_BIND, NULL);

	if (err < 0 && err != -ENOENT)
		fail_errno(CODE_INTERNAL, path, err);
}

void mounts_protect(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(read_only); i++)
		mount_read_only(read_only[i]);
	for (size_t i = 0; i < ARRAY_SIZE(masked); i++)
		mount_mask(masked[i]);
}
