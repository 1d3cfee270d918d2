/* What a program may try against its guest, and through that the host: the first argument says
 * what. With `pyvmm run --privileged` nothing in the guest is in its way. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <unistd.h>

#define REGISTERS   0xc0001000
#define DEVICES	    3
#define PORT_SERIAL 0x3f8
#define PORT_RESET  0x604
#define STEPS	    20000

static uint64_t state = 0x9e3779b97f4a7c15;

static uint32_t any(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)(state >> 16);
}

static int forks(void)
{
	while (fork() >= 0 || errno == EAGAIN || errno == ENOMEM)
		;
	return 1;
}

/* Write until there is no more room; by and by, so that all of it is on the disk. */
static int fill(void)
{
	static char block[1 << 16];
	int fd = open("/filler", O_WRONLY | O_CREAT | O_SYNC, 0600);

	memset(block, 0xa5, sizeof(block));
	while (write(fd, block, sizeof(block)) > 0)
		;
	puts(strerror(errno));
	return 0;
}

/* Everything at the ports, then the end. */
static int ports(void)
{
	if (iopl(3)) {
		perror("iopl");
		return 1;
	}
	for (int i = 0; i < STEPS; i++) {
		uint16_t port = (uint16_t)any();
		uint32_t value = any();

		if ((port >= PORT_RESET - 3 && port <= PORT_RESET) || (port > 0x5c && port <= 0x64))
			continue;
		switch (any() % 4) {
		case 0:
			inb(port);
			break;
		case 1:
			outb((uint8_t)value, port);
			break;
		case 2:
			outw((uint16_t)value, port);
			break;
		default:
			outl(value, port);
		}
	}
	outb(0, PORT_SERIAL + 3);
	outb(0, PORT_SERIAL + 4);
	for (const char *c = "\nports done\n"; *c; c++)
		outb((uint8_t)*c, PORT_SERIAL);
	outb(1, PORT_RESET);
	return 1;
}

/* The devices' registers, beneath their drivers; then the end. */
static int registers(void)
{
	volatile uint8_t *page;
	int fd;

	mknod("/tmp/mem", S_IFCHR | 0600, makedev(1, 1));
	fd = open("/tmp/mem", O_RDWR | O_SYNC);
	page = mmap(NULL, DEVICES << 12, PROT_READ | PROT_WRITE, MAP_SHARED, fd, REGISTERS);
	if (fd < 0 || page == MAP_FAILED || iopl(3)) {
		perror("/dev/mem");
		return 1;
	}
	/* The rings' addresses stay: they would have the devices write anywhere in the guest. */
	for (int i = 0; i < STEPS; i++) {
		uint32_t at = any() % (DEVICES << 12), value = any() % 256, reg;

		if (any() % 2)
			at = (at & ~0xfffu) | (any() & 0x7c);
		reg = at & 0xffc;
		if (reg >= 0x80 && reg < 0xa8)
			continue;
		switch (any() % 4) {
		case 0:
			page[at] = (uint8_t)value;
			break;
		case 1:
			(void)page[at];
			break;
		default:
			*(volatile uint32_t *)(page + (at & ~3u)) = value;
		}
	}
	for (const char *c = "\nregisters done\n"; *c; c++)
		outb((uint8_t)*c, PORT_SERIAL);
	outb(1, PORT_RESET);
	return 1;
}

/* init's port, again and again, and others: each is refused. */
static int vsock(void)
{
	const struct timeval patience = {.tv_sec = 600};
	unsigned refused = 0, other = 0;

	for (unsigned i = 0; i < 500; i++) {
		struct sockaddr_vm host = {
			.svm_family = AF_VSOCK, .svm_cid = 2, .svm_port = i % 2 ? 1024 : i};
		int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

		/* Linux gives up after 2 s, in which a busy host need not get to it. */
		setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience,
			   sizeof(patience));
		if (connect(fd, (struct sockaddr *)&host, sizeof(host)) && errno == ECONNRESET)
			refused++;
		else
			other++;
		close(fd);
	}
	printf("%u refused, %u not\n", refused, other);
	return 0;
}

/* init's own connection, which the host takes for init. */
static int stolen(void)
{
	int init = syscall(SYS_pidfd_open, 1, 0);

	for (int number = 0; number < 64; number++) {
		struct sockaddr_vm address;
		socklen_t size = sizeof(address);
		int fd = syscall(SYS_pidfd_getfd, init, number, 0);

		if (fd < 0 && errno == EPERM)
			break;
		if (fd >= 0 && !getpeername(fd, (struct sockaddr *)&address, &size) &&
		    address.svm_family == AF_VSOCK)
			return fd;
	}
	perror("pidfd_getfd");
	exit(1);
}

static int forge(unsigned type)
{
	const struct {
		uint32_t length;
		uint16_t type, index;
	} head = {0, (uint16_t)type, 0};
	int fd = stolen();

	if (write(fd, &head, sizeof(head)) != sizeof(head))
		return 1;
	pause();
	return 1;
}

static int hang_up(void)
{
	shutdown(stolen(), SHUT_RDWR);
	pause();
	return 1;
}

/* init stands still: nobody reports, nobody hears that the time is over. */
static int halt_init(void)
{
	if (ptrace(PTRACE_ATTACH, 1, NULL, NULL)) {
		perror("ptrace");
		return 1;
	}
	puts("attached");
	fflush(stdout);
	pause();
	return 1;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*does)(void);
	} attempts[] = {
		{"forks", forks},	  {"fill", fill},   {"ports", ports},
		{"registers", registers}, {"vsock", vsock}, {"hang-up", hang_up},
		{"halt-init", halt_init},
	};

	if (argc == 3 && !strcmp(argv[1], "forge"))
		return forge((unsigned)atoi(argv[2]));
	for (size_t i = 0; argc == 2 && i < sizeof(attempts) / sizeof(attempts[0]); i++)
		if (!strcmp(argv[1], attempts[i].name))
			return attempts[i].does();
	fputs("usage: hostile forks | fill | ports | registers | vsock | hang-up | halt-init | "
	      "forge TYPE\n",
	      stderr);
	return 2;
}
