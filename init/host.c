/* The machine's I/O ports and the way to the host. */
#include <linux/reboot.h>
#include <linux/time_types.h>

#include "init.h"
#include "sys.h"

#define PORT_MARK   0x600
#define PORT_RESET  0x604
#define PORT_SERIAL 0x3f8

#define ANY_CID	  0xffffffff
#define HOST_CID  2
#define HOST_PORT 1024
#define BACKLOG	  128

/* Linux gives up after 2 s, in which a busy host need not get to it: how long is the host's to say
 * (boot_timeout). */
#define SO_VM_SOCKETS_CONNECT_TIMEOUT 6
#define PATIENCE_S		      86400

/* linux/vm_sockets.h needs a libc for struct sockaddr. */
struct sockaddr_vm {
	uint16_t family;
	uint16_t reserved;
	uint32_t port;
	uint32_t cid;
	uint8_t zero[4];
};

static bool ports_open;

static void port_write(uint16_t port, uint8_t value)
{
	if (ports_open)
		__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

void host_open_ports(void)
{
	ports_open = !sys_iopl(3);
}

/* To the console, whether or not the kernel has a driver for it. */
bool host_print(const char *text, size_t length)
{
	for (size_t i = 0; i < length; i++)
		port_write(PORT_SERIAL, text[i]);
	return ports_open;
}

void host_drop_ports(void)
{
	if (ports_open)
		sys_iopl(0);
	ports_open = false;
}

void host_mark(enum host_mark mark)
{
	port_write(PORT_MARK, mark);
}

int host_connect(void)
{
	const struct sockaddr_vm host = {.family = AF_VSOCK, .port = HOST_PORT, .cid = HOST_CID};
	const struct __kernel_old_timeval patience = {.tv_sec = PATIENCE_S};
	long fd = sys_socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	long err = fd;

	if (fd >= 0) {
		sys_setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience,
			       sizeof(patience));
		err = sys_connect(fd, &host, sizeof(host));
	}
	if (err < 0)
		fail_errno(CODE_INTERNAL, "vsock: connecting to CID 2, port 1024", err);
	return fd;
}

/* The listening socket, or a negative errno. */
long host_listen(uint32_t port)
{
	const struct sockaddr_vm any = {.family = AF_VSOCK, .port = port, .cid = ANY_CID};
	long fd = sys_socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	long err = fd;

	if (fd >= 0)
		err = sys_bind(fd, &any, sizeof(any));
	if (!err)
		err = sys_listen(fd, BACKLOG);
	return err < 0 ? err : fd;
}

/* The next connection of the host's, or a negative errno. The guest's own programs get none. */
long host_accept(int listener, int flags)
{
	for (;;) {
		struct sockaddr_vm peer = {0};
		unsigned length = sizeof(peer);
		long fd = sys_accept4(listener, &peer, &length, SOCK_CLOEXEC | flags);

		if (fd < 0 || peer.cid == HOST_CID)
			return fd;
		sys_close(fd);
	}
}

/* Nothing is synced: the disk lives as long as the machine. */
void host_reset(void)
{
	port_write(PORT_RESET, 1);
	sys_reboot(LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART, NULL);
	for (;;)
		sys_nanosleep(&(struct sys_time){.sec = 1}, NULL);
}
