/* A terminal for the program: init has the master, the program's three descriptors are the slave.
 */
#include <asm/ioctls.h>

#include "init.h"
#include "sys.h"

static long tty_set_size(int master, struct tty_size size)
{
	uint16_t winsize[4] = {size.rows, size.columns, 0, 0}; /* struct winsize */

	return sys_ioctl(master, TIOCSWINSZ, winsize);
}

/* Both by descriptor: what the program has put in the place of /dev/ptmx does not matter. */
int tty_open(int *slave, struct tty_size size)
{
	long master = sys_open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC, 0);
	long fd = master;
	int unlocked = 0;

	if (fd >= 0)
		fd = sys_ioctl(master, TIOCSPTLCK, &unlocked);
	if (fd >= 0)
		fd = tty_set_size(master, size);
	if (fd >= 0)
		fd = sys_ioctl(master, TIOCGPTPEER, (void *)(O_RDWR | O_NOCTTY | O_CLOEXEC));
	if (fd < 0)
		fail_errno(CODE_INTERNAL, "terminal", fd);
	*slave = fd;
	return master;
}

void tty_resize(int master, struct tty_size size)
{
	tty_set_size(master, size);
}

/* In the program's process, which leads a session that has no terminal yet. */
long tty_control(int slave)
{
	return sys_ioctl(slave, TIOCSCTTY, NULL);
}
