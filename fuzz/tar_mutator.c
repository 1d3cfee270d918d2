/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mutates layers as what they are: members with headers, data and pax records, whose checksums,
 * sizes and record lengths are put right afterwards. Random bytes would end at the first checksum.
 */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "harness.h"

/* libFuzzer is to follow what the writer does, not this. */
#pragma clang attribute push(__attribute__((no_sanitize("coverage"))), apply_to = function)

#define BLOCK	    512u
#define MEMBERS_MAX 256u
#define ROOM	    (256u << 10) /* bytes of new data in one mutation */
#define COUNT(list) (sizeof(list) / sizeof(*(list)))

/* A header and its data; without a header, a mark between layers or an archive's end. */
struct member {
	bool has_header;
	uint8_t header[BLOCK];
	const uint8_t *data;
	size_t size;
	size_t maps; /* of it, blocks of an old sparse map, which the header's size leaves out */
};

static const struct field {
	unsigned offset, size;
} texts[] = {{0, 100}, {0, 100}, {157, 100}, {157, 100}, {345, 155}},
  numbers[] = {{100, 8}, {108, 8},  {116, 8},  {124, 12}, {136, 12}, {329, 8},
	       {337, 8}, {386, 12}, {398, 12}, {410, 12}, {422, 12}, {483, 12}},
  size_field = {124, 12};

static const char *const names[] = {"a",
				    "b",
				    "c",
				    "a/",
				    "a/b",
				    "a/b/c",
				    "b/a",
				    "a/a/a/a",
				    ".",
				    "..",
				    "/",
				    "./a",
				    "../a",
				    "a/../b",
				    "/a",
				    "a//b/.",
				    ".wh.a",
				    ".wh..wh..opq",
				    "a/.wh.b",
				    ".wh.",
				    ".wh..",
				    ".wh.a/b",
				    "a/../..",
				    "b/c/a",
				    "a/.wh..",
				    ".wh.b",
				    "b/.wh.a",
				    "",
				    "a/b/.wh..wh..opq",
				    "a/.wh..wh..opq"};
static const char *const keys[] = {"path",
				   "linkpath",
				   "uid",
				   "gid",
				   "mtime",
				   "size",
				   "GNU.sparse.major",
				   "GNU.sparse.minor",
				   "GNU.sparse.name",
				   "GNU.sparse.realsize",
				   "GNU.sparse.size",
				   "GNU.sparse.map",
				   "GNU.sparse.offset",
				   "GNU.sparse.numbytes",
				   "GNU.sparse.numblocks",
				   "SCHILY.xattr.user.a",
				   "SCHILY.xattr.user.",
				   "SCHILY.xattr.security.capability",
				   "SCHILY.xattr.trusted.b",
				   "SCHILY.xattr.system.posix_acl_access",
				   "SCHILY.xattr.system.posix_acl_default",
				   "comment"};
static const int64_t values[] = {0,
				 1,
				 2,
				 511,
				 512,
				 513,
				 4095,
				 4096,
				 4097,
				 07777,
				 65536,
				 1 << 20,
				 1 << 30,
				 -1,
				 INT32_MIN,
				 1u << 31,
				 UINT32_MAX,
				 (int64_t)1 << 32,
				 (int64_t)1 << 44,
				 (int64_t)1 << 60,
				 INT64_MAX,
				 INT64_MIN};

static struct member members[MEMBERS_MAX];
static size_t member_count;
static uint8_t input[ROOM], room[ROOM];
static size_t room_used;
static uint64_t state;

static unsigned below(size_t limit)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)((state >> 33) % limit);
}

static uint8_t *allocate(size_t size)
{
	uint8_t *at = room + room_used;

	if (size > ROOM - room_used)
		return NULL;
	room_used += size;
	return at;
}

static int64_t get_number(const uint8_t *field, unsigned size)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < size; i++)
		if (field[0] & 0x80)
			value = value << 8 | (i ? field[i] : field[i] & 0x7f);
		else if (field[i] >= '0' && field[i] <= '7')
			value = value << 3 | (field[i] - '0');
	return (int64_t)value;
}

static void put_number(uint8_t *at, unsigned size, int64_t value)
{
	char text[24];

	if (value >= 0 && value >> (3 * (size - 1)) == 0) {
		snprintf(text, sizeof(text), "%0*llo", (int)size - 1, (unsigned long long)value);
		memcpy(at, text, size);
		return;
	}
	for (unsigned i = size; i--; value >>= 8)
		at[i] = (uint8_t)value;
	at[0] |= 0x80;
}

static bool has_data(const uint8_t *header)
{
	return memchr("0\0007SxgLK", header[156], 8);
}

static void parse(const uint8_t *at, size_t left)
{
	const size_t mark = strlen(NEXT_LAYER);

	member_count = 0;
	while (left && member_count < MEMBERS_MAX) {
		struct member *m = &members[member_count++];
		size_t whole;

		memset(m, 0, sizeof(*m));
		m->data = at;
		m->size = left < BLOCK ? left : BLOCK;
		if (left >= mark && !memcmp(at, NEXT_LAYER, mark))
			m->size = mark;
		else if (left >= BLOCK && at[0]) {
			uint64_t size = (uint64_t)get_number(at + 124, 12);

			m->has_header = true;
			memcpy(m->header, at, BLOCK);
			at += BLOCK;
			left -= BLOCK;
			m->data = at;
			for (unsigned more = 482; m->header[156] == 'S' && m->maps < left;
			     more = 504) {
				if (!(m->maps ? at + m->maps - BLOCK : m->header)[more])
					break;
				m->maps += BLOCK;
			}
			m->maps = m->maps < left ? m->maps : left;
			if (!has_data(m->header))
				size = 0;
			m->size = m->maps + (size < left - m->maps ? (size_t)size : left - m->maps);
		}
		whole = m->has_header ? (m->size + BLOCK - 1) / BLOCK * BLOCK : m->size;
		whole = whole < left ? whole : left;
		at += whole;
		left -= whole;
	}
}

static void repair_checksum(uint8_t *header)
{
	unsigned sum = 0;

	memset(header + 148, ' ', 8);
	for (unsigned i = 0; i < BLOCK; i++)
		sum += header[i];
	snprintf((char *)header + 148, 8, "%06o", sum);
}

static size_t serialize(uint8_t *out, size_t max)
{
	size_t used = 0;

	for (size_t i = 0; i < member_count; i++) {
		struct member *m = &members[i];
		size_t padding = m->has_header ? -m->size % BLOCK : 0;
		size_t header = m->has_header ? BLOCK : 0;

		if (header + m->size + padding > max - used)
			break;
		if (m->has_header && below(64))
			repair_checksum(m->header);
		memcpy(out + used, m->header, header);
		memcpy(out + used + header, m->data, m->size);
		memset(out + used + header + m->size, 0, padding);
		used += header + m->size + padding;
	}
	return used;
}

static struct member *insert(size_t at)
{
	if (member_count == MEMBERS_MAX)
		return NULL;
	memmove(members + at + 1, members + at, (member_count - at) * sizeof(*members));
	member_count++;
	return memset(&members[at], 0, sizeof(*members));
}

/* A text of the list, of another member, one below the other, or a long one. */
static size_t make_name(char *out, size_t max)
{
	const char *name = names[below(COUNT(names))];
	const struct member *other = &members[below(member_count)];

	switch (below(8)) {
	case 0:
	case 1:
		return (size_t)snprintf(out, max, "%.100s", other->header);
	case 2:
		return (size_t)snprintf(out, max, "%.80s/%s", other->header, name);
	case 3:
		memset(out, 'n', max);
		if (below(2)) /* deep, not long */
			for (size_t i = 1; i < max; i += 2)
				out[i] = '/';
		return below(4) ? 1 + below(300) : below(max);
	default:
		return (size_t)snprintf(out, max, "%s", name);
	}
}

static int64_t make_number(void)
{
	return below(3) ? values[below(COUNT(values))] : (int64_t)below(20000);
}

static void set_data(struct member *m, const uint8_t *data, size_t size)
{
	m->data = data;
	m->size = size;
	if (m->has_header && size >= m->maps && below(16))
		put_number(m->header + size_field.offset, size_field.size,
			   (int64_t)(size - m->maps));
}

static void mutate_header(struct member *m)
{
	static char text[4096];
	const struct field *field = &numbers[below(COUNT(numbers))];
	size_t n;

	switch (below(6)) {
	case 0:
	case 1:
		field = &texts[below(COUNT(texts))];
		n = make_name(text, sizeof(text));
		memset(m->header + field->offset, 0, field->size);
		memcpy(m->header + field->offset, text, n < field->size ? n : field->size);
		break;
	case 2:
		put_number(m->header + field->offset, field->size, make_number());
		break;
	case 3:
		m->header[156] = (uint8_t)"0123456\0007SxgLKA"[below(16)];
		break;
	case 4:
		LLVMFuzzerMutate(m->header + field->offset, field->size, field->size);
		break;
	default:
		memcpy(m->header + 257, below(2) ? "ustar\00000" : "ustar  ", 8);
		m->header[482] = below(2) ? 0 : 1;
		memcpy(m->header + 508, below(4) ? "\0\0\0" : "tar", 4);
	}
}

static size_t make_record(uint8_t *out, size_t max)
{
	static char value[4096], body[4200];
	const char *key = keys[below(COUNT(keys))];
	size_t n = make_name(value, sizeof(value)), size, digits = 1;

	if (below(2)) { /* numbers, as many as a sparse map may have */
		n = 0;
		do
			n += (size_t)snprintf(value + n, sizeof(value) - n, "%s%lld", n ? "," : "",
					      (long long)make_number());
		while (n < 1000 && below(4));
		if (!below(4))
			n += (size_t)snprintf(value + n, sizeof(value) - n, ".%u", below(2000));
	}
	size = (size_t)snprintf(body, sizeof(body), " %s=%.*s\n", key, (int)n, value);
	for (size_t power = 10; size + digits >= power; power *= 10)
		digits++;
	if (size + digits > max)
		return 0;
	return (size_t)sprintf((char *)out, "%zu%s", size + digits, body);
}

static void add_record(struct member *m)
{
	uint8_t *data = allocate(m->size + 4300);
	size_t n;

	if (!data)
		return;
	n = make_record(data, 4300);
	memcpy(data + n, m->data, m->size);
	if (below(2)) { /* the later one wins */
		memmove(data + m->size, data, n);
		memcpy(data, m->data, m->size);
	}
	set_data(m, data, n + m->size);
}

/* A member that starts as nothing but a magic, a type and a name. */
static void add_member(size_t at)
{
	struct member *m = insert(at);
	char name[128];
	size_t n;

	if (!m)
		return;
	m->has_header = true;
	m->header[156] = (uint8_t)"0123456\0007SxxxgLK"[below(17)];
	memcpy(m->header + 257, "ustar\00000", 8);
	n = make_name(name, sizeof(name));
	memcpy(m->header, name, n < 100 ? n : 100);
	n = make_name(name, sizeof(name));
	memcpy(m->header + 157, name, n < 100 ? n : 100);
	set_data(m, room, 0);
	if (m->header[156] == 'x')
		add_record(m);
	else if (has_data(m->header)) {
		n = below(4) ? below(1024) : below(16384);
		set_data(m, allocate(n), n);
		if (!m->data)
			set_data(m, room, 0);
		else if (strchr("LK", m->header[156]) && m->header[156])
			make_name((char *)m->data, n ? n : 1);
	}
}

static void mutate_data(struct member *m)
{
	size_t max = m->size + 64;
	uint8_t *data = allocate(max);

	if (!data)
		return;
	memcpy(data, m->data, m->size);
	set_data(m, data, LLVMFuzzerMutate(data, m->size, max));
}

static void mutate_member(void)
{
	size_t at = below(member_count), to = below(member_count);
	struct member *m = &members[at], copy = *m, *made;

	switch (below(10)) {
	case 0:
		memmove(m, m + 1, (--member_count - at) * sizeof(*m));
		break;
	case 1:
		made = insert(to);
		if (made)
			*made = copy;
		break;
	case 2:
		*m = members[to];
		members[to] = copy;
		break;
	case 3:
		made = insert(at);
		if (made)
			set_data(made, (const uint8_t *)NEXT_LAYER, strlen(NEXT_LAYER));
		break;
	case 4:
	case 5:
		add_member(at);
		break;
	case 6:
		if (m->header[156] == 'x' && below(4))
			add_record(m);
		else
			mutate_data(m);
		break;
	default:
		if (m->has_header)
			mutate_header(m);
	}
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	state = seed;
	room_used = 0;
	if (size > sizeof(input))
		size = sizeof(input);
	memcpy(input, data, size);
	if (below(16) == 0)
		size = LLVMFuzzerMutate(input, size, max_size < ROOM ? max_size : ROOM);
	parse(input, size);
	do {
		if (member_count)
			mutate_member();
		else
			add_member(0);
	} while (below(3));
	return serialize(data, max_size);
}

/* Some members of the one after some of the other. */
size_t LLVMFuzzerCustomCrossOver(const uint8_t *data1, size_t size1, const uint8_t *data2,
				 size_t size2, uint8_t *out, size_t max_size, unsigned seed)
{
	size_t used, first;

	state = seed;
	parse(data1, size1);
	member_count = below(member_count + 1);
	used = serialize(out, max_size);
	parse(data2, size2);
	first = below(member_count + 1);
	member_count -= first;
	memmove(members, members + first, member_count * sizeof(*members));
	return used + serialize(out + used, max_size - used);
}

#pragma clang attribute pop
