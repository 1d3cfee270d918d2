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
	KEY_TTY,
	KEY_HOLD,
	KEY_PORT,
	KEYS,
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

static void config_bytes(void *to, uint32_t size, const char *what, const char *record,
			 uint32_t length)
{
	if (length != size)
		fail(CODE_INTERNAL, "config: ", what, NULL);
	memcpy(to, record + sizeof(struct record), size);
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
		config_bytes(&c->clock_ns, sizeof(c->clock_ns), "the clock is not 8 bytes", record,
			     r->length);
		break;
	case KEY_LIMIT:
		config_bytes(&c->limit, sizeof(c->limit), "the limit is not 8 bytes", record,
			     r->length);
		break;
	case KEY_TTY:
		config_bytes(&c->size, sizeof(c->size), "the terminal's size is not 4 bytes",
			     record, r->length);
		c->tty = true;
		break;
	case KEY_HOLD:
		c->hold = config_flag(record, r->length);
		break;
	case KEY_PORT:
		config_bytes(&c->ports[c->port_count++], sizeof(c->ports[0]),
			     "a port is not 2 bytes", record, r->length);
		if (!c->ports[c->port_count - 1])
			fail(CODE_INTERNAL, "config: a port is 0", NULL);
		break;
	default:
		fail(CODE_INTERNAL, "config: unknown key", NULL);
	}
}

/* With a base, the machine's own: what is not said is as there, but for the program and its input.
 */
static void config_begin(struct config *c, const struct config *base, const size_t count[KEYS])
{
	size_t inherited = base ? base->env_given : 0;

	*c = (struct config){.workdir = "/", .user = "", .limit = UINT64_MAX};
	if (base) {
		c->workdir = base->workdir;
		c->user = base->user;
		c->hostname = base->hostname;
		c->privileged = base->privileged;
	}
	c->args = mem_alloc((count[KEY_ARG] + 1) * sizeof(char *));
	c->env = mem_alloc((inherited + count[KEY_ENV] + ENV_DEFAULTS + 1) * sizeof(char *));
	c->outputs = mem_alloc((count[KEY_OUTPUT] + 1) * sizeof(char *));
	c->ports = mem_alloc((count[KEY_PORT] + 1) * sizeof(c->ports[0]));
	if (inherited)
		memcpy(c->env, base->env, inherited * sizeof(char *));
	c->env_count = inherited;
}

void config_parse(struct config *c, const struct config *base, char *data, uint32_t length)
{
	const char *end = data + length;
	size_t count[KEYS] = {0};
	struct record r;
	char *at;

	for (at = data; at < end;) {
		config_next(&at, end, &r);
		if (r.key < KEYS)
			count[r.key]++;
	}
	config_begin(c, base, count);
	for (at = data; at < end;) {
		char *record = config_next(&at, end, &r);

		config_record(c, record, &r);
	}
	c->env_given = c->env_count;
	if (base && (c->output_count || c->port_count || c->hold))
		fail(CODE_INTERNAL, "config: a session has no outputs, ports or hold", NULL);
	if (!c->arg_count && !c->hold)
		fail(CODE_INTERNAL, "no command specified", NULL);
}
