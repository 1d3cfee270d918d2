/* SPDX-License-Identifier: Apache-2.0 */
/* clang-format off */
/*
 * How an image becomes a disk:
 *
 *     blob, decompressed and hashed by Python
 *       └─► socket ─► tar ─► layer ─► tree       names and metadata, in memory
 *                      └───► disk                file contents, straight to their blocks
 *     after the last layer:  tree ─► ext4_emit   inodes, directories
 *
 * Only one file exists on the host, the disk itself: no name that an image holds is ever given to
 * the host's kernel.
 */
/* clang-format on */
#ifndef ROOTFS_WRITER_H
#define ROOTFS_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ext2fs/ext2fs.h>

#include "failure.h"
#include "tar.h"

#define DISK_BLOCK     4096u
#define DISK_NAME_MAX  255u
#define DISK_PATH_SIZE 4096u /* PATH_MAX: no process could name more */
#define DISK_DEPTH_MAX                                                                             \
	2048u /* directories within directories: bounds every recursion over the tree */
#define DISK_NAMES_MAX                                                                             \
	(3u << 20) /* names in an image: bounds the memory that a hostile one can take */

#define DISK_HELD_PER_NAME                                                                         \
	256u /* bytes, on average, of what an inode holds in memory beside itself */

#define DISK_OUTSIDE_INODE                                                                         \
	60u /* bytes of a link target that need a block; extended attributes may, too */
#define DISK_SPANS_MAX (1u << 24) /* pieces of sparse files in an image: each is a write */

/* A run of blocks of a file. physical 0: the disk is full, the run is only counted. */
struct extent {
	uint32_t logical;
	uint32_t physical;
	uint32_t count;
};

struct dentry {
	struct dentry *prev, *next; /* in the directory, in the order they came */
	struct inode *parent;
	struct inode *inode;
	unsigned layer; /* the last layer that put this name, or anything below it, here */
	unsigned char length;
	const char *name; /* not terminated */
};

struct directory {
	void *index; /* of entries by name, see tsearch(3) */
	struct dentry *first, *last;
	struct inode *parent;
	struct dentry *entry; /* the directory's one name; NULL for the root */
	unsigned depth;
	unsigned hidden; /* the last layer that removed here what those below it had put */
	bool indexed;	 /* on the disk, by hashes of names */
};

struct inode {
	uint32_t mode; /* type and permissions, as in stat(2) */
	uint32_t uid, gid;
	uint32_t major, minor;
	uint32_t links;	 /* names that lead here */
	uint32_t number; /* on the disk; 0 until the end */
	uint32_t mtime_ns;
	int64_t mtime;
	uint64_t size;
	struct xattr *xattrs;
	char *target; /* of a symbolic link */
	struct extent *extents;
	uint32_t extent_count;
	struct directory dir;
};

struct ext4_writer {
	struct failure failure;
	int status; /* of ext4_create */
	int fd;
	ext2_filsys fs;
	uint64_t cursor;	      /* where the search for free blocks goes on */
	uint64_t live, peak;	      /* data blocks held by the tree: now, and at most */
	uint32_t names_max, path_max; /* limits of this image */
	bool full; /* the disk was too small; from then on blocks are counted, not written */
	struct inode *root;
	unsigned layer;	       /* ordinal of the layer being merged, from 1 */
	uint64_t spans;	       /* of all its files, the replaced ones too */
	uint64_t extra_blocks; /* of long link targets and extended attributes, at most */
	uint32_t link_steps;   /* taken by path_walk after the first symbolic link of a path */
	uint32_t names, inodes, directories;
	uint64_t held; /* bytes, in all, that inodes have held beside themselves */
};

/* disk.c: blocks of data */
int disk_write(struct ext4_writer *w, struct inode *inode, uint64_t offset, const void *data,
	       size_t size);
int disk_release(struct ext4_writer *w, const struct inode *inode);

/* tree.c: names and inodes */
int name_compare(const void *left, const void *right);
struct inode *tree_inode(struct ext4_writer *w, uint32_t mode);
struct dentry *tree_find(const struct inode *dir, const char *name, size_t length);
int tree_link(struct ext4_writer *w, struct inode *dir, const char *name, size_t length,
	      struct inode *inode);
void tree_touch(struct ext4_writer *w, struct dentry *e);
int tree_unlink(struct ext4_writer *w, struct dentry *entry);
int tree_drop(struct ext4_writer *w, struct inode *inode);
int tree_hold(struct ext4_writer *w, size_t size);

/* path.c: how a name in a layer is looked up */
int path_walk(struct ext4_writer *w, const char *path, bool make, struct inode **dir);
struct inode *path_walk_real(struct ext4_writer *w, const char *path);

/* ext4_dir.c */
int dir_write(struct ext4_writer *w, struct inode *dir);

/* ext4_emit.c */
int ext4_emit(struct ext4_writer *w);

#endif
