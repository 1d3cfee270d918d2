/* The guest's side of test_vsock.py: `vsock WHAT PORT ...` connects to that port of the host's. */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define LONGEST (256 << 10)

static char data[LONGEST], room[LONGEST];

static int dial(unsigned port, int type)
{
	struct sockaddr_vm to = {.svm_family = AF_VSOCK, .svm_cid = 2, .svm_port = port};
	const struct timeval patience = {.tv_sec = 600};
	int fd = socket(AF_VSOCK, type, 0);

	if (fd < 0)
		err(1, "socket");
	/* Linux gives up after 2 s, in which a busy host need not get to it. */
	setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience, sizeof(patience));
	if (connect(fd, (struct sockaddr *)&to, sizeof(to))) {
		puts(strerrorname_np(errno));
		exit(0);
	}
	return fd;
}

static void say(int fd, const void *p, size_t size)
{
	if (send(fd, p, size, 0) != (ssize_t)size)
		err(1, "send of %zu", size);
}

/* Print all that comes, to its end. */
static void hear(int fd)
{
	ssize_t n;

	while ((n = read(fd, room, sizeof(room))) > 0)
		fwrite(room, 1, (size_t)n, stdout);
	puts(n < 0 ? strerrorname_np(errno) : "|");
}

/* Messages of these sizes, to the host and back. */
static void messages(int fd, char **sizes)
{
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (char)(i * 7 >> 4);
	for (char **size = sizes; *size; size++)
		say(fd, data, strtoul(*size, NULL, 10));
	for (char **size = sizes; *size; size++) {
		ssize_t n = recv(fd, room, sizeof(room), 0);

		printf("%zd %s\n", n, n > 0 && !memcmp(data, room, (size_t)n) ? "same" : "other");
	}
}

/* So many connections at once; each is told its number. */
static void many(unsigned port, unsigned count)
{
	struct rlimit files = {count + 16, count + 16};
	int *fds = calloc(count, sizeof(*fds));
	uint32_t right = 0;

	setrlimit(RLIMIT_NOFILE, &files);
	for (uint32_t i = 0; i < count; i++) {
		fds[i] = dial(port, SOCK_STREAM);
		say(fds[i], &i, sizeof(i));
	}
	for (uint32_t i = 0; i < count; i++) {
		uint32_t n = ~i;

		right += recv(fds[i], &n, sizeof(n), MSG_WAITALL) == sizeof(n) && n == i;
	}
	printf("%u\n", right);
}

/* Send until there is no room for a second; say so; stay until the end of stdin. */
static void fill(int fd)
{
	struct pollfd room_for = {.fd = fd, .events = POLLOUT};

	while (poll(&room_for, 1, 1000) > 0)
		if (send(fd, data, sizeof(data), MSG_DONTWAIT) < 0)
			break;
	puts("full");
	fflush(stdout);
	while (read(0, room, 1) > 0)
		;
}

int main(int argc, char **argv)
{
	const char *what = argv[1];
	unsigned port = argc > 2 ? (unsigned)atoi(argv[2]) : 0;
	int fd;

	if (argc > 3 && !strcmp(what, "many")) {
		many(port, (unsigned)atoi(argv[3]));
		return 0;
	}
	fd = dial(port, strcmp(what, "messages") ? SOCK_STREAM : SOCK_SEQPACKET);
	if (!strcmp(what, "messages")) {
		messages(fd, argv + 3);
	} else if (!strcmp(what, "up")) {
		say(fd, "up", 2);
		shutdown(fd, SHUT_WR);
		hear(fd);
	} else if (!strcmp(what, "down")) {
		hear(fd);
		say(fd, "after", 5);
	} else if (!strcmp(what, "fill")) {
		fill(fd);
	} else {
		puts("connected");
	}
	return 0;
}
