/* The CONFIG frame's records. */
#include "init.h"
#include "sys.h"

enum config_key {
	KEY_ARG = 1,
	KEY_ENV,
	KEY_WORKDIR,
	KEY_USER,
	KEY_HOSTNAME,
	KEY_OUTPUT,
	KEY_STDIN,
	KEY_PRIVILEGED,
	KEY_CLOCK,
	KEY_LIMIT,
};

#define ENV_DEFAULTS 4	   /* PATH, HOME, TERM, HOSTNAME */
#define OUTPUTS_MAX  65536 /* FILE_* carries the ordinal in 16 bits */
#define HOSTNAME_MAX 64

struct record {
	uint16_t key;
	uint16_t zero;
	uint32_t length;
};

static char *config_next(char **at, const char *end, struct record *r)
{
	char *record = *at;

	if ((size_t)(end - record) < sizeof(*r))
		fail(CODE_INTERNAL, "config: a record is cut short", NULL);
	memcpy(r, record, sizeof(*r));
	if (r->zero || r->length > (size_t)(end - record) - sizeof(*r))
		fail(CODE_INTERNAL, "config: a record is malformed", NULL);
	*at = record + sizeof(*r) + r->length;
	return record;
}

/*
 * A record becomes a C string where it lies: moved over its own header, which is done with, it
 * leaves room for the NUL.
 */
static char *config_string(char *record, uint32_t length)
{
	memmove(record, record + sizeof(struct record), length);
	record[length] = 0;
	if (str_len(record) != length)
		fail(CODE_INTERNAL, "config: a record holds a NUL byte", NULL);
	return record;
}

static char *config_path(char *record, uint32_t length)
{
	char *path = config_string(record, length);

	if (path[0] != '/')
		fail(CODE_INTERNAL, "config: \"", path, "\" is not an absolute path", NULL);
	return path;
}

static bool config_flag(const char *record, uint32_t length)
{
	unsigned char value = record[sizeof(struct record)];

	if (length != 1 || value > 1)
		fail(CODE_INTERNAL, "config: a flag is not 0 or 1", NULL);
	return value;
}

static size_t env_key_len(const char *entry)
{
	const char *equals = str_find(entry, '=');

	return equals ? (size_t)(equals - entry) : 0;
}

static size_t env_find(const struct config *c, struct span key)
{
	size_t i;

	for (i = 0; i < c->env_count; i++)
		if (span_is((struct span){c->env[i], env_key_len(c->env[i])}, key))
			break;
	return i;
}

static void config_env_set(struct config *c, char *entry)
{
	struct span key = {entry, env_key_len(entry)};
	size_t i = env_find(c, key);

	if (!key.len)
		fail(CODE_INTERNAL, "config: \"", entry, "\" is not KEY=VALUE", NULL);
	c->env[i] = entry;
	if (i == c->env_count)
		c->env_count++;
}

const char *config_env(const struct config *c, const char *key)
{
	struct span name = span_of(key);
	size_t i = env_find(c, name);

	return i < c->env_count ? c->env[i] + name.len + 1 : NULL;
}

void config_env_default(struct config *c, const char *key, const char *value)
{
	struct text t = {.size = str_len(key) + str_len(value) + 2};

	if (config_env(c, key))
		return;
	t.buf = mem_alloc(t.size);
	text_add(&t, key);
	text_add(&t, "=");
	text_add(&t, value);
	c->env[c->env_count++] = t.buf;
}

static void config_record(struct config *c, char *record, const struct record *r)
{
	switch (r->key) {
	case KEY_ARG:
		c->args[c->arg_count++] = config_string(record, r->length);
		break;
	case KEY_ENV:
		config_env_set(c, config_string(record, r->length));
		break;
	case KEY_WORKDIR:
		c->workdir = config_path(record, r->length);
		break;
	case KEY_USER:
		c->user = config_string(record, r->length);
		break;
	case KEY_HOSTNAME:
		if (r->length > HOSTNAME_MAX)
			fail(CODE_INTERNAL, "config: the hostname is too long", NULL);
		c->hostname = config_string(record, r->length);
		break;
	case KEY_OUTPUT:
		if (c->output_count == OUTPUTS_MAX)
			fail(CODE_INTERNAL, "config: too many outputs", NULL);
		c->outputs[c->output_count++] = config_path(record, r->length);
		break;
	case KEY_STDIN:
		c->stdin_pipe = config_flag(record, r->length);
		break;
	case KEY_PRIVILEGED:
		c->privileged = config_flag(record, r->length);
		break;
	case KEY_CLOCK:
		if (r->length != sizeof(c->clock_ns))
			fail(CODE_INTERNAL, "config: the clock is not 8 bytes", NULL);
		memcpy(&c->clock_ns, record + sizeof(*r), sizeof(c->clock_ns));
		break;
	case KEY_LIMIT:
		if (r->length != sizeof(c->limit))
			fail(CODE_INTERNAL, "config: the limit is not 8 bytes", NULL);
		memcpy(&c->limit, record + sizeof(*r), sizeof(c->limit));
		break;
	default:
		fail(CODE_INTERNAL, "config: unknown key", NULL);
	}
}

void config_parse(struct config *c, char *data, uint32_t length)
{
	const char *end = data + length;
	size_t count[KEY_LIMIT + 1] = {0};
	struct record r;
	char *at;

	for (at = data; at < end;) {
		config_next(&at, end, &r);
		if (r.key <= KEY_LIMIT)
			count[r.key]++;
	}
	c->args = mem_alloc((count[KEY_ARG] + 1) * sizeof(char *));
	c->env = mem_alloc((count[KEY_ENV] + ENV_DEFAULTS + 1) * sizeof(char *));
	c->outputs = mem_alloc((count[KEY_OUTPUT] + 1) * sizeof(char *));
	c->workdir = "/";
	c->user = "";
	c->limit = UINT64_MAX;
	for (at = data; at < end;) {
		char *record = config_next(&at, end, &r);

		config_record(c, record, &r);
	}
	if (!c->arg_count)
		fail(CODE_INTERNAL, "no command specified", NULL);
}
