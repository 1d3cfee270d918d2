/* What Python sees of the C core (pyvmm._core), in the C that cffi reads.
 * Functions return 0 or a small number, or a negative errno. */

enum {
	VM_EXIT_SERIAL = 0, /* a byte at the 16550 */
	VM_EXIT_PIO = 1,    /* any other port */
	VM_EXIT_MMIO = 2,   /* a virtio device's registers */
	VM_EXIT_SIGNAL = 3, /* KVM_RUN interrupted by us */
	VM_EXIT_OTHER = 4,
	VM_EXIT_KINDS = 5,
};

enum {
	VM_END_NONE = 0,
	VM_END_RESET = 1,   /* the guest wrote to the reset port: a clean end */
	VM_END_CRASH = 2,   /* triple fault or system event: panic, reboot, power off */
	VM_END_UNKNOWN = 3, /* a KVM exit that is not understood */
	VM_END_ERRNO = 4,   /* KVM_RUN itself failed */
	VM_END_STOPPED = 5, /* vm_stop() */
};

enum { VM_MARKS = 4, VM_MAX_COUNTERS = 8 };

struct vm_end {
	int reason;	    /* VM_END_* */
	int vcpu;	    /* whose exit ended it */
	int kvm_exit;	    /* KVM_EXIT_* */
	int error;	    /* errno of VM_END_ERRNO */
	uint64_t detail[3]; /* what the exit said: suberror, hardware reason, data */
	uint64_t time_ns;   /* CLOCK_MONOTONIC */
};

/* What read(2) gives of a counter. It counted while it ran; less than it was enabled if it had to
 * share the CPU's counters with others. */
struct vm_count {
	uint64_t count;
	uint64_t enabled_ns, running_ns; /* of all threads together */
};

struct vm_mark {
	uint64_t time_ns;   /* CLOCK_MONOTONIC; 0 if never reached */
	uint64_t exits;	    /* to user space, all vCPUs, until then */
	uint64_t kvm_exits; /* all KVM exits, all vCPUs, until then, where KVM counts them */
	struct vm_count counters[VM_MAX_COUNTERS];
};

/* The console's tail, in memory shared with the caller: it outlives a killed worker. */
struct console_ring {
	uint64_t written; /* bytes ever; the ring holds the last of them */
	uint8_t data[];
};

struct vm;

struct vm *vm_new(void);
void vm_free(struct vm *vm);
int vm_add_memory(struct vm *vm, uint64_t gpa, uint64_t size, void *host);
int vm_set_serial(struct vm *vm, int irq_fd, int out_fd, struct console_ring *ring,
		  uint32_t ring_size);

/* Devices take the next slot (MMIO page and interrupt line) and return its number. */
int vm_add_blk(struct vm *vm, int base_fd, int overlay_fd, uint64_t size, bool read_only,
	       const char *serial);
int vm_add_rng(struct vm *vm);
/* vsock's connections, and what each may hold of the guest's data that the host has not taken: the
 * first that there are at a time a buffer of that size (pages, at least VM_VSOCK_SMALL_BUFFER), the
 * others the small one. */
enum {
	VM_VSOCK_CONNS = 4096,
	VM_VSOCK_LARGE = 64,
	VM_VSOCK_SMALL_BUFFER = 1 << 16,
	VM_VSOCK_MAX_BUFFER = 1 << 26,
};
int vm_add_vsock(struct vm *vm, uint64_t guest_cid, uint32_t buffer);
int vm_device_queues(struct vm *vm, int slot);

/* The devices' register pages, slot by slot: what the guest reads there, kept up to date. */
void *vm_registers(struct vm *vm);
int vm_wire_device(struct vm *vm, int slot, int irq_fd, const int *kick_fds);

/* Offer host port `port` to the guest, once: its connection becomes the stream socket fd, which is
 * the core's from then: closed with the connection, at the latest in vm_free(). */
int vm_offer_port(struct vm *vm, int slot, uint32_t port, int fd);
/* Take what connects to the guest, and who listens for it, from this SOCK_SEQPACKET socket
 * (vsock_switch.c), which is the core's from then. */
int vm_set_switch(struct vm *vm, int slot, int fd);

/* Have [host, host + size) come from this NUMA node and no other. Before it is touched. */
int vm_bind_memory(void *host, uint64_t size, uint32_t node);

int vm_add_vcpu(struct vm *vm, int fd, uint64_t run_size, int stats_fd, uint64_t stats_offset);

/* The ring of coalesced MMIO is at this offset of a vCPU's mapping. */
int vm_coalesce(struct vm *vm, uint64_t offset);
/* Run a vCPU on this host CPU and no other; without it, its thread may run where its maker may. */
int vm_pin_vcpu(struct vm *vm, uint32_t index, uint32_t host_cpu);

/* Read this descriptor of perf_open() at every mark. */
int vm_add_counter(struct vm *vm, int fd);

enum { VM_THREAD_MAIN = 0, VM_THREAD_IO = 1, VM_THREAD_VCPU = 2, VM_THREAD_KINDS = 3 };

/* The seccomp filter (struct sock_filter[n]) of this kind of thread. It must stay until vm_start()
 * has returned. */
int vm_confine(struct vm *vm, int kind, const void *filter, uint32_t n);
/* Make all threads. They confine themselves and wait. */
int vm_spawn(struct vm *vm);
/* Confine the calling thread, VM_THREAD_MAIN, and let the others run. */
int vm_start(struct vm *vm);
int vm_done_fd(struct vm *vm);
void vm_stop(struct vm *vm);
const struct vm_end *vm_get_end(struct vm *vm);
uint64_t vm_start_ns(struct vm *vm);
uint64_t vm_exits(struct vm *vm, int kind);
const struct vm_mark *vm_get_mark(struct vm *vm, int mark);

/* One round of the io thread's loop and one register access: what the threads do, for tests. */
int vm_poll(struct vm *vm, int timeout_ms);
void vm_mmio(struct vm *vm, uint64_t addr, uint8_t *data, uint32_t len, bool write);
void vm_serial(struct vm *vm, uint32_t reg, uint8_t *value, bool write);

/* ---- perf.c ---- */

int perf_open(uint32_t type, uint64_t config, bool user);

/* ---- jail.c: walls around this process, for pyvmm/jail.py ---- */

int jail_clone(uint64_t flags, int cgroup_fd, int *pidfd);
int jail_root(void);
int jail_drop(uint32_t id);
int jail_landlock(void);
int jail_limit(int resource, uint64_t limit);
