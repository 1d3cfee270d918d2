/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Directories on the disk (Linux, Documentation/filesystems/ext4/directory.rst): one block of
 * records, or, where more are needed, leaves of records sorted by the hash of their names under an
 * index of one or two levels. libext2fs reads such an index but cannot make one.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "writer.h"

#define DOT_SIZE      12u /* a record of "." or ".." */
#define ROOT_HEADER   32u /* of the index's root block: two records and what kind of index it is */
#define NODE_HEADER   8u  /* of the blocks of its second level: one empty record */
#define INDEX_ENTRY   8u  /* a hash and a block number */
#define ROOT_LIMIT    ((DISK_BLOCK - ROOT_HEADER) / INDEX_ENTRY)
#define NODE_LIMIT    ((DISK_BLOCK - NODE_HEADER) / INDEX_ENTRY)
#define SAME_HASH     1u /* in an index: the block before ends with names of this hash, too */
#define LEVELS_OFFSET 30u

/* A block being filled with records: the last one is stretched to the block's end. */
struct dir_block {
	unsigned used, last; /* bytes used, where the last record starts */
	unsigned char bytes[DISK_BLOCK];
};

_Static_assert(DISK_NAMES_MAX / 15 < ROOT_LIMIT * NODE_LIMIT,
	       "a leaf has 15 of the longest names: two levels are enough");

struct hashed {
	uint32_t hash;
	const struct dentry *entry;
};

/* A block that an index leads to: its lowest hash, and its first name in the sorted array. */
struct leaf {
	uint32_t hash;
	uint32_t first;
};

static unsigned char file_type(uint32_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFDIR:
		return EXT2_FT_DIR;
	case S_IFLNK:
		return EXT2_FT_SYMLINK;
	case S_IFCHR:
		return EXT2_FT_CHRDEV;
	case S_IFBLK:
		return EXT2_FT_BLKDEV;
	case S_IFIFO:
		return EXT2_FT_FIFO;
	default:
		return EXT2_FT_REG_FILE;
	}
}

static void put16(unsigned char *at, uint32_t value)
{
	at[0] = (unsigned char)value;
	at[1] = (unsigned char)(value >> 8);
}

static void put32(unsigned char *at, uint32_t value)
{
	put16(at, value);
	put16(at + 2, value >> 16);
}

static unsigned record_size(unsigned char length)
{
	return EXT2_DIR_REC_LEN(length);
}

static void add_record(struct dir_block *block, const struct inode *inode, const char *name,
		       unsigned char length)
{
	unsigned char *record = block->bytes + block->used;

	put32(record, inode->number);
	put16(record + 4, record_size(length));
	record[6] = length;
	record[7] = file_type(inode->mode);
	memcpy(record + 8, name, length);
	block->last = block->used;
	block->used += record_size(length);
}

static void add_dots(struct dir_block *block, const struct inode *dir)
{
	add_record(block, dir, ".", 1);
	add_record(block, dir->dir.parent, "..", 2);
}

/* Appends a block to the directory and empties it. */
static int flush(struct ext4_writer *w, struct inode *dir, struct dir_block *block)
{
	int err;

	put16(block->bytes + block->last + 4, DISK_BLOCK - block->last);
	err = disk_write(w, dir, dir->size, block->bytes, DISK_BLOCK);
	dir->size += DISK_BLOCK;
	memset(block, 0, sizeof(*block));
	return err;
}

/* Index entries for leaves; the first one's hash is implied, in its place stand limit and count. */
static void put_index(unsigned char *at, uint32_t limit, const struct leaf *leaves, uint32_t count,
		      uint32_t step, uint32_t block)
{
	for (uint32_t i = 0; i < count; i++) {
		put32(at + i * INDEX_ENTRY, leaves[i * step].hash);
		put32(at + i * INDEX_ENTRY + 4, block + i);
	}
	put16(at, limit);
	put16(at + 2, count);
}

static int write_index(struct ext4_writer *w, struct inode *dir, const struct leaf *leaves,
		       uint32_t count)
{
	uint32_t nodes = count > ROOT_LIMIT ? (count + NODE_LIMIT - 1) / NODE_LIMIT : 0;
	struct dir_block block = {0};
	int err;

	add_dots(&block, dir);
	block.bytes[28] = EXT2_HASH_HALF_MD4;
	block.bytes[29] = 8; /* size of these fields */
	block.bytes[LEVELS_OFFSET] = nodes != 0;
	put_index(block.bytes + ROOT_HEADER, ROOT_LIMIT, leaves, nodes ? nodes : count,
		  nodes ? NODE_LIMIT : 1, 1);
	err = flush(w, dir, &block);
	for (uint32_t i = 0; i < nodes && !err; i++) {
		uint32_t first = i * NODE_LIMIT;
		uint32_t n = count - first < NODE_LIMIT ? count - first : NODE_LIMIT;

		put_index(block.bytes + NODE_HEADER, NODE_LIMIT, leaves + first, n, 1,
			  1 + nodes + first);
		err = flush(w, dir, &block);
	}
	return err;
}

static int by_hash(const void *left, const void *right)
{
	const struct hashed *a = left, *b = right;

	if (a->hash != b->hash)
		return a->hash < b->hash ? -1 : 1;
	return name_compare(a->entry, b->entry);
}

static uint32_t divide(const struct hashed *names, uint32_t count, struct leaf *leaves)
{
	uint32_t n = 0;
	unsigned used = DISK_BLOCK;

	for (uint32_t i = 0; i < count; i++) {
		unsigned size = record_size(names[i].entry->length);

		if (used + size > DISK_BLOCK) {
			leaves[n].first = i;
			leaves[n].hash = names[i].hash;
			if (i && names[i - 1].hash == names[i].hash)
				leaves[n].hash |= SAME_HASH;
			n++;
			used = 0;
		}
		used += size;
	}
	return n;
}

static int write_indexed(struct ext4_writer *w, struct inode *dir, uint32_t count)
{
	struct hashed *names = calloc(count, sizeof(*names));
	struct leaf *leaves = calloc(count, sizeof(*leaves));
	struct dir_block block = {0};
	uint32_t n = 0, leaf_count;
	int err = 0;

	if (!names || !leaves) {
		err = fail(&w->failure, EXT4_HOST, "out of memory");
		goto out;
	}
	for (const struct dentry *e = dir->dir.first; e; e = e->next, n++) {
		names[n].entry = e;
		ext2fs_dirhash2(EXT2_HASH_HALF_MD4, e->name, e->length, NULL, 0,
				w->fs->super->s_hash_seed, &names[n].hash, NULL);
	}
	qsort(names, count, sizeof(*names), by_hash);
	leaf_count = divide(names, count, leaves);
	err = write_index(w, dir, leaves, leaf_count);
	for (uint32_t leaf = 0; leaf < leaf_count && !err; leaf++) {
		uint32_t end = leaf + 1 < leaf_count ? leaves[leaf + 1].first : count;

		for (uint32_t i = leaves[leaf].first; i < end; i++) {
			const struct dentry *e = names[i].entry;

			add_record(&block, e->inode, e->name, e->length);
		}
		err = flush(w, dir, &block);
	}
	dir->dir.indexed = true;
out:
	free(leaves);
	free(names);
	return err;
}

/* Writes the records of a directory whose inodes have their numbers. */
int dir_write(struct ext4_writer *w, struct inode *dir)
{
	struct dir_block block = {0};
	uint64_t size = 2 * DOT_SIZE;
	uint32_t count = 0;

	for (const struct dentry *e = dir->dir.first; e; e = e->next, count++)
		size += record_size(e->length);
	if (size > DISK_BLOCK)
		return write_indexed(w, dir, count);
	add_dots(&block, dir);
	for (const struct dentry *e = dir->dir.first; e; e = e->next)
		add_record(&block, e->inode, e->name, e->length);
	return flush(w, dir, &block);
}
