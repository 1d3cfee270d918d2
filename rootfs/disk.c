/* SPDX-License-Identifier: Apache-2.0 */
/* Contents of files: blocks are found first-fit from a cursor, so that a file is mostly one extent.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "writer.h"

#define EXTENT_BLOCKS_MAX 32768u /* of an initialised extent */

static int io_error(struct ext4_writer *w, const char *what)
{
	return fail(&w->failure, EXT4_HOST, "cannot %s the disk: %s", what, strerror(errno));
}

/* Finds a free run of 1 to want blocks; start 0 if there is none. */
static void find_run(struct ext4_writer *w, uint64_t want, uint64_t *start, uint64_t *count)
{
	ext2_filsys fs = w->fs;
	blk64_t last = ext2fs_blocks_count(fs->super) - 1, free_start, used;

	*start = 0;
	if (w->cursor > last) /* libext2fs would say on stderr that there is no such block */
		w->cursor = fs->super->s_first_data_block;
	if (ext2fs_find_first_zero_block_bitmap2(fs->block_map, w->cursor, last, &free_start)) {
		w->cursor = fs->super->s_first_data_block;
		if (ext2fs_find_first_zero_block_bitmap2(fs->block_map, w->cursor, last,
							 &free_start))
			return;
	}
	if (want > last - free_start + 1)
		want = last - free_start + 1;
	if (!ext2fs_find_first_set_block_bitmap2(fs->block_map, free_start, free_start + want - 1,
						 &used))
		want = used - free_start;
	*start = free_start;
	*count = want;
}

static int add_extent(struct ext4_writer *w, struct inode *inode, struct extent new)
{
	uint32_t n = inode->extent_count;
	struct extent *last = n ? &inode->extents[n - 1] : NULL;

	if (last && last->logical + last->count == new.logical &&
	    last->count + new.count <= EXTENT_BLOCKS_MAX &&
	    (last->physical ? last->physical + last->count == new.physical : !new.physical)) {
		last->count += new.count;
		return 0;
	}
	if ((n & (n - 1)) == 0) { /* grow at powers of two */
		void *grown = realloc(inode->extents, (n ? 2 * n : 1) * sizeof(new));

		if (!grown)
			return fail(&w->failure, EXT4_HOST, "out of memory");
		inode->extents = grown;
	}
	inode->extents[inode->extent_count++] = new;
	return tree_hold(w, sizeof(new));
}

static int allocate(struct ext4_writer *w, struct inode *inode, uint32_t logical, uint64_t want)
{
	uint64_t start = 0, count = want < EXTENT_BLOCKS_MAX ? want : EXTENT_BLOCKS_MAX;
	const struct extent *last =
		inode->extent_count ? &inode->extents[inode->extent_count - 1] : NULL;
	int err;

	if (!w->full)
		find_run(w, count, &start, &count);
	w->full = !start;
	/* What goes on where the last extent ends fills it up: how a file is cut into extents must
	 * not depend on how much of it came at once. */
	if (last && last->logical + last->count == logical &&
	    (start ? last->physical && last->physical + last->count == start : !last->physical) &&
	    last->count < EXTENT_BLOCKS_MAX && count > EXTENT_BLOCKS_MAX - last->count)
		count = EXTENT_BLOCKS_MAX - last->count;
	err = add_extent(w, inode,
			 (struct extent){.logical = logical,
					 .physical = (uint32_t)start,
					 .count = (uint32_t)count});
	if (err)
		return err;
	if (start) {
		ext2fs_block_alloc_stats_range(w->fs, start, (blk_t)count, +1);
		w->cursor = start + count;
	}
	w->live += count;
	if (w->live > w->peak)
		w->peak = w->live;
	return 0;
}

/* Writes a piece of a file; pieces must come in rising order. */
int disk_write(struct ext4_writer *w, struct inode *inode, uint64_t offset, const void *data,
	       size_t size)
{
	while (size) {
		uint32_t logical = (uint32_t)(offset / DISK_BLOCK);
		const struct extent *e =
			inode->extent_count ? &inode->extents[inode->extent_count - 1] : NULL;
		uint64_t room;
		size_t n;

		if (!e || logical >= e->logical + e->count) {
			uint64_t last = (offset + size - 1) / DISK_BLOCK;
			int err = allocate(w, inode, logical, last - logical + 1);

			if (err)
				return err;
			e = &inode->extents[inode->extent_count - 1];
		}
		room = ((uint64_t)e->logical + e->count) * DISK_BLOCK - offset;
		n = size < room ? size : (size_t)room;
		if (e->physical) {
			uint64_t start = (uint64_t)e->physical * DISK_BLOCK;
			ssize_t done =
				pwrite(w->fd, data, n,
				       (off_t)(start + offset - (uint64_t)e->logical * DISK_BLOCK));

			if (done < 0 && errno == EINTR)
				continue;
			if (done < 0)
				return io_error(w, "write");
			n = (size_t)done;
		}
		data = (const char *)data + n;
		offset += n;
		size -= n;
	}
	return 0;
}

static int zero(struct ext4_writer *w, uint64_t offset, uint64_t size)
{
	static const char zeros[DISK_BLOCK];

	if (!fallocate(w->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
		       (off_t)size))
		return 0;
	for (; size; offset += DISK_BLOCK, size -= DISK_BLOCK)
		if (pwrite(w->fd, zeros, DISK_BLOCK, (off_t)offset) != DISK_BLOCK)
			return io_error(w, "write");
	return 0;
}

/* Gives a file's blocks back. They are zeroed: what takes them next may write only parts of blocks.
 */
int disk_release(struct ext4_writer *w, const struct inode *inode)
{
	int err = 0;

	if (!w->fs) /* only the memory is being freed */
		return 0;
	for (uint32_t i = 0; i < inode->extent_count && !err; i++) {
		const struct extent *e = &inode->extents[i];

		w->live -= e->count;
		if (!e->physical)
			continue;
		ext2fs_block_alloc_stats_range(w->fs, e->physical, e->count, -1);
		err = zero(w, (uint64_t)e->physical * DISK_BLOCK, (uint64_t)e->count * DISK_BLOCK);
	}
	return err;
}
