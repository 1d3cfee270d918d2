/* What busybox cannot do for the guest tests: one static program, its first argument says what. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
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

struct on_cpu {
	pthread_t thread;
	pthread_barrier_t *all;
	int want, got;
	unsigned apic, x2apic;
};

static void *on_cpu(void *argument)
{
	struct on_cpu *self = argument;
	unsigned a, b, c, d;
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(self->want, &one);
	if (sched_setaffinity(0, sizeof(one), &one))
		return NULL;
	pthread_barrier_wait(self->all); /* each thread is on its CPU before one goes on */
	self->got = sched_getcpu();
	__cpuid(1, a, b, c, d);
	self->apic = b >> 24;
	__cpuid_count(0xb, 0, a, b, c, d);
	self->x2apic = b ? d : self->apic;
	return NULL;
}

/* A thread on each CPU at once: where it finds itself, and that CPU's APIC id by two leaves. */
static int cpus(void)
{
	static struct on_cpu threads[CPU_SETSIZE];
	pthread_barrier_t all;
	cpu_set_t allowed;
	int n = 0;

	sched_getaffinity(0, sizeof(allowed), &allowed);
	pthread_barrier_init(&all, NULL, CPU_COUNT(&allowed));
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &allowed))
			continue;
		threads[n] = (struct on_cpu){.all = &all, .want = cpu, .got = -1};
		if (pthread_create(&threads[n].thread, NULL, on_cpu, &threads[n]))
			return 1;
		n++;
	}
	for (int i = 0; i < n; i++) {
		pthread_join(threads[i].thread, NULL);
		printf("%d %u %u\n", threads[i].got, threads[i].apic, threads[i].x2apic);
	}
	return 0;
}

static uint64_t physical(int pagemap, const void *address)
{
	uint64_t entry = 0;

	if (pread(pagemap, &entry, sizeof(entry), (uintptr_t)address / 4096 * 8) < 0)
		return 0;
	return entry >> 63 ? (entry & ((1ull << 55) - 1)) * 4096 : 0;
}

/* Two MiB of memory, and this program's code, which came from the disk: where they lie, and whether
 * each word of the memory keeps what is its own. Kernels hand out the highest memory first.
 */
static int high(void)
{
	enum { PAGES = 512, WORDS = 512 };
	static uint64_t memory[PAGES][WORDS] __attribute__((aligned(4096)));
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	unsigned above = 0, wrong = 0;

	for (uint64_t i = 0; i < PAGES; i++)
		for (unsigned j = 0; j < WORDS; j++)
			memory[i][j] = ~(i << 32 | j);
	for (uint64_t i = 0; i < PAGES; i++) {
		above += physical(pagemap, memory[i]) >> 32 != 0;
		for (unsigned j = 0; j < WORDS; j++)
			wrong += memory[i][j] != ~(i << 32 | j);
	}
	printf("%u pages above 4 GiB\n%u words wrong\n", above, wrong);
	puts(physical(pagemap, (void *)high) >> 32 ? "code above 4 GiB" : "code below 4 GiB");
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
	if (argc == 2 && !strcmp(argv[1], "cpus"))
		return cpus();
	if (argc == 2 && !strcmp(argv[1], "high"))
		return high();
	fputs("usage: probe flood MIB | eat | ports | cpus | high | xattr PATH NAME\n", stderr);
	return 2;
}
