/* Moves bytes between a guest and its host: the same program in both.
 *
 *   vsock guest PORT                              asks the host's PORT what to do, until told
 * "quit" vsock KIND SIZE AMOUNT DIRECTORY FD...        on the host: moves them, and prints "NAME
 * VALUE"
 *
 * KIND is what the guest does: send or receive AMOUNT bytes on each connection in writes of SIZE,
 * or echo AMOUNT times SIZE bytes. Each connection has a process of its own on both sides. The time
 * is the host's, from when all of them are ready until the last has the last byte, or the word of
 * it. DIRECTORY has KVM's statistics of the VM, read before and after
 * (Documentation/virt/kvm/api.rst).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define BUFFER	(1u << 20) /* of a reader, whatever the writes */
#define PAUSE	20000u	   /* microseconds until a refused connection is tried again */
#define TRIES	3000u
#define WORDS	4
#define ROUNDS	2000000u /* of xorshift, a chunk of computing */
#define STREAMS 64u

static uint8_t *buffer;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void write_all(int fd, uint64_t amount, size_t size)
{
	while (amount) {
		size_t want = amount < size ? (size_t)amount : size;

		for (size_t done = 0; done < want;) {
			ssize_t n = write(fd, buffer + done, want - done);

			if (n <= 0)
				fail("write");
			done += (size_t)n;
		}
		amount -= want;
	}
}

static void read_all(int fd, uint64_t amount, size_t size)
{
	while (amount) {
		ssize_t n = read(fd, buffer, amount < size ? (size_t)amount : size);

		if (n <= 0)
			fail("read");
		amount -= (uint64_t)n;
	}
}

/* ---- in the guest ---- */

static int reach(unsigned port)
{
	struct sockaddr_vm to = {
		.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port};

	for (unsigned tries = 0; tries < TRIES; tries++) {
		int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0)
			return fd;
		close(fd);
		usleep(PAUSE); /* nobody may listen there yet */
	}
	fail("connect");
	return -1;
}

static void one_stream(const char *kind, unsigned port, uint64_t amount, size_t size)
{
	int fd = reach(port);

	if (!strcmp(kind, "send")) {
		read_all(fd, 1, 1);
		write_all(fd, amount, size);
	} else if (!strcmp(kind, "receive")) {
		read_all(fd, amount, BUFFER);
		write_all(fd, 1, 1);
	} else {
		for (; amount; amount--) {
			read_all(fd, size, size);
			write_all(fd, size, size);
		}
	}
	if (read(fd, buffer, 1) != 0)
		fail("end");
	exit(0);
}

/* Fixed work, with or without output: the CPU time of the work alone, and of all. */
static void compute(int control, uint64_t chunks, size_t size)
{
	uint64_t begin = now(CLOCK_PROCESS_CPUTIME_ID), work = 0, x = 88172645463325252u;

	for (uint64_t i = 0; i < chunks; i++) {
		uint64_t from = now(CLOCK_PROCESS_CPUTIME_ID);

		for (unsigned n = 0; n < ROUNDS; n++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
		}
		work += now(CLOCK_PROCESS_CPUTIME_ID) - from;
		buffer[0] = (uint8_t)x;
		write_all(1, size, BUFFER);
	}
	dprintf(control, "%" PRIu64 " %" PRIu64 "\n", work, now(CLOCK_PROCESS_CPUTIME_ID) - begin);
}

static int guest(unsigned port)
{
	int control = reach(port);
	FILE *orders = fdopen(control, "r");
	char kind[16];
	unsigned streams;
	size_t size;
	uint64_t amount;

	while (fscanf(orders, "%15s %u %zu %" SCNu64, kind, &streams, &size, &amount) == WORDS) {
		if (!strcmp(kind, "compute")) {
			compute(control, amount, size);
			continue;
		}
		if (!strcmp(kind, "print"))
			write_all(1, amount, size);
		else
			for (unsigned i = 0; i < streams; i++)
				if (fork() == 0)
					one_stream(kind, port + 1, amount, size);
		while (wait(NULL) > 0)
			;
		dprintf(control, "done\n");
	}
	return 0;
}

/* ---- on the host ---- */

struct statistic {
	const char *name;
	uint64_t value;
};

static uint64_t read_number(const char *directory, const char *name)
{
	char path[256], text[32] = "";
	int fd;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0)
		fail(path);
	close(fd);
	return strtoull(text, NULL, 0);
}

static uint64_t read_switches(void)
{
	FILE *file = fopen("/proc/stat", "re");
	char line[256];
	uint64_t value = 0;

	if (!file)
		fail("/proc/stat");
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "ctxt %" SCNu64, &value) == 1)
			break;
	fclose(file);
	return value;
}

/* Of this process and those that it has waited for, in nanoseconds. */
static uint64_t cpu_time(void)
{
	struct rusage ended;

	if (getrusage(RUSAGE_CHILDREN, &ended) < 0)
		fail("getrusage");
	return now(CLOCK_PROCESS_CPUTIME_ID) +
	       ((uint64_t)ended.ru_utime.tv_sec + (uint64_t)ended.ru_stime.tv_sec) * 1000000000u +
	       ((uint64_t)ended.ru_utime.tv_usec + (uint64_t)ended.ru_stime.tv_usec) * 1000u;
}

static void host_stream(const char *kind, int fd, uint64_t amount, size_t size)
{
	if (!strcmp(kind, "send")) {
		write_all(fd, 1, 1);
		read_all(fd, amount, BUFFER);
	} else {
		write_all(fd, amount, size);
		read_all(fd, 1, 1);
	}
	exit(0);
}

static void host_echo(int fd, uint64_t rounds, size_t size)
{
	for (; rounds; rounds--) {
		uint64_t begin = now(CLOCK_MONOTONIC);

		write_all(fd, size, size);
		read_all(fd, size, size);
		printf("round %" PRIu64 "\n", now(CLOCK_MONOTONIC) - begin);
	}
}

/* A process for each connection, all waiting; returns what lets them go. */
static int make_ready(const char *kind, uint64_t amount, size_t size, char **fds, unsigned n)
{
	int gate[2];
	uint8_t token;

	if (pipe2(gate, O_CLOEXEC) < 0)
		fail("pipe");
	for (unsigned i = 0; i < n; i++) {
		if (fork())
			continue;
		if (read(gate[0], &token, 1) != 1)
			fail("gate");
		host_stream(kind, atoi(fds[i]), amount, size);
	}
	return gate[1];
}

static int host(const char *kind, size_t size, uint64_t amount, const char *directory, char **fds,
		unsigned n)
{
	struct statistic before[] = {
		{"exits", 0},	   {"irq_injections", 0}, {"halt_exits", 0},	  {"io_exits", 0},
		{"mmio_exits", 0}, {"irq_exits", 0},	  {"irq_window_exits", 0}};
	unsigned kinds = sizeof(before) / sizeof(before[0]);
	bool echo = !strcmp(kind, "echo");
	int gate = echo ? -1 : make_ready(kind, amount, size, fds, n), status;
	uint64_t begin, end, switches = read_switches();

	if (n > STREAMS)
		return 2;
	for (unsigned i = 0; i < kinds; i++)
		before[i].value = read_number(directory, before[i].name);
	begin = now(CLOCK_MONOTONIC);
	if (echo)
		host_echo(atoi(fds[0]), amount, size);
	else if (write(gate, buffer, n) != (ssize_t)n)
		fail("gate");
	while (wait(&status) > 0)
		if (status)
			return 1;
	end = now(CLOCK_MONOTONIC);
	for (unsigned i = 0; i < kinds; i++)
		printf("%s %" PRIu64 "\n", before[i].name,
		       read_number(directory, before[i].name) - before[i].value);
	printf("switches %" PRIu64 "\n", read_switches() - switches);
	printf("cpu %" PRIu64 "\n", cpu_time());
	printf("ns %" PRIu64 "\n", end - begin);
	return 0;
}

int main(int argc, char **argv)
{
	buffer = malloc(BUFFER);
	if (!buffer)
		fail("malloc");
	memset(buffer, 'x', BUFFER);
	if (argc == 3 && !strcmp(argv[1], "guest"))
		return guest((unsigned)atoi(argv[2]));
	if (argc < 6)
		return 2;
	return host(argv[1], strtoull(argv[2], NULL, 0), strtoull(argv[3], NULL, 0), argv[4],
		    argv + 5, (unsigned)argc - 5);
}
