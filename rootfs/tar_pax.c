/* SPDX-License-Identifier: Apache-2.0 */
/* The records of a pax extended header, "length keyword=value\n" (POSIX.1-2001, pax). */
#include <stdlib.h>
#include <string.h>

#include "tar.h"

#define XATTR_PREFIX "SCHILY.xattr."
#define XATTRS_MAX   256u /* of one entry; ext4 has room for fewer, and each is looked for */

static int bad_record(struct tar *t, const char *what)
{
	return fail(t->failure, EXT4_IMAGE, "a pax header has a bad %s", what);
}

/* Reads digits up to the terminator given, and steps over it unless it is the text's own end. */
int tar_decimal(struct tar *t, const char **text, char end, const char *what, uint64_t *out)
{
	const char *p = *text;
	uint64_t value = 0;

	do {
		if (*p < '0' || *p > '9' || value > (UINT64_MAX >> 4) / 10)
			return bad_record(t, what);
		value = value * 10 + (unsigned)(*p++ - '0');
	} while (*p != end);
	*text = end ? p + 1 : p;
	*out = value;
	return 0;
}

static int whole_number(struct tar *t, const char *value, const char *what, uint64_t max,
			uint64_t *out)
{
	int err = tar_decimal(t, &value, '\0', what, out);

	return !err && *out > max ? bad_record(t, what) : err;
}

static int identifier(struct tar *t, const char *value, const char *what, bool *has, uint32_t *out)
{
	uint64_t number;
	int err = whole_number(t, value, what, UINT32_MAX, &number);

	if (err)
		return err;
	*has = true;
	*out = (uint32_t)number;
	return 0;
}

/* Seconds with an optional sign and fraction. Nanoseconds count up from the second before. */
static int timestamp(struct tar *t, const char *value)
{
	struct tar_overrides *o = &t->overrides;
	bool negative = *value == '-';
	const char *point = strchr(value, '.');
	char seconds[24];
	uint64_t whole;
	size_t length;
	uint32_t ns = 0;
	int err;

	value += negative;
	length = point ? (size_t)(point - value) : strlen(value);
	if ((point && point < value) || length >= sizeof(seconds))
		return bad_record(t, "mtime");
	memcpy(seconds, value, length);
	seconds[length] = '\0';
	err = whole_number(t, seconds, "mtime", INT64_MAX - 1, &whole);
	if (err)
		return err;
	for (uint32_t unit = 100000000; point && *++point; unit /= 10) {
		if (*point < '0' || *point > '9')
			return bad_record(t, "mtime");
		ns += unit * (uint32_t)(*point - '0');
	}
	o->has_mtime = true;
	o->mtime = negative ? -(int64_t)whole : (int64_t)whole;
	o->mtime_ns = ns;
	if (negative && ns) {
		o->mtime--;
		o->mtime_ns = 1000000000 - ns;
	}
	return 0;
}

static int set_text(struct tar *t, char **slot, const char *value, size_t size)
{
	if (memchr(value, '\0', size))
		return bad_record(t, "name");
	free(*slot);
	*slot = strndup(value, size);
	return *slot ? 0 : fail(t->failure, EXT4_HOST, "out of memory");
}

static int add_xattr(struct tar *t, const char *name, const char *value, size_t size)
{
	struct xattr **slot = &t->overrides.xattrs;
	size_t length = strlen(name);
	unsigned count = 0;
	struct xattr *x;

	if (length > 255)
		return bad_record(t, "extended attribute name");
	for (; *slot && strcmp((*slot)->name, name) != 0; slot = &(*slot)->next)
		count++;
	if (count >= XATTRS_MAX)
		return fail(t->failure, EXT4_IMAGE, "more than %u extended attributes", XATTRS_MAX);
	x = malloc(sizeof(*x) + length + 1 + size);
	if (!x)
		return fail(t->failure, EXT4_HOST, "out of memory");
	x->size = size;
	x->name = memcpy(x + 1, name, length + 1);
	x->value = size ? memcpy(x->name + length + 1, value, size) : NULL;
	x->next = *slot ? (*slot)->next : NULL;
	free(*slot); /* a later record of the same name wins */
	*slot = x;
	return 0;
}

/* GNU.sparse.map: "offset,size,offset,size..." (format 0.1) */
static int sparse_map(struct tar *t, const char *value)
{
	struct tar_overrides *o = &t->overrides;

	while (*value) {
		uint64_t offset, size;
		int err = tar_decimal(t, &value, ',', "sparse map", &offset);

		if (!err)
			err = tar_decimal(t, &value, strchr(value, ',') ? ',' : '\0', "sparse map",
					  &size);
		if (!err)
			err = tar_span(t, &o->spans, &o->span_count, offset, size);
		if (err)
			return err;
	}
	return 0;
}

/* GNU.sparse.offset and GNU.sparse.numbytes in turn (format 0.0) */
static int sparse_pair(struct tar *t, bool is_offset, const char *value)
{
	struct tar_overrides *o = &t->overrides;
	uint64_t number;
	int err = whole_number(t, value, "sparse map", UINT64_MAX >> 4, &number);

	if (!err && o->span_open == is_offset)
		err = bad_record(t, "sparse map");
	if (!err && is_offset)
		err = tar_span(t, &o->spans, &o->span_count, number, 0);
	else if (!err)
		o->spans[o->span_count - 1].size = number;
	o->span_open = is_offset;
	return err;
}

static int sparse(struct tar *t, const char *key, const char *value, size_t size)
{
	struct tar_overrides *o = &t->overrides;
	uint64_t number = 0;
	int err = 0;

	if (!strcmp(key, "name"))
		return set_text(t, &o->sparse_name, value, size);
	if (!strcmp(key, "map"))
		return sparse_map(t, value);
	if (!strcmp(key, "offset") || !strcmp(key, "numbytes"))
		return sparse_pair(t, key[0] == 'o', value);
	err = whole_number(t, value, "sparse number", UINT64_MAX >> 4, &number);
	if (err)
		return err;
	if (!strcmp(key, "major"))
		o->sparse_major = number > 1 ? 2 : (unsigned)number;
	else if (!strcmp(key, "minor"))
		o->sparse_minor = number > 1 ? 2 : (unsigned)number;
	else if (!strcmp(key, "size") || !strcmp(key, "realsize")) {
		o->has_real_size = true;
		o->real_size = number;
	}
	return 0;
}

static int record(struct tar *t, const char *key, const char *value, size_t size)
{
	struct tar_overrides *o = &t->overrides;
	int err;

	if (!strncmp(key, XATTR_PREFIX, strlen(XATTR_PREFIX)))
		return add_xattr(t, key + strlen(XATTR_PREFIX), value, size);
	if (size == 0) /* takes an earlier record back, of which there is none to speak of */
		return 0;
	if (!strcmp(key, "path"))
		return set_text(t, &o->name, value, size);
	if (!strcmp(key, "linkpath"))
		return set_text(t, &o->link, value, size);
	if (!strcmp(key, "uid"))
		return identifier(t, value, "uid", &o->has_uid, &o->uid);
	if (!strcmp(key, "gid"))
		return identifier(t, value, "gid", &o->has_gid, &o->gid);
	if (!strcmp(key, "mtime"))
		return timestamp(t, value);
	if (!strncmp(key, "GNU.sparse.", 11))
		return sparse(t, key + 11, value, size);
	if (strcmp(key, "size") != 0)
		return 0;
	err = whole_number(t, value, "size", UINT64_MAX >> 4, &o->size);
	o->has_size = true;
	return err;
}

/* Takes the records apart in place; data[size] must be writable (and is NUL). */
int tar_pax(struct tar *t, char *records, size_t size)
{
	char *end = records + size;

	while (records < end && *records) { /* some writers pad with NULs */
		const char *p = records;
		char *equals, *last;
		uint64_t length;
		int err = tar_decimal(t, &p, ' ', "record length", &length);

		if (err)
			return err;
		if (length > (uint64_t)(end - records) || records + length <= p)
			return bad_record(t, "record length");
		last = records + length - 1;
		equals = memchr(p, '=', (size_t)(last - p));
		if (*last != '\n' || !equals || equals == p)
			return bad_record(t, "record");
		*equals = *last = '\0';
		err = record(t, p, equals + 1, (size_t)(last - equals - 1));
		if (err)
			return err;
		records = last + 1;
	}
	return 0;
}
