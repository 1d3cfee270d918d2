/* Waits until something in the guest accepts TCP connections on a port: the honest readiness probe.
 */
#include "init.h"
#include "sys.h"

#define INTERVAL_MS 50

struct address_v4 {
	uint16_t family, port;
	uint8_t ip[4];
	uint8_t zero[8];
};

struct address_v6 {
	uint16_t family, port;
	uint32_t flow;
	uint8_t ip[16];
	uint32_t scope;
};

/* A connecting socket to the loopback's port, or a negative errno. */
long loopback_connect(int family, uint16_t port)
{
	const uint16_t be_port = __builtin_bswap16(port);
	const struct address_v4 v4 = {AF_INET, be_port, {127, 0, 0, 1}, {0}};
	const struct address_v6 v6 = {.family = AF_INET6, .port = be_port, .ip = {[15] = 1}};
	long fd = sys_socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	long err = fd;

	if (fd >= 0 && family == AF_INET)
		err = sys_connect(fd, &v4, sizeof(v4));
	else if (fd >= 0)
		err = sys_connect(fd, &v6, sizeof(v6));
	if (err >= 0 || err == -EINPROGRESS)
		return fd;
	if (fd >= 0)
		sys_close(fd);
	return err;
}

static bool port_answers(uint16_t port, int family)
{
	long fd = loopback_connect(family, port);
	struct pollfd p = {fd, POLLOUT, 0};

	if (fd < 0)
		return false;
	/* The loopback's answer is there before connect() returns, unless a full backlog drops it.
	 */
	sys_poll(&p, 1, INTERVAL_MS);
	sys_close(fd);
	return p.revents == POLLOUT;
}

void probe_port(const uint8_t *payload, uint32_t length)
{
	struct pollfd host = {proto_fd, POLLIN, 0};
	uint16_t port;

	if (length != sizeof(port))
		proto_broken("a PROBE frame of the wrong size");
	memcpy(&port, payload, sizeof(port));
	if (!port)
		proto_broken("a PROBE frame of port 0");
	while (!port_answers(port, AF_INET) && !port_answers(port, AF_INET6))
		if (sys_poll(&host, 1,
			     INTERVAL_MS)) /* the host has nothing to say but that it goes */
			process_end();
}
