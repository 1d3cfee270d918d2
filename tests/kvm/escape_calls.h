/* Part of escape.c: attempts of more than one call, or with more than numbers for arguments. Each
 * returns a negative errno or what was had, and keeps no descriptor: there is room for few. */

/* the attempts' arguments */
static const uint64_t zeros[8], read_only[4] = {0, 1 /* MOUNT_ATTR_RDONLY */};
static const struct iovec one_byte = {"x", 1};
static const siginfo_t queued = {.si_code = SI_QUEUE};
static const struct kvm_irq_level irq = {{1000}, 0};
static struct {
	struct file_handle head;
	char bytes[MAX_HANDLE_SZ];
} handle = {{.handle_bytes = MAX_HANDLE_SZ, .handle_type = 1}, {2}};

static long closed(long fd)
{
	if (fd >= 0)
		CALL(SYS_close, fd);
	return fd < 0 ? fd : 0;
}

static long child(long pid)
{
	if (!pid)
		CALL(SYS_exit_group, 0);
	if (pid > 0) /* it ends, so that it is not why the next cannot be had */
		CALL(SYS_wait4, pid, 0, __WALL, 0);
	return pid < 0 ? pid : 0;
}

static long connected(int family, int type, const void *to, size_t size)
{
	long fd = CALL(SYS_socket, family, type, 0), r;

	if (fd < 0)
		return fd;
	r = CALL(SYS_connect, fd, to, size);
	CALL(SYS_close, fd);
	return r;
}

static long connect_inet(void)
{
	struct sockaddr_in to = {
		AF_INET, htons((uint16_t)page->port), {htonl(INADDR_LOOPBACK)}, {0}};

	return connected(AF_INET, SOCK_STREAM, &to, sizeof(to));
}

static long connect_inet6(void)
{
	struct sockaddr_in6 to = {.sin6_family = AF_INET6,
				  .sin6_port = htons((uint16_t)page->port),
				  .sin6_addr = IN6ADDR_LOOPBACK_INIT};

	return connected(AF_INET6, SOCK_STREAM, &to, sizeof(to));
}

static long connect_unix(const char *name, size_t at)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	size_t n = strlen(name);

	memcpy(to.sun_path + at, name, n);
	return connected(AF_UNIX, SOCK_STREAM, &to,
			 offsetof(struct sockaddr_un, sun_path) + at + n);
}

static long raise_loopback(void)
{
	struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	long fd = CALL(SYS_socket, AF_INET, SOCK_DGRAM, 0), r;

	if (fd < 0)
		return fd;
	r = CALL(SYS_ioctl, fd, 0x8914 /* SIOCSIFFLAGS */, &lo);
	CALL(SYS_close, fd);
	return r;
}

static long send_named(long nr)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	struct iovec iov = {"x", 1};
	struct msghdr message = {&to, sizeof(to), &iov, 1, NULL, 0, 0};

	memcpy(to.sun_path + 1, page->abstract, sizeof(page->abstract));
	return nr == SYS_sendmsg ? CALL(nr, rights[0], &message, 0)
				 : CALL(nr, rights[0], "x", 1, 0, &to, sizeof(to));
}

/* Descriptors received; `room`: after two of our own were given up. */
static long receive_rights(int room)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec iov = {&byte, 1};
	struct msghdr message = {.msg_iov = &iov,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control)};
	long r;

	if (room) {
		CALL(SYS_close, 0);
		CALL(SYS_close, 1);
	}
	r = CALL(SYS_recvmsg, rights[1], &message, MSG_DONTWAIT | MSG_PEEK);
	if (r < 0)
		return r;
	if (!message.msg_controllen)
		return message.msg_flags & MSG_CTRUNC ? -EMFILE : 0;
	CALL(SYS_close, *(int *)(void *)CMSG_DATA((struct cmsghdr *)(void *)control));
	return 1;
}

static long third_descriptor(void)
{
	long a = CALL(SYS_dup, 2), b, c;

	if (a < 0)
		return a;
	b = CALL(SYS_dup, 2);
	c = CALL(SYS_dup, 2);
	closed(a);
	closed(b);
	return closed(c);
}

static long enter_namespace(void)
{
	long fd = CALL(SYS_pidfd_open, 1, 0), r;

	if (fd < 0)
		return fd;
	r = CALL(SYS_setns, fd, CLONE_NEWNET);
	CALL(SYS_close, fd);
	return r;
}

static long execute_memory(void)
{
	char *const none[] = {NULL};
	long fd = CALL(SYS_memfd_create, "x", 0), r;

	if (fd < 0)
		return fd;
	r = CALL(SYS_execveat, fd, "", none, none, AT_EMPTY_PATH); /* it is empty */
	CALL(SYS_close, fd);
	return r;
}

static long attach_executable(void)
{
	long id = CALL(SYS_shmget, IPC_PRIVATE, 4096, 0700), at;

	if (id < 0)
		return id;
	at = CALL(SYS_shmat, id, 0, SHM_EXEC);
	CALL(SYS_shmctl, id, IPC_RMID, 0);
	return at < 0 && at > -4096 ? at : CALL(SYS_shmdt, at);
}

static long mapped(long at, long size)
{
	if (at < 0 && at > -4096)
		return at;
	CALL(SYS_munmap, at, size);
	return 0;
}

static long start_process(uint64_t flags)
{
	struct clone_args args = {.flags = flags, .exit_signal = SIGCHLD};

	return child(CALL(SYS_clone3, &args, sizeof(args)));
}

static long prlimit_of(int pid, int resource)
{
	struct rlimit more = {1 << 20, 1 << 20};

	return CALL(SYS_prlimit64, pid, resource, &more, 0);
}

static long open_handle(void)
{
	return closed(CALL(SYS_open_by_handle_at, overlay, &handle, O_RDONLY));
}

static long capabilities(void)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct all[2] = {{~0u, ~0u, 0}, {~0u, ~0u, 0}};

	return CALL(SYS_capset, &header, all);
}

static long read_process(long nr)
{
	char byte;
	struct iovec ours = {&byte, 1}, theirs = {&kvm, 1};

	return CALL(nr, page->host_pid, &ours, 1, &theirs, 1, 0);
}

static long watch_cpu(void)
{
	struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof(attr)};

	return closed(CALL(SYS_perf_event_open, &attr, -1, 0, -1, 0));
}

static long load_program(void)
{
	static const struct {
		uint8_t code, regs;
		int16_t off;
		int32_t imm;
	} exit_0[] = {{0xb7, 0, 0, 0}, {0x95, 0, 0, 0}};
	struct {
		uint32_t type, n;
		uint64_t insns, license;
		char rest[96];
	} attr = {2 /* kprobe */, 2, (uintptr_t)exit_0, (uintptr_t)"GPL", {0}};

	return closed(CALL(SYS_bpf, 5 /* BPF_PROG_LOAD */, &attr, sizeof(attr)));
}

static long rings(void)
{
	struct io_uring_params parameters = {0};

	return closed(CALL(SYS_io_uring_setup, 1, &parameters));
}

static long segment(void)
{
	struct user_desc none = {.entry_number = 0, .read_exec_only = 1, .seg_not_present = 1};

	return CALL(SYS_modify_ldt, 1, &none, sizeof(none));
}

static long memory_slot(void)
{
	struct kvm_userspace_memory_region region = {.slot = 0xffff};

	return CALL(SYS_ioctl, vm, KVM_SET_USER_MEMORY_REGION, &region);
}

/* getpid() of 32 bits. Not where no filter is: a kernel without that answers by SIGSEGV. */
static long int80(void)
{
	long result = 20;

	if (!page->seccomp)
		return -ENOSYS;
	__asm__ volatile("int $0x80" : "+a"(result) : : "memory");
	return result;
}
