/* SPDX-License-Identifier: Apache-2.0 */
/* A layer blob, uncompressed: libarchive finds gzip (of several members too) and zstd by their
 * first bytes. */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ext4_cdef.h"

#define READ_SIZE (128u << 10)

struct inflate {
	struct archive *archive;
	bool empty; /* not one uncompressed byte */
	int fd;
	uint64_t offset, left;
	unsigned char buffer[READ_SIZE];
};

static la_ssize_t read_blob(struct archive *archive, void *context, const void **data)
{
	struct inflate *s = context;
	size_t want = s->left < READ_SIZE ? (size_t)s->left : READ_SIZE;
	ssize_t n;

	do
		n = pread(s->fd, s->buffer, want, (off_t)s->offset);
	while (n < 0 && errno == EINTR);
	if (n < 0) {
		archive_set_error(archive, errno, "cannot read: %s", strerror(errno));
		return -1;
	}
	s->offset += (uint64_t)n;
	s->left -= (uint64_t)n;
	*data = s->buffer;
	return n;
}

struct inflate *inflate_open(int fd, uint64_t offset, uint64_t size)
{
	struct inflate *s = calloc(1, sizeof(*s));
	struct archive_entry *entry;

	if (!s)
		return NULL;
	s->fd = fd;
	s->offset = offset;
	s->left = size;
	s->archive = archive_read_new();
	if (!s->archive) {
		free(s);
		return NULL;
	}
	archive_read_support_filter_gzip(s->archive);
	archive_read_support_filter_zstd(s->archive);
	archive_read_support_format_raw(s->archive);
	archive_read_support_format_empty(s->archive);
	/* What fails here fails again, and with the same text, in the first read. */
	if (archive_read_open(s->archive, s, NULL, read_blob, NULL) == ARCHIVE_OK)
		s->empty = archive_read_next_header(s->archive, &entry) == ARCHIVE_EOF;
	return s;
}

int64_t inflate_read(struct inflate *s, void *buffer, size_t size)
{
	int64_t n = s->empty ? 0 : archive_read_data(s->archive, buffer, size);

	return n < 0 ? -1 : n;
}

const char *inflate_error(const struct inflate *s)
{
	const char *text = archive_error_string(s->archive);

	return text ? text : "unreadable";
}

void inflate_close(struct inflate *s)
{
	if (!s)
		return;
	archive_read_free(s->archive);
	free(s);
}
