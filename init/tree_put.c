/*
 * PUT: entries become files below a directory. Only the path itself may lead over symbolic links:
 * a program in the guest may make some while we write, and we are root.
 */
#include "tree.h"

#define PERMISSIONS 07777
#define UTIME_OMIT  ((1l << 30) - 2)

/* A directory that is being filled. */
struct level {
	struct level *above, *below;
	int fd;
	unsigned depth;
	size_t path_length; /* of the directory's that has it */
	struct tree_entry entry;
};

static struct level base;
static struct level *level = &base;
static const char *renamed; /* what the first entry is called here, if not as it says */
static bool first = true;   /* entry is still to come */
static bool exact;

static struct {
	int fd; /* -1: none is open */
	uint64_t at;
	bool hole; /* it ends with one so far */
	size_t path_length;
	struct tree_entry entry;
} file = {.fd = -1};

static void put_check(long err)
{
	if (err < 0)
		tree_fail(err);
}

/* Owner before mode: a change of owner clears the set-user-ID bit. */
static void put_attributes(int fd, const struct tree_entry *e)
{
	const struct sys_time times[2] = {{0, UTIME_OMIT}, {e->mtime, e->mtime_ns}};

	put_check(sys_fchown(fd, e->uid, e->gid));
	put_check(sys_fchmod(fd, e->mode & PERMISSIONS));
	put_check(sys_utimensat(fd, NULL, times, 0));
}

static void put_attributes_at(int dir, const char *name, const struct tree_entry *e)
{
	const struct sys_time times[2] = {{0, UTIME_OMIT}, {e->mtime, e->mtime_ns}};

	put_check(sys_fchownat(dir, name, e->uid, e->gid, AT_SYMLINK_NOFOLLOW));
	put_check(sys_utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW));
}

static void put_directory(const char *name, size_t path_length, const struct tree_entry *e)
{
	bool keep = e->flags & TREE_KEEP;
	struct level *below = level->below;
	long err = sys_mkdirat(level->fd, name, keep ? 0755 : 0700), fd;

	if (err != -EEXIST)
		put_check(err);
	fd = sys_openat(level->fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
	put_check(fd);
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
	below->entry = *e;
	level = below;
}

static void put_file(const char *name, const struct tree_entry *e)
{
	int flags = O_WRONLY | O_CREAT | O_NOCTTY | O_NONBLOCK | O_CLOEXEC;
	unsigned mode = exact ? e->mode & PERMISSIONS : 0600;
	long fd = sys_openat(level->fd, name, flags | (exact ? O_TRUNC : O_EXCL), mode);

	put_check(fd);
	file.fd = fd;
	file.at = 0;
	file.hole = false;
	file.entry = *e;
}

static void put_file_end(void)
{
	if (file.hole)
		put_check(sys_ftruncate(file.fd, file.at));
	if (!exact)
		put_attributes(file.fd, &file.entry);
	sys_close(file.fd);
	file.fd = -1;
	tree_path_leave(file.path_length);
}

/* To an entry of before, from the base's first level on. */
static void put_hard_link(const char *name, const char *target)
{
	char part[TREE_NAME_MAX + 1];
	struct span rest = span_of(target);
	int dir = base.fd;

	for (;;) {
		struct span next = span_cut(&rest, '/');
		struct text t = {part, sizeof(part), 0};
		long fd;

		text_add_span(&t, next);
		if (dir == base.fd && renamed)
			t = (struct text){(char *)renamed, 0, 0};
		if (!rest.len) {
			put_check(sys_linkat(dir, t.buf, level->fd, name, 0));
			break;
		}
		fd = sys_openat(dir, t.buf, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
		put_check(fd);
		if (dir != base.fd)
			sys_close(dir);
		dir = fd;
	}
	if (dir != base.fd)
		sys_close(dir);
}

/* What is there and no directory makes room. */
static void put_unlink(const char *name)
{
	long err = sys_unlinkat(level->fd, name, 0);

	if (err != -ENOENT)
		put_check(err);
}

static void put_node(const char *name, const char *target, const struct tree_entry *e)
{
	size_t before = tree_path_enter(name);

	if (S_ISDIR(e->mode)) {
		put_directory(name, before, e);
		return; /* the path is left when the directory is */
	}
	if (!exact)
		put_unlink(name);
	if (e->flags & TREE_LINK) {
		put_hard_link(name, target);
	} else if (S_ISREG(e->mode)) {
		put_file(name, e);
	} else if (S_ISLNK(e->mode)) {
		put_check(sys_symlinkat(target, level->fd, name));
		put_attributes_at(level->fd, name, e);
	} else {
		put_check(sys_mknodat(level->fd, name, e->mode, e->size));
		put_attributes_at(level->fd, name, e);
	}
	if (file.fd < 0)
		tree_path_leave(before);
	else
		file.path_length = before;
}

static void put_entry(const uint8_t *payload, uint32_t length)
{
	char name[TREE_NAME_MAX + 1] = "", target[TREE_PATH_MAX + 1] = "";
	struct tree_entry e;
	size_t rest;

	if (file.fd >= 0 || length < sizeof(e))
		proto_broken("an ENTRY out of place");
	memcpy(&e, payload, sizeof(e));
	rest = length - sizeof(e);
	if (e.name_length > TREE_NAME_MAX || e.name_length > rest ||
	    rest - e.name_length > TREE_PATH_MAX)
		proto_broken("an ENTRY of the wrong size");
	memcpy(name, payload + sizeof(e), e.name_length);
	memcpy(target, payload + sizeof(e) + e.name_length, rest - e.name_length);
	if (!e.name_length || str_len(name) != e.name_length || str_find(name, '/') ||
	    span_is(span_of(name), span_of(".")) || span_is(span_of(name), span_of("..")))
		proto_broken("an ENTRY with no such name");
	if ((exact && !S_ISREG(e.mode)) || (renamed && level == &base && !first))
		proto_broken("an ENTRY too many");
	put_node(renamed && first ? renamed : name, target, &e);
	first = false;
}

static void put_data(const uint8_t *payload, uint32_t length)
{
	uint32_t done = 0;

	if (file.fd < 0)
		proto_broken("DATA of no file");
	while (done < length) {
		long n = sys_write(file.fd, payload + done, length - done);

		put_check(n ? n : -EIO);
		done += n;
	}
	file.at += length;
	file.hole = false;
}

static void put_hole(const uint8_t *payload, uint32_t length)
{
	uint64_t hole;

	if (file.fd < 0 || length != sizeof(hole))
		proto_broken("a HOLE of no file");
	memcpy(&hole, payload, sizeof(hole));
	file.at += hole;
	file.hole = true;
	put_check(sys_lseek(file.fd, file.at, SEEK_SET));
}

static void put_leave(void)
{
	if (file.fd >= 0) {
		put_file_end();
		return;
	}
	if (level == &base)
		proto_broken("a LEAVE of nothing");
	if (!(level->entry.flags & TREE_KEEP))
		put_attributes(level->fd, &level->entry);
	sys_close(level->fd);
	tree_path_leave(level->path_length);
	level = level->above;
}

static long put_open(const char *path)
{
	return sys_open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
}

/* The path's last part is what the first entry becomes, in the directory before it. */
static void put_as(char *path)
{
	size_t slash, end = str_len(path);

	while (end > 1 && path[end - 1] == '/')
		path[--end] = 0;
	for (slash = end; slash && path[slash - 1] != '/';)
		slash--;
	if (end - slash > TREE_NAME_MAX)
		tree_fail(ENAMETOOLONG);
	renamed = memcpy(mem_alloc(TREE_NAME_MAX + 1), path + slash, end - slash);
	path[slash] = 0;
	tree_path_leave(slash > 1 ? slash - 1 : slash);
	base.fd = put_open(slash ? path : "/");
	put_check(base.fd);
}

static void put_begin(char *path, uint32_t how)
{
	long fd, err = how == TREE_MAKE ? sys_mkdir(path, 0755) : 0;

	if (err != -EEXIST)
		put_check(err);
	exact = how == TREE_EXACT;
	fd = exact ? -ENOENT : put_open(path);
	if (how == TREE_EXACT || (how == TREE_CP && (fd == -ENOENT || fd == -ENOTDIR))) {
		put_as(path);
		return;
	}
	put_check(fd);
	base.fd = fd;
}

void tree_put(const uint8_t *payload, uint32_t length)
{
	struct frame head;
	uint32_t how;

	if (length < sizeof(how))
		proto_broken("a PUT frame is cut short");
	memcpy(&how, payload, sizeof(how));
	if (how > TREE_EXACT)
		proto_broken("a PUT frame of no such kind");
	put_begin(tree_path_begin(payload + sizeof(how), length - sizeof(how)), how);
	do {
		const uint8_t *data = tree_in(&head);

		if (head.type == TREE_ENTRY)
			put_entry(data, head.length);
		else if (head.type == TREE_DATA)
			put_data(data, head.length);
		else if (head.type == TREE_HOLE)
			put_hole(data, head.length);
		else if (head.type == TREE_LEAVE)
			put_leave();
		else if (head.type != FRAME_END || level != &base || file.fd >= 0)
			proto_broken("an unexpected frame");
	} while (head.type != FRAME_END);
}
