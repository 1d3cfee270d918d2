/* The loopback interface and the files that name this machine. */
#include "init.h"
#include "sys.h"

#define SIOCGIFFLAGS 0x8913
#define SIOCSIFFLAGS 0x8914
#define IFF_UP	     1

/* struct ifreq, for which linux/if.h needs a libc. */
struct interface {
	char name[16];
	int16_t flags;
	char pad[22];
};

/* A program has no capabilities, yet images' servers are made for ports like 80. Docker does this,
 * too.
 */
static void net_low_ports(void)
{
	long fd =
		sys_open("/proc/sys/net/ipv4/ip_unprivileged_port_start", O_WRONLY | O_CLOEXEC, 0);

	if (fd < 0)
		return;
	sys_write(fd, "0", 1);
	sys_close(fd);
}

/* The kernel gives an lo that comes up 127.0.0.1/8 and ::1 by itself. Before /proc is protected. */
void net_loopback(void)
{
	struct interface lo = {.name = "lo"};
	long fd = sys_socket(AF_INET, SOCK_DGRAM | O_CLOEXEC, 0);
	long err;

	if (fd == -EAFNOSUPPORT)
		return;
	err = fd < 0 ? fd : sys_ioctl(fd, SIOCGIFFLAGS, &lo);
	if (!err) {
		lo.flags |= IFF_UP;
		err = sys_ioctl(fd, SIOCSIFFLAGS, &lo);
	}
	if (err < 0)
		log_line("lo", err);
	if (fd >= 0)
		sys_close(fd);
	net_low_ports();
}

/* An image's own file is kept; the empty ones that builders leave as mount points are not. */
static void net_file(const char *path, const char *content)
{
	long fd = sys_open(path, O_WRONLY | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0644);
	struct stat st;

	if (fd < 0)
		return;
	if (!sys_fstat(fd, &st) && S_ISREG(st.st_mode) && !st.st_size)
		sys_write(fd, content, str_len(content));
	sys_close(fd);
}

void net_names(const char *hostname)
{
	char buf[512];
	struct text t = {buf, sizeof(buf), 0};

	text_add(&t, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
	if (hostname) {
		long err = sys_sethostname(hostname, str_len(hostname));

		if (err < 0)
			fail_errno(CODE_INTERNAL, "hostname", err);
		text_add(&t, "127.0.1.1\t");
		text_add(&t, hostname);
		text_add(&t, "\n");
	}
	sys_mkdir("/etc", 0755);
	net_file("/etc/hosts", buf);
	if (hostname) {
		t.len = 0;
		text_add(&t, hostname);
		text_add(&t, "\n");
		net_file("/etc/hostname", buf);
	}
}
