/*
 * Lists all that can be seen of a tree, for comparisons: `lister DIRECTORY` on a host, `lister` in
 * a guest, where it looks at the root without what is mounted over it. The order is that of the
 * names' bytes. A line is
 *
 *     PATH TYPE MODE UID:GID MTIME [SIZE:HASH | TARGET | MAJOR:MINOR] [LINKS=FIRST] [NAME=VALUE]...
 *
 * MODE is octal, LINKS=FIRST the number of hard links and the first of their paths, NAME=VALUE an
 * extended attribute in hexadecimal. Sizes and links of directories are the filesystem's business.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <search.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define XATTRS_MAX 65536

struct linked {
	ino_t inode;
	char *path; /* escaped */
};

struct names {
	char **list;
	size_t count;
};

static void *checked(void *memory)
{
	if (!memory)
		err(1, "memory");
	return memory;
}

/* Printable ASCII but space and backslash; all else in hexadecimal. */
static char *escape(const char *text)
{
	char *escaped = checked(malloc(4 * strlen(text) + 1)), *at = escaped;

	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c > ' ' && c < 0x7f && c != '\\')
			*at++ = (char)c;
		else
			at += sprintf(at, "\\x%02x", c);
	}
	*at = '\0';
	return escaped;
}

static int by_bytes(const void *left, const void *right)
{
	return strcmp(*(char *const *)left, *(char *const *)right);
}

static struct names sorted(struct names names)
{
	qsort(names.list, names.count, sizeof(*names.list), by_bytes);
	return names;
}

static void add(struct names *names, const char *name)
{
	if (!(names->count & (names->count - 1))) /* grow at powers of two */
		names->list =
			checked(realloc(names->list, (2 * names->count + 1) * sizeof(char *)));
	names->list[names->count++] = checked(strdup(name));
}

static struct names entries(void)
{
	struct names names = {0};
	DIR *dir = opendir(".");

	if (!dir)
		err(1, "opendir");
	for (struct dirent *e; (e = readdir(dir));)
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			add(&names, e->d_name);
	closedir(dir);
	return sorted(names);
}

/*
 * FNV-1a by words of 64 bits, and a turn for what multiplication does not reach. Contents differ by
 * accident here, not by intent, and the guest's CPU may be a slow one.
 */
static uint64_t hash_file(const char *name)
{
	static uint64_t buffer[1 << 15];
	uint64_t hash = 0xcbf29ce484222325;
	int fd = open(name, O_RDONLY | O_NOFOLLOW);
	ssize_t size;

	if (fd < 0)
		err(1, "%s", name);
	while ((size = read(fd, buffer, sizeof(buffer))) > 0) {
		size_t words = ((size_t)size + 7) / 8;

		memset((char *)buffer + size, 0, words * 8 - (size_t)size);
		for (size_t i = 0; i < words; i++) {
			hash = (hash ^ buffer[i]) * 0x100000001b3;
			hash = hash << 29 | hash >> 35;
		}
	}
	if (size < 0)
		err(1, "%s", name);
	close(fd);
	return hash;
}

static int by_inode(const void *left, const void *right)
{
	const struct linked *a = left, *b = right;

	return (a->inode > b->inode) - (a->inode < b->inode);
}

/* The first path that led to the inode. */
static const char *first_path(ino_t inode, const char *path)
{
	static void *index;
	struct linked *new = checked(malloc(sizeof(*new))), *found;

	*new = (struct linked){.inode = inode};
	found = *(struct linked **)checked(tsearch(new, &index, by_inode));
	if (found == new)
		found->path = checked(strdup(path));
	else
		free(new);
	return found->path;
}

static void print_xattrs(const char *name)
{
	static char keys[XATTRS_MAX];
	static unsigned char value[XATTRS_MAX];
	ssize_t length = llistxattr(name, keys, sizeof(keys));
	struct names names = {0};

	if (length < 0)
		err(1, "%s: extended attributes", name);
	for (char *key = keys; key < keys + length; key += strlen(key) + 1)
		add(&names, key);
	names = sorted(names);
	for (size_t i = 0; i < names.count; i++) {
		ssize_t size = lgetxattr(name, names.list[i], value, sizeof(value));
		char *escaped = escape(names.list[i]);

		if (size < 0)
			err(1, "%s: %s", name, names.list[i]);
		printf(" %s=", escaped);
		for (ssize_t n = 0; n < size; n++)
			printf("%02x", value[n]);
		free(escaped);
		free(names.list[i]);
	}
	free(names.list);
}

static char type_letter(mode_t mode)
{
	static const char letters[] = "?pc?d?b?-?l?s???"; /* by the four bits of S_IFMT */

	return letters[(mode & S_IFMT) >> 12];
}

static void print_contents(const char *name, const struct stat *st)
{
	char target[4096] = "", *escaped;

	if (S_ISREG(st->st_mode)) {
		printf(" %lld:%016llx", (long long)st->st_size,
		       (unsigned long long)hash_file(name));
	} else if (S_ISLNK(st->st_mode)) {
		if (readlink(name, target, sizeof(target) - 1) < 0)
			err(1, "%s", name);
		escaped = escape(target);
		printf(" %s", escaped);
		free(escaped);
	} else if (S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode)) {
		printf(" %u:%u", major(st->st_rdev), minor(st->st_rdev));
	}
}

/* Paths may be longer than a system call takes: the working directory goes along. */
static void list(const char *name, const char *path)
{
	struct names names;
	struct stat st;

	if (lstat(name, &st))
		err(1, "%s", path);
	printf("%s %c %04o %u:%u %lld.%09ld", *path ? path : "/", type_letter(st.st_mode),
	       st.st_mode & 07777, st.st_uid, st.st_gid, (long long)st.st_mtim.tv_sec,
	       st.st_mtim.tv_nsec);
	print_contents(name, &st);
	if (!S_ISDIR(st.st_mode) && st.st_nlink > 1)
		printf(" %lu=%s", (unsigned long)st.st_nlink, first_path(st.st_ino, path));
	print_xattrs(name);
	putchar('\n');
	if (!S_ISDIR(st.st_mode))
		return;
	if (chdir(name))
		err(1, "%s", path);
	names = entries();
	for (size_t i = 0; i < names.count; i++) {
		char *escaped = escape(names.list[i]), *below;

		if (asprintf(&below, "%s/%s", path, escaped) < 0)
			err(1, "memory");
		list(names.list[i], below);
		free(below);
		free(escaped);
		free(names.list[i]);
	}
	free(names.list);
	if (chdir(".."))
		err(1, "%s/..", path);
}

int main(int argc, char **argv)
{
	static char output[1 << 18];

	setvbuf(stdout, output, _IOFBF, sizeof(output));
	if (argc > 1) {
		if (chdir(argv[1]))
			err(1, "%s", argv[1]);
	} else {
		int fd = open_tree(AT_FDCWD, "/", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

		if (fd < 0 || fchdir(fd))
			err(1, "the root without its mounts");
	}
	list(".", "");
	if (fflush(stdout))
		err(1, "stdout");
	return 0;
}
