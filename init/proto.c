/* Frames over the one connection. Blocking here; while the program runs pump.c takes over. */
#include "init.h"
#include "sys.h"

#define PROTOCOL_VERSION 2
#define CPU_MASK_BYTES	 1024

int proto_fd = -1;

/* linux/sysinfo.h declares it with an array sized by long; spelled out, it is the same. */
struct sys_info {
	long uptime;
	unsigned long loads[3];
	unsigned long total_ram, free_ram, shared_ram, buffer_ram, total_swap, free_swap;
	uint16_t processes, pad;
	unsigned long total_high, free_high;
	uint32_t unit;
};

void proto_broken(const char *why)
{
	sys_close(proto_fd);
	proto_fd = -1;
	fail(CODE_INTERNAL, "host connection: ", why, NULL);
}

void proto_send(uint16_t type, uint16_t index, const void *payload, uint32_t length)
{
	struct frame head = {length, type, index};
	struct iovec parts[2] = {{&head, sizeof(head)}, {(void *)payload, length}};
	size_t first = 0;

	while (first < 2) {
		long n = sys_writev(proto_fd, parts + first, 2 - first);

		if (n < 0)
			proto_broken(errno_text(n));
		for (; first < 2 && (size_t)n >= parts[first].len; first++)
			n -= parts[first].len;
		if (first < 2) {
			parts[first].base = (char *)parts[first].base + n;
			parts[first].len -= n;
		}
	}
}

static void proto_read(void *buf, size_t length)
{
	for (size_t done = 0; done < length;) {
		long n = sys_read(proto_fd, (char *)buf + done, length - done);

		if (n <= 0)
			proto_broken(n ? errno_text(n) : "closed by the host");
		done += n;
	}
}

void proto_hello(uint64_t init_ns)
{
	struct {
		uint32_t version;
		uint32_t cpus;
		uint64_t init_ns;
		uint64_t memory;
	} hello = {.version = PROTOCOL_VERSION, .init_ns = init_ns};
	uint64_t mask[CPU_MASK_BYTES / sizeof(uint64_t)];
	long bytes = sys_sched_getaffinity(0, sizeof(mask), mask);
	struct sys_info info;

	for (long i = 0; i < bytes / (long)sizeof(mask[0]); i++)
		for (uint64_t bits = mask[i]; bits; bits &= bits - 1)
			hello.cpus++;
	if (!sys_sysinfo(&info))
		hello.memory = (uint64_t)info.total_ram * info.unit;
	proto_send(FRAME_HELLO, 0, &hello, sizeof(hello));
}

static void proto_read_head(struct frame *head)
{
	uint32_t max;

	proto_read(head, sizeof(*head));
	max = head->type == FRAME_CONFIG ? CONFIG_MAX : FRAME_MAX;
	if (head->length > max)
		proto_broken("a frame is too long");
}

/* The first frame after HELLO, kept for good. One byte more, so that an empty one is a mapping too.
 */
char *proto_read_opening(struct frame *head)
{
	char *payload;

	proto_read_head(head);
	payload = mem_alloc((size_t)head->length + 1);
	proto_read(payload, head->length);
	return payload;
}

/* A later one: its payload is good until the next call. */
const uint8_t *proto_read_frame(struct frame *head)
{
	static uint8_t payload[FRAME_MAX];

	proto_read_head(head);
	if (head->type == FRAME_CONFIG)
		proto_broken("an unexpected frame");
	proto_read(payload, head->length);
	return payload;
}

/* After a failure. The host may take its time with what it has: it closes when it is done. */
void proto_finish(void)
{
	char buf[512];

	proto_send(FRAME_END, 0, NULL, 0);
	while (sys_read(proto_fd, buf, sizeof(buf)) > 0)
		;
	process_end();
}
