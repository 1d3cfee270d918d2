/*
 * The path that a failure names. It may be cut, so that fail() has room for the reason: nothing is
 * opened by it.
 */
#include "tree.h"

#define NOFILE (TREE_DEPTH_MAX + 64)

static char text[1024];
static struct text path = {text, sizeof(text), 0};

/* What it was is to be given back to tree_path_leave(). */
size_t tree_path_enter(const char *name)
{
	size_t before = path.len;

	if (path.len && path.buf[path.len - 1] != '/')
		text_add(&path, "/");
	text_add(&path, name);
	return before;
}

void tree_path_leave(size_t length)
{
	if (length > path.len)
		return; /* it is cut there already */
	path.len = length;
	path.buf[length] = 0;
}

/* GET's or PUT's own path, which is from the root, as a string; the process is made ready. */
char *tree_path_begin(const uint8_t *at, size_t length)
{
	const struct rlimit files = {NOFILE, NOFILE};
	char *own = mem_alloc(TREE_PATH_MAX + 1);

	sys_setrlimit(RLIMIT_NOFILE, &files);
	sys_umask(0);
	sys_chdir("/");
	if (length >= TREE_PATH_MAX)
		fail(ENAMETOOLONG, "the path is too long", NULL);
	memcpy(own, at, length);
	if (!length || str_len(own) != length)
		fail(EINVAL, "the path is empty, or holds a NUL byte", NULL);
	text_add(&path, own);
	return own;
}

void tree_fail(long err)
{
	fail(err < 0 ? -err : err, path.buf, ": ", errno_text(err), NULL);
}
