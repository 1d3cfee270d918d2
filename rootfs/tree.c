/* SPDX-License-Identifier: Apache-2.0 */
/* The merged image in memory: names and inodes. Contents of files are on the disk already. */
#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "writer.h"

static int no_memory(struct ext4_writer *w)
{
	return fail(&w->failure, EXT4_HOST, "out of memory");
}

/* Orders names, by their length first: it is quick, and any order will do. */
int name_compare(const void *left, const void *right)
{
	const struct dentry *a = left, *b = right;

	if (a->length != b->length)
		return a->length < b->length ? -1 : 1;
	return memcmp(a->name, b->name, a->length);
}

/* A new inode without a name; NULL: out of memory. */
struct inode *tree_inode(struct ext4_writer *w, uint32_t mode)
{
	struct inode *inode = calloc(1, sizeof(*inode));

	if (!inode) {
		no_memory(w);
		return NULL;
	}
	inode->mode = mode;
	w->inodes++;
	w->directories += S_ISDIR(mode);
	return inode;
}

struct dentry *tree_find(const struct inode *dir, const char *name, size_t length)
{
	const struct dentry key = {.name = name, .length = (unsigned char)length};
	struct dentry **found;

	if (length > DISK_NAME_MAX)
		return NULL;
	found = tfind(&key, &dir->dir.index, name_compare);
	return found ? *found : NULL;
}

/* Gives inode a name that the directory does not have yet. */
int tree_link(struct ext4_writer *w, struct inode *dir, const char *name, size_t length,
	      struct inode *inode)
{
	struct dentry *e;

	if (length > DISK_NAME_MAX)
		return fail(&w->failure, EXT4_IMAGE, "name of %zu bytes, ext4 has 255: %.64s...",
			    length, name);
	if (w->names >= w->names_max)
		return fail(&w->failure, EXT4_IMAGE, "more than %u names (--image-limit entries=…)",
			    w->names_max);
	if (S_ISDIR(inode->mode) && dir->dir.depth >= DISK_DEPTH_MAX)
		return fail(&w->failure, EXT4_IMAGE, "directories nest more than %u deep",
			    DISK_DEPTH_MAX);
	if (!S_ISDIR(inode->mode) && inode->links >= EXT2_LINK_MAX)
		return fail(&w->failure, EXT4_IMAGE, "%.*s: more than %u hard links", (int)length,
			    name, EXT2_LINK_MAX);
	e = calloc(1, sizeof(*e) + length);
	if (!e)
		return no_memory(w);
	e->name = memcpy(e + 1, name, length);
	e->length = (unsigned char)length;
	e->parent = dir;
	e->inode = inode;
	if (!tsearch(e, &dir->dir.index, name_compare)) {
		free(e);
		return no_memory(w);
	}
	e->prev = dir->dir.last;
	*(e->prev ? &e->prev->next : &dir->dir.first) = e;
	dir->dir.last = e;
	if (S_ISDIR(inode->mode)) {
		inode->dir.parent = dir;
		inode->dir.entry = e;
		inode->dir.depth = dir->dir.depth + 1;
	}
	inode->links++;
	w->names++;
	return 0;
}

/* Marks a name and all above it as this layer's. */
void tree_touch(struct ext4_writer *w, struct dentry *e)
{
	for (; e && e->layer != w->layer; e = e->parent->dir.entry)
		e->layer = w->layer;
}

/* Takes a name away, and all that is below it. */
int tree_unlink(struct ext4_writer *w, struct dentry *e)
{
	struct directory *dir = &e->parent->dir;
	struct inode *inode = e->inode;

	tdelete(e, &dir->index, name_compare);
	*(e->prev ? &e->prev->next : &dir->first) = e->next;
	*(e->next ? &e->next->prev : &dir->last) = e->prev;
	free(e);
	w->names--;
	inode->links--;
	return tree_drop(w, inode);
}

/* Frees an inode that has no name. */
int tree_drop(struct ext4_writer *w, struct inode *inode)
{
	int err = 0;

	if (inode->links)
		return 0;
	while (inode->dir.first) {
		/* That changes `first`: its parent is this inode. NOLINTNEXTLINE(*-unix.Malloc) */
		int failed = tree_unlink(w, inode->dir.first);

		err = err ? err : failed;
	}
	if (!err)
		err = disk_release(w, inode);
	w->inodes--;
	w->directories -= S_ISDIR(inode->mode);
	while (inode->xattrs) {
		struct xattr *next = inode->xattrs->next;

		free(inode->xattrs);
		inode->xattrs = next;
	}
	free(inode->target);
	free(inode->extents);
	free(inode);
	return err;
}

/* Counts what an inode is to hold in memory beside itself, which a hostile image has much of. */
int tree_hold(struct ext4_writer *w, size_t size)
{
	uint64_t most = (uint64_t)w->names_max * DISK_HELD_PER_NAME;

	w->held += size;
	w->extra_blocks += size >= DISK_OUTSIDE_INODE;
	if (w->held <= most)
		return 0;
	return fail(&w->failure, EXT4_IMAGE,
		    "more than %llu bytes of link targets, extended attributes and extents "
		    "(--image-limit entries=…)",
		    (unsigned long long)most);
}
