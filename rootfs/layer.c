/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Merges one layer into the tree: OCI image-spec layer.md, "Applying Changesets" and "Whiteouts".
 * Where the specification is silent this does as umoci: ".." is taken out of names lexically,
 * symbolic links on the way to a name are followed inside the image.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "writer.h"

#define TARGET_LENGTH_MAX 4095u
#define XATTRS_MAX	  4096u /* names and values of one inode; they must fit a block */
#define FILE_SIZE_MAX	  ((uint64_t)UINT32_MAX * DISK_BLOCK)

#define WHITEOUT ".wh."
#define OPAQUE	 ".wh..wh..opq"

/* A name in a layer, taken apart: "a/b/../c/" is the directory "a" and the base "c". */
struct place {
	char dir[DISK_PATH_SIZE];
	char base[DISK_PATH_SIZE];
};

static int split(struct ext4_writer *w, const char *path, struct place *place)
{
	const char *whole = path;
	size_t used = 0;
	const char *base;
	char *slash;

	while (*(path += strspn(path, "/"))) {
		size_t n = strcspn(path, "/");

		if (n == 2 && !memcmp(path, "..", 2)) {
			while (used && place->dir[--used] != '/')
				;
		} else if (n != 1 || *path != '.') {
			if (used)
				place->dir[used++] = '/';
			if (used + n > w->path_max)
				return fail(&w->failure, EXT4_IMAGE,
					    "%.64s...: name of more than %u bytes "
					    "(--image-limit path=…)",
					    whole, w->path_max);
			memcpy(place->dir + used, path, n);
			used += n;
		}
		path += n;
	}
	place->dir[used] = '\0';
	slash = strrchr(place->dir, '/');
	base = slash ? slash + 1 : place->dir;
	memcpy(place->base, base, strlen(base) + 1);
	place->dir[slash ? slash - place->dir : 0] = '\0';
	return 0;
}

/* Removes what lower layers put below a directory, whatever the order of entries in this layer. */
static int hide_all(struct ext4_writer *w, struct inode *dir)
{
	struct dentry *e, *next;
	int err = 0;

	if (dir->dir.hidden == w->layer) /* what came since is this layer's */
		return 0;
	for (e = dir->dir.first; e && !err; e = next) {
		next = e->next;
		err = e->layer == w->layer ? hide_all(w, e->inode) : tree_unlink(w, e);
	}
	dir->dir.hidden = w->layer;
	return err;
}

/*
 * A whiteout is about the lower layers' own directory, so no symbolic link is followed: tools leave
 * "x/.wh.y" behind where the layer itself has made x a link.
 */
static int whiteout(struct ext4_writer *w, const struct place *place)
{
	struct inode *dir = path_walk_real(w, place->dir);
	const char *name = place->base + strlen(WHITEOUT);
	struct dentry *e;

	if (!dir)
		return 0;
	if (!strcmp(place->base, OPAQUE))
		return hide_all(w, dir);
	e = tree_find(dir, name, strlen(name));
	if (!e)
		return 0;
	return e->layer == w->layer ? hide_all(w, e->inode) : tree_unlink(w, e);
}

static bool storable(const char *name)
{
	static const char *const prefixes[] = {"user.", "trusted.", "security."};

	for (size_t i = 0; i < sizeof(prefixes) / sizeof(*prefixes); i++) {
		size_t length = strlen(prefixes[i]);

		if (!strncmp(name, prefixes[i], length))
			return name[length] != '\0';
	}
	return !strcmp(name, "system.posix_acl_access") ||
	       !strcmp(name, "system.posix_acl_default");
}

/* Moves the attributes that Linux has from the tar entry to the inode; foreign ones mean nothing
 * here. */
static int set_xattrs(struct ext4_writer *w, struct inode *inode, struct tar_entry *t)
{
	struct xattr **from = &t->xattrs, *old = inode->xattrs;
	size_t total = 0, held = 0;

	inode->xattrs = NULL;
	while (old) {
		struct xattr *next = old->next;

		free(old);
		old = next;
	}
	while (*from) {
		struct xattr *x = *from;

		if (!storable(x->name)) {
			from = &x->next;
			continue;
		}
		total += strlen(x->name) + x->size;
		if (total > XATTRS_MAX)
			return fail(&w->failure, EXT4_IMAGE,
				    "%s: extended attributes do not fit ext4's %u bytes", t->name,
				    DISK_BLOCK);
		held += sizeof(*x) + strlen(x->name) + x->size;
		*from = x->next;
		x->next = inode->xattrs;
		inode->xattrs = x;
	}
	return tree_hold(w, held);
}

static int set_metadata(struct ext4_writer *w, struct inode *inode, struct tar_entry *t)
{
	inode->mode = (inode->mode & S_IFMT) | t->mode;
	inode->uid = t->uid;
	inode->gid = t->gid;
	inode->mtime = t->mtime;
	inode->mtime_ns = t->mtime_ns;
	return set_xattrs(w, inode, t);
}

static int set_contents(struct ext4_writer *w, struct inode *inode, struct tar *tar)
{
	const struct tar_entry *t = &tar->entry;
	const void *data;
	uint64_t offset;
	size_t size;
	int err;

	inode->major = t->major;
	inode->minor = t->minor;
	if (S_ISLNK(inode->mode)) {
		size = strlen(t->link);
		if (size == 0 || size > TARGET_LENGTH_MAX)
			return fail(&w->failure, EXT4_IMAGE,
				    "%s: symbolic link target of %zu bytes", t->name, size);
		inode->size = size;
		inode->target = strdup(t->link);
		return inode->target ? tree_hold(w, size)
				     : fail(&w->failure, EXT4_HOST, "out of memory");
	}
	if (t->size > FILE_SIZE_MAX)
		return fail(&w->failure, EXT4_IMAGE, "%s: file of %llu bytes", t->name,
			    (unsigned long long)t->size);
	inode->size = t->size;
	w->spans += t->span_count;
	if (w->spans > DISK_SPANS_MAX)
		return fail(&w->failure, EXT4_IMAGE, "more than %u pieces of sparse files",
			    DISK_SPANS_MAX);
	do {
		err = tar_data(tar, &data, &size, &offset);
		if (!err && size)
			err = disk_write(w, inode, offset, data, size);
	} while (!err && size);
	return err;
}

static int merge_directory(struct ext4_writer *w, struct inode *parent, const char *base,
			   struct tar *tar)
{
	struct dentry *old = tree_find(parent, base, strlen(base));
	struct inode *inode;
	int err;

	if (old && !S_ISDIR(old->inode->mode)) {
		err = tree_unlink(w, old);
		if (err)
			return err;
		old = NULL;
	}
	if (old) {
		tree_touch(w, old);
		return set_metadata(w, old->inode, &tar->entry);
	}
	inode = tree_inode(w, S_IFDIR);
	if (!inode)
		return EXT4_HOST;
	err = tree_link(w, parent, base, strlen(base), inode);
	if (err) {
		tree_drop(w, inode);
		return err;
	}
	tree_touch(w, inode->dir.entry);
	return set_metadata(w, inode, &tar->entry);
}

/* Puts an inode at a name; what had the name before goes. */
static int put(struct ext4_writer *w, struct inode *parent, const char *base, struct inode *inode)
{
	struct dentry *old = tree_find(parent, base, strlen(base));
	int err = old ? tree_unlink(w, old) : 0;

	if (!err)
		err = tree_link(w, parent, base, strlen(base), inode);
	if (!err)
		tree_touch(w, tree_find(parent, base, strlen(base)));
	return err;
}

static int merge_hard_link(struct ext4_writer *w, struct inode *parent, const char *base,
			   const struct tar_entry *t)
{
	struct place to;
	struct inode *dir, *inode;
	struct dentry *e, *old;
	int err = split(w, t->link, &to);

	if (!err)
		err = path_walk(w, to.dir, false, &dir);
	if (err)
		return err;
	e = tree_find(dir, to.base, strlen(to.base));
	if (!e || S_ISDIR(e->inode->mode))
		return fail(&w->failure, EXT4_IMAGE, "%s: hard link to %s, which is %s", t->name,
			    t->link, e ? "a directory" : "not in the image");
	inode = e->inode;
	old = tree_find(parent, base, strlen(base));
	if (old && old->inode == inode) {
		tree_touch(w, old);
		return 0;
	}
	inode->links++; /* its other name may be below what is replaced */
	err = put(w, parent, base, inode);
	inode->links--;
	if (err)
		tree_drop(w, inode);
	return err;
}

static int merge_other(struct ext4_writer *w, struct inode *parent, const char *base,
		       struct tar *tar)
{
	static const mode_t types[] = {['0'] = S_IFREG,
				       ['2'] = S_IFLNK,
				       ['3'] = S_IFCHR,
				       ['4'] = S_IFBLK,
				       ['6'] = S_IFIFO};
	struct inode *inode = tree_inode(w, types[(unsigned char)tar->entry.type]);
	int err;

	if (!inode)
		return EXT4_HOST;
	err = set_metadata(w, inode, &tar->entry);
	if (!err)
		err = put(w, parent, base, inode);
	if (!err)
		err = set_contents(w, inode, tar);
	else
		tree_drop(w, inode);
	return err;
}

static int merge(struct ext4_writer *w, struct tar *tar)
{
	struct tar_entry *t = &tar->entry;
	struct inode *parent;
	struct place place;
	int err = split(w, t->name, &place);

	if (err)
		return err;
	if (!place.base[0]) {
		if (t->type == '5')
			return set_metadata(w, w->root, t);
		return fail(&w->failure, EXT4_IMAGE, "the root is not a directory");
	}
	if (!strncmp(place.base, WHITEOUT, strlen(WHITEOUT)))
		return whiteout(w, &place);
	err = path_walk(w, place.dir, true, &parent);
	if (err)
		return err;
	if (t->type == '5')
		return merge_directory(w, parent, place.base, tar);
	if (t->type == '1')
		return merge_hard_link(w, parent, place.base, t);
	return merge_other(w, parent, place.base, tar);
}

int ext4_layer(struct ext4_writer *w, int fd)
{
	struct tar_entry *entry;
	struct tar tar;
	int err = tar_open(&tar, fd, &w->failure);

	if (err)
		return err;
	w->layer++;
	do {
		err = tar_next(&tar, &entry);
		if (!err && entry)
			err = merge(w, &tar);
	} while (!err && entry);
	tar_close(&tar);
	return err;
}
