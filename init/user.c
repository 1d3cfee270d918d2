/* Who the program runs as: USER with Docker's rules, from the image's passwd and group. */
#include "init.h"
#include "sys.h"

#define ACCOUNTS_MAX (4u << 20)
#define ID_MAX	     2147483647u /* as Docker: larger ones are (uid_t)-1 and its neighbours */
#define HOME_MAX     4096
#define GROUPS_MAX   65536

/* What is absent, unreadable or no plain file counts as empty, as an image may have none. */
static struct span user_file(const char *path)
{
	struct span file = {0};
	struct stat st;
	char *buf;
	int fd = sys_open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0);

	if (fd < 0)
		return file;
	if (sys_fstat(fd, &st) || !S_ISREG(st.st_mode) || !st.st_size)
		goto out;
	if (st.st_size > ACCOUNTS_MAX)
		fail(CODE_INTERNAL, path, ": larger than 4 MiB", NULL);
	buf = mem_alloc(st.st_size);
	file.at = buf;
	while (file.len < (size_t)st.st_size) {
		long n = sys_read(fd, buf + file.len, st.st_size - file.len);

		if (n <= 0)
			break;
		file.len += n;
	}
out:
	sys_close(fd);
	return file;
}

static uint32_t user_id(struct span s, const char *complaint)
{
	uint64_t id;

	if (!span_number(s, &id))
		fail(CODE_INTERNAL, complaint, NULL);
	if (id > ID_MAX)
		fail(CODE_INTERNAL, "uids and gids must be in range 0-2147483647", NULL);
	return id;
}

static bool account_id(struct span field, uint32_t *id)
{
	uint64_t n;

	if (!span_number(field, &n) || n > ID_MAX)
		return false;
	*id = n;
	return true;
}

static const char *user_home(struct span home)
{
	struct text t = {.size = home.len + 1};

	if (!home.len || home.len > HOME_MAX)
		return "/";
	t.buf = mem_alloc(t.size);
	text_add_span(&t, home);
	return t.buf;
}

/*
 * The first line whose name or number is the wanted one gives uid, gid and home; an empty name
 * means uid 0. Returns the account's name, empty if there is none.
 */
static struct span user_passwd(struct user *u, struct span want)
{
	struct span rest = user_file("/etc/passwd");
	uint64_t number = 0;
	bool numeric = !want.len || span_number(want, &number);

	while (rest.len) {
		struct span line = span_cut(&rest, '\n');
		struct span name = span_cut(&line, ':');
		uint32_t uid, gid;

		span_cut(&line, ':');
		if (!name.len || !account_id(span_cut(&line, ':'), &uid) ||
		    !account_id(span_cut(&line, ':'), &gid))
			continue;
		if (!(want.len && span_is(name, want)) && !(numeric && uid == number))
			continue;
		span_cut(&line, ':');
		u->uid = uid;
		u->gid = gid;
		u->home = user_home(span_cut(&line, ':'));
		return name;
	}
	if (want.len) {
		char text[256];
		struct text t = {text, sizeof(text), 0};

		text_add(&t, "unable to find user ");
		text_add_span(&t, want);
		text_add(&t, ": no matching entries in passwd file");
		u->uid = user_id(want, text);
	}
	return (struct span){0};
}

static bool group_has(struct span members, struct span name)
{
	while (members.len)
		if (span_is(span_cut(&members, ','), name))
			return true;
	return false;
}

static void user_add_group(struct user *u, uint32_t gid)
{
	for (size_t i = 0; i < u->group_count; i++)
		if (u->groups[i] == gid)
			return;
	if (u->group_count < GROUPS_MAX)
		u->groups[u->group_count++] = gid;
}

/* Reads the group file for one wanted group, or else for all that list the account. */
static void user_group(struct user *u, struct span want, struct span account)
{
	struct span rest = user_file("/etc/group");
	uint64_t number;
	bool numeric = span_number(want, &number);

	while (rest.len) {
		struct span line = span_cut(&rest, '\n');
		struct span name = span_cut(&line, ':');
		uint32_t gid;

		span_cut(&line, ':');
		if (!name.len || !account_id(span_cut(&line, ':'), &gid))
			continue;
		if (!want.len) {
			if (group_has(line, account))
				user_add_group(u, gid);
		} else if (span_is(name, want) || (numeric && gid == number)) {
			u->gid = gid;
			return;
		}
	}
	if (want.len) {
		char text[256];
		struct text t = {text, sizeof(text), 0};

		text_add(&t, "unable to find group ");
		text_add_span(&t, want);
		text_add(&t, ": no matching entries in group file");
		u->gid = user_id(want, text);
	}
}

void user_resolve(struct user *u, const char *name)
{
	struct span group = span_of(name);
	struct span account = span_cut(&group, ':');

	*u = (struct user){.home = "/"};
	u->groups = mem_alloc(GROUPS_MAX * sizeof(u->groups[0]));
	account = user_passwd(u, account);
	if (group.len)
		user_group(u, group, account);
	/* Docker puts the primary group among the supplementary ones: CVE-2022-36109. */
	user_add_group(u, u->gid);
	if (!group.len && account.len)
		user_group(u, group, account);
}
