/* SPDX-License-Identifier: Apache-2.0
 *
 * The C core's one internal header: the machine, its devices and how they call each other.
 *
 * Threads (threads.c): the io thread (event_loop.c) runs queues and host descriptors, one thread a
 * vCPU (kvm_run.c) runs the guest and its device configuration accesses. A device's state is
 * guarded by its `lock`; what is shared beyond that is atomic. The guest is hostile and its memory
 * changes under us: every field is read once, into a local, and checked there.
 */
#ifndef PYVMM_CORE_H
#define PYVMM_CORE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "core_cdef.h"

#define MIN(a, b) ((a) < (b) ? (a) : (b))

/* The guest's physical addresses that C must know; pyvmm/layout.py has the whole map. */
#define MMIO_BASE   0xc0001000u
#define MMIO_STRIDE 0x1000u
#define PORT_MARK   0x600
#define PORT_RESET  0x604
#define PORT_SERIAL 0x3f8

#define VM_MAX_DEVICES 8
#define VM_MAX_VCPUS   64
#define VM_MAX_MEMORY  4

/* ---- event_loop.c: one epoll set, served by the io thread ---- */

struct event {
	int fd; /* -1: not in the loop */
	uint32_t events;
	uint32_t added; /* in which round of the loop */
	void (*fn)(struct event *ev, uint32_t events);
};

int loop_init(struct vm *vm);
int loop_add(struct vm *vm, struct event *ev, uint32_t events);
int loop_modify(struct vm *vm, struct event *ev, uint32_t events);
void loop_remove(struct vm *vm, struct event *ev);
void loop_run(struct vm *vm);

/* ---- virtqueue.c: the split virtqueue (Virtio 1.2 §2.7) ---- */

#define VQ_SIZE	   256
#define VQ_IOV_MAX 260

struct virtq {
	uint16_t num;
	bool ready;
	bool event_idx;
	uint64_t desc_addr, avail_addr, used_addr; /* as the driver wrote them */
	const uint8_t *desc;			   /* the same in our memory, once ready */
	const uint8_t *avail;
	uint8_t *used;
	uint16_t last_avail;
	uint16_t used_idx;
	uint16_t signalled; /* used_idx at the last interrupt */
};

/* One descriptor chain: n_out device-readable buffers, then n_in device-writable ones. */
struct chain {
	uint16_t head;
	unsigned n_out, n_in;
	struct iovec iov[VQ_IOV_MAX];
};

int virtq_map(struct vm *vm, struct virtq *vq);
int virtq_pop(struct vm *vm, struct virtq *vq, struct chain *c);
void virtq_unpop(struct virtq *vq, unsigned n);
void virtq_put(struct virtq *vq, uint16_t head, uint32_t len);
void virtq_publish(struct virtq *vq);
void virtq_push(struct virtq *vq, uint16_t head, uint32_t len);
bool virtq_waits(const struct virtq *vq);
bool virtq_rearm(struct virtq *vq, uint16_t more);
bool virtq_wants_interrupt(struct virtq *vq);

size_t iov_size(const struct iovec *iov, unsigned n);
size_t iov_copy_out(const struct iovec *iov, unsigned n, void *buf, size_t len);
size_t iov_copy_in(const struct iovec *iov, unsigned n, const void *buf, size_t len);
unsigned iov_slice(const struct iovec *iov, unsigned n, size_t skip, size_t len, struct iovec *dst);

/* ---- virtio_mmio.c: the transport (Virtio 1.2 §4.2) ---- */

#define VIRTIO_MAX_QUEUES      3
#define VIRTIO_F_INDIRECT_DESC (1ull << 28)
#define VIRTIO_F_EVENT_IDX     (1ull << 29)
#define VIRTIO_F_VERSION_1     (1ull << 32)
#define VIRTIO_COMMON_FEATURES (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

struct virtio_dev;

struct virtio_ops {
	uint32_t id;
	unsigned n_queues;
	/* Serve queue q until it is empty. Called on the io thread with the lock held. */
	void (*serve)(struct virtio_dev *dev, unsigned q);
	/* Nothing has happened for a moment: what was put off is due. As serve(). May be NULL. */
	void (*quiet)(struct virtio_dev *dev);
	/* Forget what belongs to the driver. Called with the lock held. May be NULL. */
	void (*reset)(struct virtio_dev *dev);
	void (*free)(struct virtio_dev *dev);
};

struct virtio_queue_event {
	struct event ev;
	struct virtio_dev *dev;
};

struct virtio_dev {
	struct vm *vm;
	const struct virtio_ops *ops;
	pthread_mutex_t lock;
	uint64_t features, driver_features;
	uint32_t features_sel, driver_features_sel, queue_sel, status;
	uint8_t *page; /* the registers as the guest reads them */
	int irq_fd;
	struct virtq vq[VIRTIO_MAX_QUEUES];
	struct virtio_queue_event kick[VIRTIO_MAX_QUEUES];
};

int virtio_register(struct vm *vm, struct virtio_dev *dev, const struct virtio_ops *ops,
		    uint64_t features, const void *config, size_t config_len);
bool virtio_notify(struct virtio_dev *dev, struct virtq *vq);
void virtio_quiet(struct virtio_dev *dev);
void virtio_break(struct virtio_dev *dev);
bool virtio_running(const struct virtio_dev *dev);

/* ---- serial.c: 16550A on COM1 ---- */

struct serial {
	int irq_fd, out_fd;
	pthread_mutex_t lock;
	struct console_ring *ring;
	uint32_t ring_size;
	uint8_t ier, lcr, mcr, scr, fcr, dll, dlm;
	bool thr_irq;
};

uint8_t serial_read(struct serial *s, unsigned reg);
void serial_write(struct serial *s, unsigned reg, uint8_t value);

/* ---- kvm_run.c: the vCPUs ---- */

struct vcpu {
	struct vm *vm;
	unsigned index;
	int fd, stats_fd;
	uint64_t stats_offset;
	struct kvm_run *run;
	size_t run_size;
	pthread_t thread;
	bool started;
	int host_cpu; /* -1: where the thread that starts it may run */
	uint64_t exits[VM_EXIT_KINDS];
};

void vcpu_run(struct vcpu *v);
uint64_t now_ns(void); /* CLOCK_MONOTONIC */

/* ---- perf.c: what the guest executes ---- */

void perf_read(struct vm *vm, struct vm_count *counts);

/* ---- threads.c: where the threads wait until the guest may run ---- */

struct gate {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned waiting;
	int error; /* negative errno: a thread that could not be confined */
	bool open;
};

struct filter { /* seccomp's: struct sock_filter[n] */
	const void *code;
	uint16_t n;
};

/* ---- vm.c ---- */

struct memory_region {
	uint64_t gpa, size;
	uint8_t *host;
};

struct vm {
	struct memory_region memory[VM_MAX_MEMORY];
	unsigned n_memory;
	struct virtio_dev *devices[VM_MAX_DEVICES];
	uint8_t *registers; /* a page a device */
	unsigned n_devices;
	struct serial serial;
	struct vcpu *vcpus[VM_MAX_VCPUS];
	unsigned n_vcpus;
	struct kvm_coalesced_mmio_ring *coalesced; /* NULL if KVM has none */
	pthread_mutex_t coalesced_lock;
	int epoll_fd, done_fd;
	uint32_t round;		    /* of the loop */
	struct virtio_dev *lingers; /* wants quiet() when nothing happens for linger_ms */
	int linger_ms;
	unsigned linger_rounds; /* of other events, since it has looked */
	struct event wake;	/* ends the io thread */
	struct filter filters[VM_THREAD_KINDS];
	struct gate gate;
	pthread_t io_thread;
	bool io_started;
	_Atomic bool stop;
	_Atomic bool ended;
	struct vm_end end;
	uint64_t start_ns;
	int counters[VM_MAX_COUNTERS]; /* perf_open()'s */
	unsigned n_counters;
	struct vm_mark marks[VM_MARKS];
};

/* Where guest memory [gpa, gpa+len) is in ours; NULL unless it lies whole in one region. */
void *vm_memory_at(struct vm *vm, uint64_t gpa, uint64_t len);

#endif
