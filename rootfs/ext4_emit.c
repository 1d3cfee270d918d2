/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes the finished tree. Inodes are numbered directory by directory, so that those of one
 * directory are neighbours.
 */
#include <errno.h>
#include <et/com_err.h>
#include <string.h>
#include <sys/stat.h>

#include "writer.h"

#define SECONDS_MIN (-((int64_t)1 << 31)) /* what 32 bits and the two epoch bits hold */
#define SECONDS_MAX (((int64_t)1 << 34) - ((int64_t)1 << 31) - 1)

static int ext2_error(struct ext4_writer *w, errcode_t code)
{
	if (code == EXT2_ET_BLOCK_ALLOC_FAIL || code == EXT2_ET_DIR_NO_SPACE)
		return fail(&w->failure, EXT4_SPACE, "no space left");
	return fail(&w->failure, EXT4_HOST, "cannot write the filesystem: %s", error_message(code));
}

static void number(struct inode *dir, uint32_t *next)
{
	struct dentry *e;

	for (e = dir->dir.first; e; e = e->next)
		if (!e->inode->number)
			e->inode->number = (*next)++;
	for (e = dir->dir.first; e; e = e->next)
		if (S_ISDIR(e->inode->mode))
			number(e->inode, next);
}

static uint32_t link_count(const struct inode *inode)
{
	uint32_t count = 2;

	if (!S_ISDIR(inode->mode))
		return inode->links;
	for (const struct dentry *e = inode->dir.first; e; e = e->next)
		count += S_ISDIR(e->inode->mode);
	return count < EXT2_LINK_MAX ? count : 1; /* dir_nlink: 1 is "many" */
}

static void set_times(struct ext2_inode_large *raw, const struct inode *inode)
{
	int64_t s = inode->mtime;
	uint32_t low, extra;

	s = s < SECONDS_MIN ? SECONDS_MIN : s > SECONDS_MAX ? SECONDS_MAX : s;
	low = (uint32_t)s;
	extra = (uint32_t)((s - (int32_t)low) >> 32) | inode->mtime_ns << 2;
	raw->i_atime = raw->i_ctime = raw->i_mtime = raw->i_crtime = low;
	raw->i_atime_extra = raw->i_ctime_extra = raw->i_mtime_extra = raw->i_crtime_extra = extra;
}

static void set_device(struct ext2_inode_large *raw, const struct inode *inode)
{
	uint32_t major = inode->major, minor = inode->minor;

	if (major < 256 && minor < 256)
		raw->i_block[0] = major << 8 | minor;
	else /* the new encoding: 12 bits of major between the low 8 and the high 12 of minor */
		raw->i_block[1] = (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

static errcode_t set_extents(struct ext4_writer *w, struct ext2_inode_large *raw,
			     const struct inode *inode)
{
	ext2_extent_handle_t handle = NULL;
	errcode_t code;
	uint64_t blocks = 0;

	for (uint32_t i = 0; i < inode->extent_count; i++)
		blocks += inode->extents[i].count;
	raw->i_flags = EXT4_EXTENTS_FL | (inode->dir.indexed ? EXT2_INDEX_FL : 0);
	ext2fs_iblk_set(w->fs, (struct ext2_inode *)raw, blocks);
	code = ext2fs_extent_open2(w->fs, inode->number, (struct ext2_inode *)raw, &handle);
	for (uint32_t i = 0; i < inode->extent_count && !code; i++) {
		const struct extent *e = &inode->extents[i];
		struct ext2fs_extent extent = {
			.e_lblk = e->logical, .e_pblk = e->physical, .e_len = e->count};

		code = ext2fs_extent_insert(handle, EXT2_EXTENT_INSERT_AFTER, &extent);
	}
	ext2fs_extent_free(handle);
	return code;
}

static int set_xattrs(struct ext4_writer *w, const struct inode *inode)
{
	struct ext2_xattr_handle *handle;
	errcode_t code = ext2fs_xattrs_open(w->fs, inode->number, &handle);
	int err = 0;

	if (code)
		return ext2_error(w, code);
	for (const struct xattr *x = inode->xattrs; x && !err; x = x->next) {
		code = ext2fs_xattr_set(handle, x->name, x->value ? x->value : "", x->size);
		/* ENOMEM: an ACL without a whole header. Lack of memory has a code of its own. */
		if (code == EXT2_ET_EA_NO_SPACE || code == EINVAL || code == ENOMEM)
			err = fail(&w->failure, EXT4_IMAGE,
				   "extended attribute %s is malformed or does not fit", x->name);
		else if (code)
			err = ext2_error(w, code);
	}
	ext2fs_xattrs_close(&handle);
	return err;
}

static int write_inode(struct ext4_writer *w, struct inode *inode)
{
	struct ext2_inode_large raw = {0};
	bool fast_link = S_ISLNK(inode->mode) && inode->size < sizeof(raw.i_block);
	errcode_t code = 0;
	int err = 0;

	if (S_ISDIR(inode->mode))
		err = dir_write(w, inode);
	else if (S_ISLNK(inode->mode) && !fast_link)
		err = disk_write(w, inode, 0, inode->target, inode->size);
	if (!err && w->full)
		err = fail(&w->failure, EXT4_SPACE, "no space left");
	if (err)
		return err;

	raw.i_mode = (uint16_t)inode->mode;
	raw.i_uid = (uint16_t)inode->uid;
	raw.i_uid_high = (uint16_t)(inode->uid >> 16);
	raw.i_gid = (uint16_t)inode->gid;
	raw.i_gid_high = (uint16_t)(inode->gid >> 16);
	raw.i_size = (uint32_t)inode->size;
	raw.i_size_high = (uint32_t)(inode->size >> 32);
	raw.i_links_count = (uint16_t)link_count(inode);
	raw.i_extra_isize = sizeof(raw) - EXT2_GOOD_OLD_INODE_SIZE;
	set_times(&raw, inode);
	if (S_ISCHR(inode->mode) || S_ISBLK(inode->mode))
		set_device(&raw, inode);
	else if (fast_link)
		memcpy(raw.i_block, inode->target, inode->size);
	else if (!S_ISFIFO(inode->mode))
		code = set_extents(w, &raw, inode);
	if (!code)
		code = ext2fs_write_inode_full(w->fs, inode->number, (struct ext2_inode *)&raw,
					       sizeof(raw));
	if (code)
		return ext2_error(w, code);
	if (inode != w->root)
		ext2fs_inode_alloc_stats2(w->fs, inode->number, +1, S_ISDIR(inode->mode));
	return inode->xattrs ? set_xattrs(w, inode) : 0;
}

/* Inodes in the order of their numbers: a hard link's is written where its first name is. */
static int write_directory(struct ext4_writer *w, struct inode *dir, uint32_t *next)
{
	struct dentry *e;
	int err = 0;

	for (e = dir->dir.first; e && !err; e = e->next)
		if (e->inode->number == *next) {
			err = write_inode(w, e->inode);
			++*next;
		}
	for (e = dir->dir.first; e && !err; e = e->next)
		if (S_ISDIR(e->inode->mode))
			err = write_directory(w, e->inode, next);
	return err;
}

int ext4_emit(struct ext4_writer *w)
{
	uint32_t first = EXT2_FIRST_INODE(w->fs->super), next = first;
	int err;

	/* The root has its place among the reserved inodes. */
	if (w->full || w->inodes - 1 > w->fs->super->s_inodes_count - first + 1)
		return fail(&w->failure, EXT4_SPACE, "no space left");
	w->root->number = EXT2_ROOT_INO;
	number(w->root, &next);
	next = first;
	err = write_inode(w, w->root);
	return err ? err : write_directory(w, w->root, &next);
}
