/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads a tar stream: ustar, pax (POSIX.1-2001, pax "pax Interchange Format") and the GNU
 * extensions that layers hold. Names are bytes, never converted: a locale must not decide what a
 * file is called, and a general archive library converts pax names to it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tar.h"

#define BUFFER_SIZE (256u << 10)

/* Offsets in a header block. */
enum {
	NAME = 0,
	MODE = 100,
	UID = 108,
	GID = 116,
	SIZE = 124,
	MTIME = 136,
	CHECKSUM = 148,
	TYPE = 156,
	LINK = 157,
	MAGIC = 257,
	MAJOR = 329,
	MINOR = 337,
	PREFIX = 345,
	STAR_MAGIC = 508,
};

static int read_error(struct tar *t)
{
	return fail(t->failure, EXT4_HOST, "cannot read the layer: %s", strerror(errno));
}

static int truncated(struct tar *t)
{
	return fail(t->failure, EXT4_IMAGE, "the archive is truncated");
}

static int no_memory(struct tar *t)
{
	return fail(t->failure, EXT4_HOST, "out of memory");
}

/* Has at least size bytes in the buffer, fewer only at the end of the stream. */
static int fill(struct tar *t, size_t size)
{
	if (t->end - t->start >= size)
		return 0;
	memmove(t->buffer, t->buffer + t->start, t->end - t->start);
	t->end -= t->start;
	t->start = 0;
	while (t->end < size) {
		ssize_t n = read(t->fd, t->buffer + t->end, BUFFER_SIZE - t->end);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return read_error(t);
		if (n == 0)
			break;
		t->end += (size_t)n;
	}
	return 0;
}

int tar_take(struct tar *t, size_t size, const unsigned char **bytes)
{
	int err = fill(t, size);

	if (err)
		return err;
	if (t->end - t->start < size)
		return truncated(t);
	*bytes = t->buffer + t->start;
	t->start += size;
	return 0;
}

/* Steps over bytes, fewer where the stream ends; *missing is how many. */
static int skip(struct tar *t, uint64_t size, uint64_t *missing)
{
	while (size) {
		size_t n = t->end - t->start;
		int err = n ? 0 : fill(t, 1);

		if (err)
			return err;
		n = t->end - t->start;
		if (n == 0)
			break;
		if (n > size)
			n = size;
		t->start += n;
		size -= n;
	}
	*missing = size;
	return 0;
}

/* The writer at the other end must be able to send (and hash) what follows the end mark. */
static int drain(struct tar *t)
{
	do {
		int err;

		t->start = t->end = 0;
		err = fill(t, 1);
		if (err)
			return err;
	} while (t->end);
	return 0;
}

/* Octal digits, or base 256 where the first bit is set: two's complement, most significant byte
 * first. */
int tar_number(struct tar *t, const unsigned char *field, size_t size, const char *what,
	       int64_t *out)
{
	uint64_t value = 0;
	size_t i = 0;

	if (field[0] & 0x80) {
		unsigned char sign = field[0] & 0x40 ? 0xff : 0;

		value = sign ? UINT64_MAX : 0;
		for (i = 0; i < size; i++) {
			unsigned char byte = i ? field[i] : (field[0] & 0x7f) | (sign & 0x80);
			/* What is shifted out, and the sign bit that stays, must all be sign. */
			if ((int64_t)value >> 55 != (sign ? -1 : 0))
				goto bad;
			value = value << 8 | byte;
		}
		*out = (int64_t)value;
		return 0;
	}
	while (i < size && (field[i] == ' ' || field[i] == '\0'))
		i++;
	for (; i < size && field[i] != ' ' && field[i] != '\0'; i++) {
		if (field[i] < '0' || field[i] > '7')
			goto bad;
		value = value << 3 | (unsigned)(field[i] - '0'); /* at most 12 digits */
	}
	*out = (int64_t)value;
	return 0;
bad:
	return fail(t->failure, EXT4_IMAGE, "a tar header has a bad %s", what);
}

static int identifier(struct tar *t, const unsigned char *field, const char *what, uint32_t *out)
{
	int64_t value;
	int err = tar_number(t, field, 8, what, &value);

	if (err)
		return err;
	if (value < 0 || value > UINT32_MAX)
		return fail(t->failure, EXT4_IMAGE, "a tar header has a bad %s", what);
	*out = (uint32_t)value;
	return 0;
}

static bool is_zero(const unsigned char *block)
{
	return block[0] == 0 && memcmp(block, block + 1, TAR_BLOCK - 1) == 0;
}

/* Some old writers summed signed characters. */
static bool checksum_ok(struct tar *t, const unsigned char *header)
{
	int64_t expected, sum = 0, signed_sum = 0;

	if (tar_number(t, header + CHECKSUM, 8, "checksum", &expected))
		return false;
	for (size_t i = 0; i < TAR_BLOCK; i++) {
		unsigned char byte = i >= CHECKSUM && i < CHECKSUM + 8 ? ' ' : header[i];

		sum += byte;
		signed_sum += (signed char)byte;
	}
	return expected == sum || expected == signed_sum;
}

static char *text_field(const unsigned char *header, size_t offset, size_t size)
{
	return strndup((const char *)header + offset, size);
}

/* POSIX puts the front of a long name into "prefix"; GNU and star keep other things there. */
static char *header_name(const unsigned char *header)
{
	size_t prefix = strnlen((const char *)header + PREFIX, 155);
	size_t name = strnlen((const char *)header + NAME, 100);
	char *whole;

	if (memcmp(header + MAGIC, "ustar", 6) != 0)
		prefix = 0;
	else if (memcmp(header + STAR_MAGIC, "tar", 4) == 0 && prefix > 131)
		prefix = 131;
	if (prefix == 0)
		return text_field(header, NAME, 100);
	whole = malloc(prefix + 1 + name + 1);
	if (!whole)
		return NULL;
	memcpy(whole, header + PREFIX, prefix);
	whole[prefix] = '/';
	memcpy(whole + prefix + 1, header + NAME, name);
	whole[prefix + 1 + name] = '\0';
	return whole;
}

static void free_xattrs(struct xattr *x)
{
	while (x) {
		struct xattr *next = x->next;

		free(x);
		x = next;
	}
}

void tar_overrides_clear(struct tar_overrides *o)
{
	free(o->name);
	free(o->link);
	free(o->sparse_name);
	free(o->spans);
	free_xattrs(o->xattrs);
	memset(o, 0, sizeof(*o));
}

static void entry_clear(struct tar_entry *e)
{
	free(e->name);
	free(e->link);
	free(e->spans);
	free_xattrs(e->xattrs);
	memset(e, 0, sizeof(*e));
}

static void replace(char **slot, char **value)
{
	free(*slot);
	*slot = *value;
	*value = NULL;
}

/* The data of a pax header or a GNU long name: extended, not a file's. */
static int extended(struct tar *t, char type, uint64_t size)
{
	unsigned padding = (unsigned)(-size % TAR_BLOCK);
	const unsigned char *bytes = NULL;
	char *data;
	int err;

	if (size > TAR_EXTENDED_MAX)
		return fail(t->failure, EXT4_IMAGE, "an extended tar header is larger than 1 MiB");
	if (type == 'g') { /* global defaults: no reader of layers honours them */
		uint64_t missing;

		err = skip(t, size + padding, &missing);
		return !err && missing ? truncated(t) : err;
	}
	data = malloc(size + 1);
	if (!data)
		return no_memory(t);
	for (size_t done = 0; done < size; done += TAR_BLOCK) {
		size_t n = size - done < TAR_BLOCK ? size - done : TAR_BLOCK;

		err = tar_take(t, TAR_BLOCK, &bytes);
		if (err)
			goto out;
		memcpy(data + done, bytes, n);
	}
	data[size] = '\0';
	err = 0;
	if (type == 'x')
		err = tar_pax(t, data, size);
	else
		replace(type == 'L' ? &t->overrides.name : &t->overrides.link, &data);
out:
	free(data);
	return err;
}

static int device(struct tar *t, const unsigned char *header, struct tar_entry *e)
{
	int err = identifier(t, header + MAJOR, "device number", &e->major);

	if (!err)
		err = identifier(t, header + MINOR, "device number", &e->minor);
	/* What Linux can have: 12 bits and 20 bits. */
	if (!err && (e->major >> 12 || e->minor >> 20))
		err = fail(t->failure, EXT4_IMAGE, "%s: device %u:%u does not exist on Linux",
			   e->name, e->major, e->minor);
	return err;
}

/* Reads the header of one entry, with what the extended headers before it said, into t->entry. */
static int entry(struct tar *t, const unsigned char *header, uint64_t size)
{
	struct tar_overrides *o = &t->overrides;
	struct tar_entry *e = &t->entry;
	int64_t mode;
	int err;

	e->name = header_name(header);
	e->link = text_field(header, LINK, 100);
	if (!e->name || !e->link)
		return no_memory(t);
	if (o->name)
		replace(&e->name, &o->name);
	if (o->link)
		replace(&e->link, &o->link);
	e->type = (char)header[TYPE];
	if (e->type == '\0') { /* before POSIX a directory was a name that ends in a slash */
		size_t length = strlen(e->name);

		e->type = length && e->name[length - 1] == '/' ? '5' : '0';
	}
	if (e->type == '7') /* "contiguous" */
		e->type = '0';

	err = tar_number(t, header + MODE, 8, "mode", &mode);
	if (!err)
		err = tar_number(t, header + MTIME, 12, "time", &e->mtime);
	if (!err && !o->has_uid)
		err = identifier(t, header + UID, "owner", &e->uid);
	if (!err && !o->has_gid)
		err = identifier(t, header + GID, "group", &e->gid);
	if (err)
		return err;
	e->mode = (uint32_t)mode & 07777;
	if (o->has_uid)
		e->uid = o->uid;
	if (o->has_gid)
		e->gid = o->gid;
	if (o->has_mtime) {
		e->mtime = o->mtime;
		e->mtime_ns = o->mtime_ns;
	}
	e->xattrs = o->xattrs;
	o->xattrs = NULL;

	switch (e->type) {
	case '3':
	case '4':
		err = device(t, header, e);
		break;
	case '1':
	case '2':
	case '5':
	case '6':
		break;
	case '0':
		e->size = t->left = size;
		err = tar_sparse_pax(t);
		break;
	case 'S':
		e->type = '0';
		t->left = size;
		err = tar_sparse_old(t, header);
		break;
	default:
		err = fail(t->failure, EXT4_IMAGE, "%s: unknown tar entry type 0x%02x", e->name,
			   header[TYPE]);
	}
	/* A size in the header of what has no data is noise, as Go's archive/tar has it. */
	t->padding = (unsigned)(-t->left % TAR_BLOCK);
	return err ? err : tar_sparse_check(t);
}

int tar_open(struct tar *t, int fd, struct failure *failure)
{
	memset(t, 0, sizeof(*t));
	t->fd = fd;
	t->failure = failure;
	t->buffer = malloc(BUFFER_SIZE);
	return t->buffer ? 0 : no_memory(t);
}

void tar_close(struct tar *t)
{
	entry_clear(&t->entry);
	tar_overrides_clear(&t->overrides);
	free(t->buffer);
}

int tar_next(struct tar *t, struct tar_entry **out)
{
	uint64_t missing;
	int err = skip(t, t->left + t->padding, &missing);

	/* Some writers end without padding and end mark: Go's, if it is not closed, as by umoci
	 * insert. */
	if (!err && missing > t->padding)
		err = truncated(t);
	*out = NULL;
	t->left = t->padding = 0;
	t->span = t->span_done = 0;
	entry_clear(&t->entry);
	tar_overrides_clear(&t->overrides);
	while (!err) {
		const unsigned char *block = NULL;
		unsigned char header[TAR_BLOCK];
		int64_t size;

		err = fill(t, 1);
		if (!err && t->start == t->end)
			return 0; /* no end mark: the hash of the stream tells truncation */
		if (!err)
			err = tar_take(t, TAR_BLOCK, &block);
		if (err)
			return err;
		if (is_zero(block))
			return drain(t);
		if (!checksum_ok(t, block))
			return fail(t->failure, EXT4_IMAGE, "a tar header has a bad checksum");
		err = tar_number(t, block + SIZE, 12, "size", &size);
		if (!err && (size < 0 || size >> 60))
			err = fail(t->failure, EXT4_IMAGE, "a tar header has a bad size");
		if (err)
			return err;
		memcpy(header, block, TAR_BLOCK); /* reading on moves the buffer */
		/* Without the string's end: 0 is a type.
		 * NOLINTNEXTLINE(bugprone-not-null-terminated-result) */
		if (!memchr("xgLK", header[TYPE], 4)) {
			err = entry(t, header,
				    t->overrides.has_size ? t->overrides.size : (uint64_t)size);
			if (!err)
				*out = &t->entry;
			return err;
		}
		err = extended(t, (char)header[TYPE], (uint64_t)size);
	}
	return err;
}

int tar_data(struct tar *t, const void **data, size_t *size, uint64_t *offset)
{
	const struct tar_entry *e = &t->entry;
	const struct span *span;
	size_t n;
	int err;

	*size = 0;
	while (t->span < e->span_count && t->span_done == e->spans[t->span].size) {
		t->span++;
		t->span_done = 0;
	}
	if (t->span == e->span_count)
		return 0;
	span = &e->spans[t->span];
	err = fill(t, 1);
	if (err)
		return err;
	n = t->end - t->start;
	if (n == 0)
		return truncated(t);
	if (n > span->size - t->span_done)
		n = span->size - t->span_done;
	*data = t->buffer + t->start;
	*size = n;
	*offset = span->offset + t->span_done;
	t->start += n;
	t->span_done += n;
	t->left -= n;
	return 0;
}
