/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From an image's layers to a disk. An input is uncompressed tar streams with NEXT_LAYER between
 * them. Whatever it holds, the writer must not fail for a reason of the host's, a disk of the size
 * that it asks for must do, and e2fsck must find nothing wrong with what it made.
 */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "failure.h"
#include "harness.h"

#define NAMES_MAX  5000u	       /* as many as an input can have, or a few less */
#define SMALL_DISK ((uint64_t)1 << 20) /* so small that an input can fill it */
#define PACKET	   1000u	       /* no multiple of a tar block: headers come in two pieces */
#define PIPE_SIZE  (1u << 20)	       /* 256 packets */
#define LAYER_MAX  (PIPE_SIZE / 4096u * PACKET)

#define FSCK_PERIOD 256 /* e2fsck looks at one disk in so many, unless all is to be thorough */

unsigned reached;
const char *const goal = "disks";
bool thorough;

static int disk = -1;
static char disk_path[32];

static void check(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "harness: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
	abort();
}

static void empty_disk(uint64_t size)
{
	if (disk < 0) {
		disk = memfd_create("disk", 0);
		check(disk >= 0, "memfd_create");
		snprintf(disk_path, sizeof(disk_path), "/proc/self/fd/%d", disk);
	}
	check(!ftruncate(disk, 0) && !ftruncate(disk, (off_t)size), "ftruncate");
}

/* The stream in a pipe; of packets, because a read from a socket, too, may end anywhere. */
static int merge(struct ext4_writer *writer, const uint8_t *data, size_t size, bool packets)
{
	int ends[2], status;

	check(!pipe2(ends, (packets ? O_DIRECT : 0) | O_NONBLOCK | O_CLOEXEC), "pipe2");
	check(fcntl(ends[1], F_SETPIPE_SZ, PIPE_SIZE) >= 0, "F_SETPIPE_SZ");
	while (size) {
		size_t n = size < PACKET ? size : PACKET;

		check(write(ends[1], data, n) == (ssize_t)n, "write");
		data += n;
		size -= n;
	}
	close(ends[1]);
	status = ext4_layer(writer, ends[0]);
	close(ends[0]);
	return status;
}

static int write_disk(struct ext4_writer *writer, const uint8_t *data, size_t size)
{
	const uint8_t *end = data + size;
	int status = ext4_status(writer);

	for (bool packets = false; !status; packets = !packets) {
		const uint8_t *mark =
			memmem(data, (size_t)(end - data), NEXT_LAYER, strlen(NEXT_LAYER));

		status = merge(writer, data, (size_t)((mark ? mark : end) - data), packets);
		if (!mark)
			break;
		data = mark + strlen(NEXT_LAYER);
	}
	return status ? status : ext4_finish(writer);
}

static void fsck(void)
{
	char *arguments[] = {"e2fsck", "-fn", disk_path, NULL};
	posix_spawn_file_actions_t quiet;
	char said[4096] = "";
	int status, out = memfd_create("e2fsck", MFD_CLOEXEC);
	pid_t child;

	check(out >= 0, "memfd_create");
	posix_spawn_file_actions_init(&quiet);
	posix_spawn_file_actions_adddup2(&quiet, out, STDOUT_FILENO);
	posix_spawn_file_actions_adddup2(&quiet, out, STDERR_FILENO);
	errno = posix_spawnp(&child, arguments[0], &quiet, NULL, arguments, environ);
	check(!errno, "e2fsck");
	posix_spawn_file_actions_destroy(&quiet);
	check(waitpid(child, &status, 0) == child, "waitpid");
	if (status) {
		check(pread(out, said, sizeof(said) - 1, 0) >= 0, "pread");
		fputs(said, stderr);
	}
	errno = 0;
	check(!status, "e2fsck finds faults");
	close(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint64_t disk_size = SMALL_DISK;

	if (size > LAYER_MAX)
		return -1;
	for (bool again = false;; again = true) {
		struct ext4_writer *writer;
		int status;

		empty_disk(disk_size);
		writer = ext4_create(disk_path, disk_size, NAMES_MAX, UINT32_MAX);
		check(writer, "ext4_create");
		status = write_disk(writer, data, size);
		disk_size = ext4_needed(writer);
		errno = 0;
		check(status != EXT4_HOST, ext4_error(writer));
		ext4_free(writer);
		if (status == EXT4_IMAGE)
			return 0;
		if (status == EXT4_OK)
			break;
		check(!again, "a disk of the size asked for is too small");
	}
	if (reached++ % FSCK_PERIOD == 0 || thorough)
		fsck();
	return 0;
}
