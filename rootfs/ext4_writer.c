/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The filesystem itself. Everything in it follows from the image and the size: no clock, no random
 * number. It has no journal, for the base is written once and a run's changes are thrown away.
 */
#include <errno.h>
#include <et/com_err.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "writer.h"

#define MIB		      ((uint64_t)1 << 20)
#define SIZE_MIN	      MIB
#define SIZE_MAX_BYTES	      ((uint64_t)16 << 40) /* 2^32 blocks: more needs the 64bit feature */
#define BYTES_PER_INODE_SMALL 4096u  /* on a small disk a file a block must be possible */
#define BYTES_PER_INODE_LARGE 16384u /* as mke2fs: on a large one more tables would be waste */
#define INODES_SMALL_MAX      131072u
#define GROUPS_PER_FLEX_LOG   4

static const unsigned char fixed_uuid[16] = {0x70, 0x79, 0x76, 0x6d, 0x6d, 0x00, 0x40, 0x00,
					     0x80, 0x00, 0x62, 0x61, 0x73, 0x65, 0x00, 0x01};

static int ext2_error(struct ext4_writer *w, const char *what, errcode_t code)
{
	return fail(&w->failure, EXT4_HOST, "cannot %s the filesystem: %s", what,
		    error_message(code));
}

static uint64_t inode_count(uint64_t size)
{
	uint64_t few = size / BYTES_PER_INODE_LARGE, many = size / BYTES_PER_INODE_SMALL;

	if (many > INODES_SMALL_MAX)
		many = INODES_SMALL_MAX;
	return many > few ? many : few;
}

/* The feature set of a plain ext4 without journal and without metadata_csum: fewer cycles in the
 * guest. */
static void set_parameters(struct ext2_super_block *sb, uint64_t size)
{
	memset(sb, 0, sizeof(*sb));
	ext2fs_blocks_count_set(sb, size / DISK_BLOCK);
	sb->s_inodes_count = (uint32_t)inode_count(size);
	sb->s_log_block_size = 2;
	sb->s_log_cluster_size = 2;
	sb->s_rev_level = EXT2_DYNAMIC_REV;
	sb->s_inode_size = 256;
	sb->s_log_groups_per_flex = GROUPS_PER_FLEX_LOG;
	sb->s_feature_compat = EXT2_FEATURE_COMPAT_EXT_ATTR | EXT2_FEATURE_COMPAT_DIR_INDEX;
	sb->s_feature_incompat = EXT2_FEATURE_INCOMPAT_FILETYPE | EXT3_FEATURE_INCOMPAT_EXTENTS |
				 EXT4_FEATURE_INCOMPAT_FLEX_BG;
	sb->s_feature_ro_compat =
		EXT2_FEATURE_RO_COMPAT_SPARSE_SUPER | EXT2_FEATURE_RO_COMPAT_LARGE_FILE |
		EXT4_FEATURE_RO_COMPAT_HUGE_FILE | EXT4_FEATURE_RO_COMPAT_GDT_CSUM |
		EXT4_FEATURE_RO_COMPAT_DIR_NLINK | EXT4_FEATURE_RO_COMPAT_EXTRA_ISIZE;
}

static void set_constants(ext2_filsys fs)
{
	struct ext2_super_block *sb = fs->super;

	fs->now = 1; /* not 0: that means the clock */
	sb->s_mkfs_time = sb->s_lastcheck = sb->s_wtime = 1;
	sb->s_mkfs_time_hi = sb->s_lastcheck_hi = sb->s_wtime_hi = 0;
	memcpy(sb->s_uuid, fixed_uuid, sizeof(sb->s_uuid));
	memcpy(sb->s_hash_seed, fixed_uuid, sizeof(sb->s_hash_seed));
	memcpy(sb->s_volume_name, "pyvmm", 5);
	sb->s_def_hash_version = EXT2_HASH_HALF_MD4;
	sb->s_flags |= EXT2_FLAGS_SIGNED_HASH;
	sb->s_default_mount_opts = EXT2_DEFM_XATTR_USER | EXT2_DEFM_ACL;
	sb->s_max_mnt_count = -1;
	sb->s_min_extra_isize = sb->s_want_extra_isize =
		sizeof(struct ext2_inode_large) - EXT2_GOOD_OLD_INODE_SIZE;
	/* The tables are zero as holes are: no kernel thread need zero them under a running
	 * program. */
	for (dgrp_t group = 0; group < fs->group_desc_count; group++)
		ext2fs_bg_flags_set(fs, group, EXT2_BG_INODE_ZEROED);
}

static int create(struct ext4_writer *w, const char *path, uint64_t size)
{
	struct ext2_super_block parameters;
	errcode_t code;

	if (size < SIZE_MIN)
		return fail(&w->failure, EXT4_SPACE, "a disk has at least 1 MiB");
	if (size > SIZE_MAX_BYTES - DISK_BLOCK)
		return fail(&w->failure, EXT4_HOST, "a disk has less than 16 TiB");
	w->fd = open(path, O_RDWR | O_CLOEXEC);
	if (w->fd < 0)
		return fail(&w->failure, EXT4_HOST, "cannot open %s: %s", path, strerror(errno));
	set_parameters(&parameters, size);
	code = ext2fs_initialize(path, EXT2_FLAG_64BITS, &parameters, unix_io_manager, &w->fs);
	if (code)
		return ext2_error(w, "make", code);
	set_constants(w->fs);
	code = ext2fs_allocate_tables(w->fs);
	if (code)
		return ext2_error(w, "lay out", code);
	for (ext2_ino_t number = 1; number < EXT2_FIRST_INODE(w->fs->super); number++)
		ext2fs_inode_alloc_stats2(w->fs, number, +1, number == EXT2_ROOT_INO);
	w->cursor = w->fs->super->s_first_data_block;
	w->root = tree_inode(w, S_IFDIR | 0755);
	if (!w->root)
		return EXT4_HOST;
	w->root->dir.parent = w->root;
	return 0;
}

struct ext4_writer *ext4_create(const char *path, uint64_t size, uint32_t names_max,
				uint32_t path_max)
{
	struct ext4_writer *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	initialize_ext2_error_table();
	w->fd = -1;
	w->names_max = names_max < DISK_NAMES_MAX ? names_max : DISK_NAMES_MAX;
	w->path_max = path_max < DISK_PATH_SIZE ? path_max : DISK_PATH_SIZE - 1;
	w->status = create(w, path, size);
	return w;
}

int ext4_status(const struct ext4_writer *w)
{
	return w->status;
}

int ext4_finish(struct ext4_writer *w)
{
	errcode_t code;
	int err = ext4_emit(w);

	if (err)
		return err;
	code = ext2fs_set_gdt_csum(w->fs);
	if (!code)
		code = ext2fs_flush2(w->fs, EXT2_FLAG_FLUSH_NO_SYNC); /* the caller syncs */
	return code ? ext2_error(w, "write", code) : 0;
}

const char *ext4_error(const struct ext4_writer *w)
{
	return w->failure.text;
}

/* Directories and metadata are estimated; the rest has been counted. */
uint64_t ext4_needed(const struct ext4_writer *w)
{
	uint64_t blocks = w->peak + 2 * (uint64_t)w->directories + w->extra_blocks;
	uint64_t inodes = w->inodes + EXT2_GOOD_OLD_FIRST_INO;
	uint64_t size = blocks * DISK_BLOCK + (uint64_t)w->names * 32;
	uint64_t room;

	size += size / 16 + 4 * MIB;
	size += inode_count(2 * size) * 256;
	room = inodes * (inodes > INODES_SMALL_MAX ? BYTES_PER_INODE_LARGE : BYTES_PER_INODE_SMALL);
	if (size < room)
		size = room;
	return (size + 16 * MIB - 1) / (16 * MIB) * (16 * MIB);
}

void ext4_free(struct ext4_writer *w)
{
	ext2_filsys fs;

	if (!w)
		return;
	fs = w->fs;
	w->fs = NULL; /* the tree gives no blocks back */
	if (w->root)
		tree_drop(w, w->root);
	if (fs)
		ext2fs_free(fs); /* writes nothing */
	if (w->fd >= 0)
		close(w->fd);
	free(w);
}
