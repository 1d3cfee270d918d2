/* SPDX-License-Identifier: Apache-2.0 */
/* Looks paths up in the merged image as a process chrooted into it would. */
#include <string.h>
#include <sys/stat.h>

#include "writer.h"

#define SYMLINKS_MAX 40		/* as path_resolution(7) */
#define STEPS_MAX    (1u << 26) /* through links' targets, in all: bounds the time for an image */

static const char *component(const char **path, size_t *length)
{
	const char *start = *path + strspn(*path, "/");

	*length = strcspn(start, "/");
	*path = start + *length;
	return start;
}

static int make_directory(struct ext4_writer *w, struct inode *dir, const char *name, size_t length,
			  struct inode **made)
{
	struct inode *inode = tree_inode(w, S_IFDIR | 0755);
	int err = inode ? tree_link(w, dir, name, length, inode) : EXT4_HOST;

	if (err && inode)
		tree_drop(w, inode);
	if (!err)
		tree_touch(w, inode->dir.entry);
	*made = inode;
	return err;
}

static int walk(struct ext4_writer *w, struct inode *from, const char *path, bool make,
		unsigned *links, struct inode **out)
{
	const char *whole = path, *name;
	struct inode *dir = from;
	size_t length;

	while (name = component(&path, &length), length) {
		struct dentry *e;
		int err = 0;

		if (*links && ++w->link_steps > STEPS_MAX)
			return fail(&w->failure, EXT4_IMAGE,
				    "more than %u steps through symbolic links", STEPS_MAX);
		if (length == 1 && name[0] == '.')
			continue;
		if (length == 2 && name[0] == '.' && name[1] == '.') {
			dir = dir->dir.parent;
			continue;
		}
		e = tree_find(dir, name, length);
		if (!e && !make)
			return fail(&w->failure, EXT4_IMAGE, "%s: no such directory", whole);
		if (!e)
			err = make_directory(w, dir, name, length, &dir);
		else if (S_ISDIR(e->inode->mode))
			dir = e->inode;
		else if (!S_ISLNK(e->inode->mode))
			err = fail(&w->failure, EXT4_IMAGE, "%s: %.*s is not a directory", whole,
				   (int)length, name);
		else if (++*links > SYMLINKS_MAX)
			err = fail(&w->failure, EXT4_IMAGE, "%s: too many symbolic links", whole);
		else
			err = walk(w, e->inode->target[0] == '/' ? w->root : dir, e->inode->target,
				   make, links, &dir);
		if (err)
			return err;
	}
	*out = dir;
	return 0;
}

/*
 * The directory at path, with symbolic links followed inside the image. make: directories that are
 * missing, also where a dangling link points, come into being (0755, root).
 */
int path_walk(struct ext4_writer *w, const char *path, bool make, struct inode **dir)
{
	unsigned links = 0;

	return walk(w, w->root, path, make, &links, dir);
}

/* The directory at path if all of it is real directories, else NULL. */
struct inode *path_walk_real(struct ext4_writer *w, const char *path)
{
	struct inode *dir = w->root;
	const char *name;
	size_t length;

	while (name = component(&path, &length), length) {
		struct dentry *e = tree_find(dir, name, length);

		if (!e || !S_ISDIR(e->inode->mode))
			return NULL;
		dir = e->inode;
	}
	return dir;
}
