/* Reads and writes one file past the guest's page cache: throughput of the disk below it.
 *
 *   disk FILE     prints a line "NAME VALUE" for each test: MiB/s, or operations a second
 *
 * The file is in the image, so each first write of a block goes from the base to the overlay.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BLOCK	4096u
#define STRETCH (128u << 10)
#define RANDOMS 1000u
#define DEPTH	16u

static int file;
static unsigned blocks; /* of the file */
static unsigned *shuffled;
static uint8_t *buffers;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Fisher and Yates by xorshift64: every run has the same order, and no block comes twice. */
static void shuffle(void)
{
	uint64_t seed = 0x9e3779b97f4a7c15;

	shuffled = malloc(blocks * sizeof(*shuffled));
	for (unsigned i = 0; i < blocks; i++)
		shuffled[i] = i;
	for (unsigned i = blocks - 1; i > 0; i--) {
		seed ^= seed << 13;
		seed ^= seed >> 7;
		seed ^= seed << 17;
		unsigned j = (unsigned)(seed % (i + 1)), kept = shuffled[i];

		shuffled[i] = shuffled[j];
		shuffled[j] = kept;
	}
}

struct test {
	const char *name;
	bool write, random;
	unsigned first; /* where it starts in the shuffled order */
};

static off_t place(const struct test *t, unsigned i)
{
	return t->random ? (off_t)shuffled[t->first + i] * BLOCK : (off_t)i * STRETCH;
}

static void one_by_one(const struct test *t, unsigned count, size_t size)
{
	for (unsigned i = 0; i < count; i++) {
		off_t at = place(t, i);
		ssize_t n =
			t->write ? pwrite(file, buffers, size, at) : pread(file, buffers, size, at);

		if (n != (ssize_t)size)
			fail(t->name);
	}
}

/* `depth` at once: each that is done is followed by the next. */
static void many(const struct test *t, unsigned count, size_t size)
{
	struct iocb cbs[DEPTH], *ready[DEPTH];
	struct io_event done[DEPTH];
	aio_context_t context = 0;
	unsigned next = 0, n = 0;

	if (syscall(SYS_io_setup, DEPTH, &context) < 0)
		fail("io_setup");
	for (; n < DEPTH; n++)
		ready[n] = &cbs[n];
	for (unsigned left = count; left;) {
		unsigned given = 0;

		for (; given < n && next < count; given++, next++) {
			unsigned slot = (unsigned)(ready[given] - cbs);

			*ready[given] = (struct iocb){
				.aio_data = slot,
				.aio_lio_opcode = t->write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
				.aio_fildes = (uint32_t)file,
				.aio_buf = (uint64_t)(uintptr_t)(buffers + slot * STRETCH),
				.aio_nbytes = size,
				.aio_offset = place(t, next),
			};
		}
		if (given && syscall(SYS_io_submit, context, given, ready) != given)
			fail("io_submit");
		long got = syscall(SYS_io_getevents, context, 1, DEPTH, done, NULL);

		if (got < 1)
			fail("io_getevents");
		for (n = 0; n < (unsigned)got; n++) {
			if (done[n].res != (int64_t)size)
				fail(t->name);
			ready[n] = &cbs[done[n].data];
		}
		left -= n;
	}
	syscall(SYS_io_destroy, context);
}

static void measure(const struct test *t, unsigned depth)
{
	size_t size = t->random ? BLOCK : STRETCH;
	unsigned count = t->random ? RANDOMS : blocks / (STRETCH / BLOCK);
	double begin = now();

	(depth == 1 ? one_by_one : many)(t, count, size);
	double took = now() - begin;

	printf("%s-%u %.3f\n", t->name, depth,
	       t->random ? count / took : (double)count * STRETCH / took / (1 << 20));
	fflush(stdout);
}

int main(int argc, char **argv)
{
	/* Every random write is the first of its block; the last writes go over what was written.
	 */
	static const struct test tests[] = {
		{"read", false, false, 0},
		{"random-read", false, true, 0},
		{"random-write", true, true, 0},
		{"write", true, false, 0},
	};
	struct stat info;

	file = open(argc > 1 ? argv[1] : "", O_RDWR | O_DIRECT);
	if (file < 0 || fstat(file, &info) < 0)
		fail("open");
	blocks = (unsigned)(info.st_size / BLOCK);
	buffers = aligned_alloc(BLOCK, DEPTH * STRETCH);
	if (!buffers || blocks < 2 * RANDOMS)
		fail("too small");
	for (size_t i = 0; i < DEPTH * STRETCH; i++)
		buffers[i] = (uint8_t)(i * 7);
	shuffle();
	for (unsigned i = 0; i < 4; i++) {
		struct test deep = tests[i];

		measure(&tests[i], 1);
		deep.first += RANDOMS;
		measure(&deep, DEPTH);
	}
	return 0;
}
