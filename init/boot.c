/* From the initramfs to the image's disk on /root: the console, the modules, the mount. */
#include "init.h"
#include "sys.h"

#define DISK	     "/dev/vda"
#define DISK_WAIT_NS (10 * NSEC_PER_SEC)
#define POLL_MIN_NS  1000000
#define POLL_MAX_NS  50000000

/*
 * Descriptors 0 to 2 must be taken before anything else opens one: the child replaces them. The
 * kernel has opened them if the initramfs has a /dev/console.
 */
void boot_console(void)
{
	long fd;

	sys_mkdir("/dev", 0755);
	sys_mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, NULL);
	do {
		fd = sys_open("/dev/console", O_RDWR | O_NOCTTY, 0);
		if (fd < 0)
			fd = sys_open("/dev/null", O_RDWR, 0);
	} while (fd >= 0 && fd <= 2);
	if (fd > 2)
		sys_close(fd);
}

/* A module that fails is not the end: whether it was needed shows when its device is used. */
void boot_modules(void)
{
	char path[] = "/modules/00.ko";
	char *digits = path + sizeof("/modules/") - 1;

	for (unsigned i = 0; i < 100; i++) {
		long fd, err;

		digits[0] = '0' + i / 10;
		digits[1] = '0' + i % 10;
		fd = sys_open(path, O_RDONLY | O_CLOEXEC, 0);
		if (fd == -ENOENT)
			break;
		err = fd < 0 ? fd : sys_finit_module(fd, "", 0);
		if (err < 0 && err != -EEXIST)
			log_line(path, err);
		if (fd >= 0)
			sys_close(fd);
		/* The initramfs is memory, which the program could use. */
		sys_unlink(path);
	}
}

/*
 * ext4 would fill inode tables that mkfs left for later and read block bitmaps ahead, while the
 * program is measured. Kernels before 5.13 refuse the second option.
 */
static long disk_mount(void)
{
	long err = sys_mount(DISK, "/root", "ext4", 0, "noinit_itable,no_prefetch_block_bitmaps");

	return err == -EINVAL ? sys_mount(DISK, "/root", "ext4", 0, NULL) : err;
}

void boot_disk(void)
{
	uint64_t deadline = clock_ns() + DISK_WAIT_NS;
	struct sys_time pause = {.nsec = POLL_MIN_NS};
	long err;

	sys_mkdir("/root", 0755);
	while ((err = disk_mount()) == -ENOENT || err == -ENXIO) {
		if (clock_ns() > deadline)
			break;
		sys_nanosleep(&pause, NULL);
		if (pause.nsec < POLL_MAX_NS)
			pause.nsec *= 2;
	}
	if (err < 0)
		fail_errno(CODE_INTERNAL, "mounting " DISK " as ext4", err);
}
