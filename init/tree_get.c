/*
 * GET: a path and all below it, depth first. Other file systems that are mounted there are sent as
 * the directories that they cover: in a guest they are /proc, /sys and /dev.
 */
#include "tree.h"

#define NAMES_SIZE 8192
#define SECTOR	   512 /* st_blocks' unit */

/* linux/dirent.h is the kernel's own. */
struct dirent {
	uint64_t inode;
	int64_t offset;
	uint16_t length;
	uint8_t type;
	char name[];
};

/* A directory that is being read: kept for the next one at its depth. */
struct level {
	struct level *above, *below;
	int fd;
	unsigned depth;
	size_t path_length; /* of the directory's that has it */
	long at, end;
	_Alignas(uint64_t) char names[NAMES_SIZE];
};

static struct level root; /* has no names: it is where the path itself is */
static struct level *level = &root;
static uint64_t device;

static void get_entry(const struct stat *st, const char *name, const char *target)
{
	const struct tree_entry entry = {
		.mode = st->st_mode,
		.uid = st->st_uid,
		.gid = st->st_gid,
		.mtime = st->st_mtime,
		.mtime_ns = st->st_mtime_nsec,
		.size = S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode) ? st->st_rdev
			: S_ISREG(st->st_mode)			     ? (uint64_t)st->st_size
								     : 0,
		.name_length = str_len(name),
	};
	size_t target_length = str_len(target);
	uint32_t length = sizeof(entry) + entry.name_length + target_length;
	char *payload = tree_out_room(length);

	memcpy(payload, &entry, sizeof(entry));
	memcpy(payload + sizeof(entry), name, entry.name_length);
	memcpy(payload + sizeof(entry) + entry.name_length, target, target_length);
	tree_out(TREE_ENTRY, length);
}

static void get_leave(void)
{
	tree_out_room(0);
	tree_out(TREE_LEAVE, 0);
}

static void get_hole(uint64_t length)
{
	memcpy(tree_out_room(sizeof(length)), &length, sizeof(length));
	tree_out(TREE_HOLE, sizeof(length));
}

/* What is from `at` on, at most to `end`. False: the file ends there already. */
static bool get_data(int fd, uint64_t at, uint64_t end)
{
	while (at < end) {
		size_t want = end - at < TREE_DATA_MAX ? end - at : TREE_DATA_MAX;
		long n = sys_pread64(fd, tree_out_room(want), want, at);

		if (n < 0)
			tree_fail(n);
		if (!n)
			return false;
		tree_out(TREE_DATA, n);
		at += n;
	}
	return true;
}

static void get_sparse(int fd, uint64_t size)
{
	uint64_t at = 0;

	while (at < size) {
		long data = sys_lseek(fd, at, SEEK_DATA), hole;

		if (data == -ENXIO || (data >= 0 && (uint64_t)data > size))
			data = size;
		if (data < 0)
			data = at; /* a file system that does not know */
		if ((uint64_t)data > at)
			get_hole(data - at);
		at = data;
		if (at == size)
			break;
		hole = sys_lseek(fd, at, SEEK_HOLE);
		if (hole < 0 || (uint64_t)hole > size)
			hole = size;
		if (!get_data(fd, at, hole))
			break;
		at = hole;
	}
}

/*
 * What a file had when it was opened, so that one that grows has an end. Those of /proc and /sys
 * say 0 and have more.
 */
static void get_file(int fd, const struct stat *st)
{
	uint64_t size = st->st_size;

	if (!size)
		get_data(fd, 0, UINT64_MAX);
	else if ((uint64_t)st->st_blocks * SECTOR < size)
		get_sparse(fd, size);
	else
		get_data(fd, 0, size);
	sys_close(fd);
	get_leave();
}

static void get_enter(int fd, size_t path_length)
{
	struct level *below = level->below;

	if (!below) {
		if (level->depth == TREE_DEPTH_MAX)
			tree_fail(ELOOP);
		below = mem_alloc(sizeof(*below));
		below->above = level;
		below->depth = level->depth + 1;
		level->below = below;
	}
	below->fd = fd;
	below->path_length = path_length;
	below->at = below->end = 0;
	level = below;
}

/*
 * Opening a device or a fifo may do anything: what it is must be known before, and still be so. A
 * name that is another file's by then is as good as gone.
 */
static long get_open(int dir, const char *path, int nofollow, struct stat *st)
{
	unsigned type = st->st_mode & S_IFMT;
	int flags = O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | nofollow;
	long fd = sys_openat(dir, path, type == S_IFDIR ? flags | O_DIRECTORY : flags, 0);

	if (fd >= 0 && (sys_fstat(fd, st) < 0 || (st->st_mode & S_IFMT) != type)) {
		sys_close(fd);
		return -ENOENT;
	}
	return fd;
}

static void get_node(int dir, const char *path, const char *name, bool follow)
{
	bool top = level == &root;
	size_t before = top ? 0 : tree_path_enter(name);
	char target[TREE_PATH_MAX + 1] = "";
	struct stat st;
	long err = sys_newfstatat(dir, path, &st, follow ? 0 : AT_SYMLINK_NOFOLLOW);

	if (!err && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)))
		err = get_open(dir, path, follow ? 0 : O_NOFOLLOW, &st);
	else if (!err && S_ISLNK(st.st_mode))
		err = sys_readlinkat(dir, path, target, TREE_PATH_MAX);
	if (err == -ENOENT && !top) { /* trees live */
		tree_path_leave(before);
		return;
	}
	if (err < 0)
		tree_fail(err);
	if (top)
		device = st.st_dev;
	get_entry(&st, name, target);
	if (S_ISREG(st.st_mode))
		get_file(err, &st);
	if (S_ISDIR(st.st_mode) && st.st_dev == device) {
		get_enter(err, before);
		return; /* the path is left when the directory is */
	}
	if (S_ISDIR(st.st_mode)) {
		sys_close(err);
		get_leave();
	}
	tree_path_leave(before);
}

static bool is_dots(const char *name)
{
	return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/* The next name in the directory, NULL at its end. */
static const char *get_name(struct level *l)
{
	const struct dirent *d;

	do {
		if (l->at == l->end) {
			l->at = 0;
			l->end = sys_getdents64(l->fd, l->names, NAMES_SIZE);
			if (l->end < 0)
				tree_fail(l->end);
			if (!l->end)
				return NULL;
		}
		d = (const struct dirent *)(l->names + l->at);
		l->at += d->length;
	} while (is_dots(d->name));
	return d->name;
}

void tree_get(const uint8_t *payload, uint32_t length)
{
	uint32_t flags;
	const char *path;

	if (length < sizeof(flags))
		proto_broken("a GET frame is cut short");
	memcpy(&flags, payload, sizeof(flags));
	path = tree_path_begin(payload + sizeof(flags), length - sizeof(flags));
	get_node(AT_FDCWD, path, "", flags & TREE_FOLLOW);
	while (level != &root) {
		const char *name = get_name(level);

		if (name) {
			get_node(level->fd, name, name, false);
			continue;
		}
		get_leave();
		sys_close(level->fd);
		tree_path_leave(level->path_length);
		level = level->above;
	}
	tree_out_flush();
}
