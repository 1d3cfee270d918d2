/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ROOTFS_TAR_H
#define ROOTFS_TAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "failure.h"

#define TAR_BLOCK 512u
#define TAR_EXTENDED_MAX                                                                           \
	(1u << 20)		   /* bytes of one pax header or long name; as in other readers    \
				    */
#define TAR_SPANS_MAX (128u << 10) /* data spans of one sparse file */

struct xattr {
	struct xattr *next;
	size_t size;
	char *name; /* terminated; the value follows */
	void *value;
};

/* A stretch of a file that has data, in bytes; between spans there are holes. */
struct span {
	uint64_t offset;
	uint64_t size;
};

struct tar_entry {
	char type; /* '0' file, '1' hard link, '2' symbolic link, '3' and '4' devices, '5'
		      directory, '6' fifo */
	char *name, *link;
	uint32_t mode; /* permissions only */
	uint32_t uid, gid;
	uint32_t major, minor;
	uint32_t mtime_ns;
	int64_t mtime;
	uint64_t size; /* of the file, holes included */
	struct xattr *xattrs;
	struct span *spans;
	size_t span_count;
};

/* What pax records and GNU long names say about the entry that follows them. */
struct tar_overrides {
	bool has_size, has_uid, has_gid, has_mtime, has_real_size;
	uint64_t size, real_size;
	uint32_t uid, gid;
	uint32_t mtime_ns;
	int64_t mtime;
	char *name, *link, *sparse_name;
	unsigned sparse_major, sparse_minor;
	struct xattr *xattrs;
	struct span *spans; /* pax sparse 0.0 and 0.1 */
	size_t span_count;
	bool span_open; /* an offset without its size yet */
};

struct tar {
	int fd;
	struct failure *failure;
	unsigned char *buffer;
	size_t start, end;  /* of the unread bytes in the buffer */
	uint64_t left;	    /* bytes of the entry's data still to come */
	unsigned padding;   /* after them */
	size_t span;	    /* the span being read */
	uint64_t span_done; /* bytes of it already read */
	struct tar_overrides overrides;
	struct tar_entry entry;
};

int tar_open(struct tar *t, int fd, struct failure *failure);
/* Goes to the next entry; *entry is NULL at the end, with the stream read to its end. */
int tar_next(struct tar *t, struct tar_entry **entry);
/* The next piece of the entry's data and where in the file it belongs; size 0 at the end. */
int tar_data(struct tar *t, const void **data, size_t *size, uint64_t *offset);
void tar_close(struct tar *t);

/* For the other tar_*.c */
int tar_take(struct tar *t, size_t size, const unsigned char **bytes);
int tar_number(struct tar *t, const unsigned char *field, size_t size, const char *what,
	       int64_t *out);
int tar_decimal(struct tar *t, const char **text, char end, const char *what, uint64_t *out);
int tar_pax(struct tar *t, char *records, size_t size);
void tar_overrides_clear(struct tar_overrides *o);
int tar_span(struct tar *t, struct span **spans, size_t *count, uint64_t offset, uint64_t size);
int tar_sparse_old(struct tar *t, const unsigned char *header);
int tar_sparse_pax(struct tar *t);
int tar_sparse_check(struct tar *t);

#endif
