/* What busybox cannot do for the guest tests: one static program, its first argument says what. */
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static sigjmp_buf after_fault;

static void write_all(int fd, const void *data, size_t size)
{
	for (const char *at = data; size;) {
		ssize_t n = write(fd, at, size);

		if (n < 0) {
			perror("write");
			exit(1);
		}
		at += n;
		size -= n;
	}
}

/* Bytes that depend on their place: xorshift64, Marsaglia 2003. */
static void stream(int fd, uint64_t seed, unsigned mib)
{
	static uint64_t block[8192];

	for (unsigned i = 0; i < mib * 16; i++) {
		for (unsigned j = 0; j < 8192; j++) {
			seed ^= seed << 13;
			seed ^= seed >> 7;
			seed ^= seed << 17;
			block[j] = seed;
		}
		write_all(fd, block, sizeof(block));
	}
}

/* Both outputs at once: a process each. */
static int flood(unsigned mib)
{
	if (!fork()) {
		stream(2, 0x9e3779b97f4a7c15, mib);
		_exit(0);
	}
	stream(1, 0x2545f4914f6cdd1d, mib);
	wait(NULL); /* or init ends the other half with us */
	return 0;
}

static int eat(void)
{
	for (;;) {
		char *more = malloc(1 << 20);

		if (!more)
			return 3;
		memset(more, 1, 1 << 20);
	}
}

static void on_fault(int signal)
{
	siglongjmp(after_fault, signal);
}

/* The VMM's ports must not be the program's: it could end the machine or forge marks. */
static int ports(void)
{
	signal(SIGSEGV, on_fault);
	if (sigsetjmp(after_fault, 1)) {
		puts("outb: SIGSEGV");
	} else {
		outb(1, 0x604);
		puts("outb: done");
	}
	puts(iopl(3) ? "iopl: refused" : "iopl: done");
	return 0;
}

static int xattr(const char *path, const char *name)
{
	char value[256];
	ssize_t n = getxattr(path, name, value, sizeof(value));

	if (n < 0) {
		perror(path);
		return 1;
	}
	for (ssize_t i = 0; i < n; i++)
		printf("%02x", (unsigned char)value[i]);
	puts("");
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "flood"))
		return flood(atoi(argv[2]));
	if (argc == 2 && !strcmp(argv[1], "eat"))
		return eat();
	if (argc == 2 && !strcmp(argv[1], "ports"))
		return ports();
	if (argc == 4 && !strcmp(argv[1], "xattr"))
		return xattr(argv[2], argv[3]);
	fputs("usage: probe flood MIB | eat | ports | xattr PATH NAME\n", stderr);
	return 2;
}
