/* SPDX-License-Identifier: Apache-2.0 */
/* Sparse files as GNU tar stores them: its own header, and pax formats 0.0, 0.1 and 1.0 (GNU tar
 * manual, D.2). */
#include <stdlib.h>
#include <string.h>

#include "tar.h"

/* Offsets in the old GNU header and in the blocks that may follow it. */
enum {
	OLD_SPANS = 386,
	OLD_SPAN_COUNT = 4,
	OLD_MORE = 482,
	OLD_REAL_SIZE = 483,
	EXTENSION_SPAN_COUNT = 21,
	EXTENSION_MORE = 504,
	SPAN_SIZE = 24,
};

static int bad_map(struct tar *t)
{
	return fail(t->failure, EXT4_IMAGE, "%s: bad sparse map", t->entry.name);
}

int tar_span(struct tar *t, struct span **spans, size_t *count, uint64_t offset, uint64_t size)
{
	struct span *grown = *spans;

	if (*count >= TAR_SPANS_MAX)
		return fail(t->failure, EXT4_IMAGE, "a sparse file has more than %u pieces",
			    TAR_SPANS_MAX);
	if ((*count & (*count - 1)) == 0) { /* grow at powers of two */
		grown = realloc(*spans, (*count ? 2 * *count : 1) * sizeof(*grown));
		if (!grown)
			return fail(t->failure, EXT4_HOST, "out of memory");
		*spans = grown;
	}
	grown[(*count)++] = (struct span){.offset = offset, .size = size};
	return 0;
}

static int old_spans(struct tar *t, const unsigned char *field, size_t count)
{
	struct tar_entry *e = &t->entry;

	for (; count && field[0]; count--, field += SPAN_SIZE) {
		int64_t offset, size;
		int err = tar_number(t, field, 12, "sparse map", &offset);

		if (!err)
			err = tar_number(t, field + 12, 12, "sparse map", &size);
		if (!err && (offset < 0 || size < 0))
			err = bad_map(t);
		if (!err)
			err = tar_span(t, &e->spans, &e->span_count, (uint64_t)offset,
				       (uint64_t)size);
		if (err)
			return err;
	}
	return 0;
}

int tar_sparse_old(struct tar *t, const unsigned char *header)
{
	const unsigned char *block = header;
	size_t more = OLD_MORE;
	int64_t size;
	int err = tar_number(t, header + OLD_REAL_SIZE, 12, "size", &size);

	if (!err && size < 0)
		err = bad_map(t);
	if (err)
		return err;
	t->entry.size = (uint64_t)size;
	err = old_spans(t, header + OLD_SPANS, OLD_SPAN_COUNT);
	while (!err && block[more]) {
		more = EXTENSION_MORE;
		err = tar_take(t, TAR_BLOCK, &block);
		if (!err)
			err = old_spans(t, block, EXTENSION_SPAN_COUNT);
	}
	return err;
}

/* The bytes of a format 1.0 map, which stands in front of the data in blocks of its own. */
struct map_reader {
	const unsigned char *block;
	size_t used;
};

static int map_number(struct tar *t, struct map_reader *map, uint64_t *out)
{
	uint64_t value = 0;
	bool digits = false;

	for (;;) {
		unsigned char byte;

		if (map->used == TAR_BLOCK) {
			int err = t->left < TAR_BLOCK ? bad_map(t)
						      : tar_take(t, TAR_BLOCK, &map->block);

			if (err)
				return err;
			t->left -= TAR_BLOCK;
			map->used = 0;
		}
		byte = map->block[map->used++];
		if (byte == '\n' && digits)
			break;
		if (byte < '0' || byte > '9' || value > (UINT64_MAX >> 4) / 10)
			return bad_map(t);
		value = value * 10 + (byte - '0');
		digits = true;
	}
	*out = value;
	return 0;
}

static int map_in_data(struct tar *t)
{
	struct map_reader map = {.used = TAR_BLOCK};
	struct tar_entry *e = &t->entry;
	uint64_t count, offset, size;
	int err = map_number(t, &map, &count);

	while (!err && count--) {
		err = map_number(t, &map, &offset);
		if (!err)
			err = map_number(t, &map, &size);
		if (!err)
			err = tar_span(t, &e->spans, &e->span_count, offset, size);
	}
	return err;
}

/* A regular file: whole, or sparse if the pax records say so. */
int tar_sparse_pax(struct tar *t)
{
	struct tar_overrides *o = &t->overrides;
	struct tar_entry *e = &t->entry;

	if (o->sparse_name) {
		free(e->name);
		e->name = o->sparse_name;
		o->sparse_name = NULL;
	}
	if (!o->has_real_size)
		return tar_span(t, &e->spans, &e->span_count, 0, e->size);
	e->size = o->real_size;
	if (o->sparse_major == 1 && o->sparse_minor == 0)
		return map_in_data(t);
	if (o->sparse_major || o->span_open)
		return bad_map(t);
	e->spans = o->spans;
	e->span_count = o->span_count;
	o->spans = NULL;
	return 0;
}

/* Spans must rise, stay within the file, and together be exactly the data that is stored. */
int tar_sparse_check(struct tar *t)
{
	const struct tar_entry *e = &t->entry;
	uint64_t end = 0, total = 0;

	for (size_t i = 0; i < e->span_count; i++) {
		const struct span *s = &e->spans[i];

		if (s->offset < end || s->offset > e->size || s->size > e->size - s->offset)
			return bad_map(t);
		end = s->offset + s->size;
		total += s->size;
	}
	return total == t->left ? 0 : bad_map(t);
}
