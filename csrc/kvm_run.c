/* SPDX-License-Identifier: Apache-2.0
 *
 * The vCPU threads: KVM_RUN, and what each exit asks for (Linux, Documentation/virt/kvm/api.rst
 * §5). The Python thread that made the VM never holds these up: they run without its lock.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

/* A vCPU that is yet to be started says EAGAIN now and then; so often only one that never runs. */
#define REFUSED_MAX 100000
/* KVM_COALESCED_MMIO_MAX, whose PAGE_SIZE user space does not have */
#define COALESCED_MAX                                                                              \
	((4096 - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio))

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The first end counts; later ones are its consequences. */
static void vcpu_end(struct vcpu *v, int reason)
{
	struct vm *vm = v->vm;
	const struct kvm_run *run = v->run;
	uint64_t one = 1;

	if (atomic_exchange(&vm->ended, true))
		return;
	vm->end = (struct vm_end){
		.reason = reason,
		.vcpu = (int)v->index,
		.kvm_exit = (int)run->exit_reason,
		.error = reason == VM_END_ERRNO ? errno : 0,
		.time_ns = now_ns(),
	};
	if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
		vm->end.detail[0] = run->internal.suberror;
		vm->end.detail[1] = run->internal.ndata > 0 ? run->internal.data[0] : 0;
		vm->end.detail[2] = run->internal.ndata > 1 ? run->internal.data[1] : 0;
	} else if (run->exit_reason == KVM_EXIT_FAIL_ENTRY) {
		vm->end.detail[0] = run->fail_entry.hardware_entry_failure_reason;
	} else if (run->exit_reason == KVM_EXIT_SYSTEM_EVENT) {
		vm->end.detail[0] = run->system_event.type;
	}
	if (write(vm->done_fd, &one, sizeof(one)) < 0)
		return;
}

/* What KVM counts; 0 where it does not. */
static uint64_t vcpu_kvm_exits(const struct vcpu *v)
{
	uint64_t exits;

	if (v->stats_fd < 0 ||
	    pread(v->stats_fd, &exits, sizeof(exits), (off_t)v->stats_offset) != sizeof(exits))
		return 0;
	return exits;
}

static void vcpu_mark(struct vcpu *v, unsigned which)
{
	struct vm_mark *mark;

	if (which >= VM_MARKS || v->vm->marks[which].time_ns)
		return;
	mark = &v->vm->marks[which];
	mark->time_ns = now_ns();
	for (int kind = 0; kind < VM_EXIT_KINDS; kind++)
		mark->exits += vm_exits(v->vm, kind);
	for (unsigned i = 0; i < v->vm->n_vcpus; i++)
		mark->kvm_exits += vcpu_kvm_exits(v->vm->vcpus[i]);
	perf_read(v->vm, mark->counters);
}

/* Ports that nobody answers read as ones, as on a bus without pull-downs. */
static uint8_t port_read(struct vcpu *v, uint16_t port)
{
	if (port >= PORT_SERIAL && port < PORT_SERIAL + 8)
		return serial_read(&v->vm->serial, port - PORT_SERIAL);
	return 0xff;
}

/* Returns false if the write ended the VM. */
static bool port_write(struct vcpu *v, uint16_t port, uint8_t value)
{
	if (port >= PORT_SERIAL && port < PORT_SERIAL + 8) {
		serial_write(&v->vm->serial, port - PORT_SERIAL, value);
	} else if (port == PORT_MARK) {
		vcpu_mark(v, value);
	} else if (port == PORT_RESET) {
		vcpu_end(v, VM_END_RESET);
		return false;
	} else if (port == 0x64 && value == 0xfe) {
		vcpu_end(v, VM_END_CRASH);
		return false;
	}
	return true;
}

static bool vcpu_port_io(struct vcpu *v)
{
	struct kvm_run *run = v->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	size_t bytes = (size_t)run->io.size * run->io.count;
	bool serial = run->io.port >= PORT_SERIAL && run->io.port < PORT_SERIAL + 8;

	v->exits[serial ? VM_EXIT_SERIAL : VM_EXIT_PIO]++;
	for (size_t i = 0; i < bytes; i++) {
		/* A wide access spans neighbouring ports; a string of them repeats the same. */
		uint16_t port = (uint16_t)(run->io.port + i % run->io.size);

		if (run->io.direction == KVM_EXIT_IO_IN)
			data[i] = port_read(v, port);
		else if (!port_write(v, port, data[i]))
			return false;
	}
	return true;
}

/* What the guest wrote to registers that nobody reads, before the exit at hand (api.rst §4.116). */
static void coalesced_take(struct vm *vm)
{
	struct kvm_coalesced_mmio_ring *ring = vm->coalesced;
	uint32_t at, end;

	if (!ring)
		return;
	pthread_mutex_lock(&vm->coalesced_lock);
	end = __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE);
	for (at = ring->first; at != end; at = (at + 1) % COALESCED_MAX) {
		struct kvm_coalesced_mmio *write = &ring->coalesced_mmio[at];

		vm_mmio(vm, write->phys_addr, write->data, write->len, true);
	}
	__atomic_store_n(&ring->first, at, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&vm->coalesced_lock);
}

/* Handle one exit; false once the vCPU is to run no more. */
static bool vcpu_exit(struct vcpu *v)
{
	struct kvm_run *run = v->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		return vcpu_port_io(v);
	case KVM_EXIT_MMIO:
		v->exits[VM_EXIT_MMIO]++;
		coalesced_take(v->vm);
		vm_mmio(v->vm, run->mmio.phys_addr, run->mmio.data, run->mmio.len,
			run->mmio.is_write);
		return true;
	case KVM_EXIT_INTR:
		v->exits[VM_EXIT_SIGNAL]++;
		return true;
	case KVM_EXIT_SHUTDOWN:
	case KVM_EXIT_SYSTEM_EVENT:
		v->exits[VM_EXIT_OTHER]++;
		vcpu_end(v, VM_END_CRASH);
		return false;
	default:
		v->exits[VM_EXIT_OTHER]++;
		vcpu_end(v, VM_END_UNKNOWN);
		return false;
	}
}

void vcpu_run(struct vcpu *v)
{
	struct vm *vm = v->vm;
	unsigned refused = 0;

	while (!atomic_load(&vm->stop)) {
		if (ioctl(v->fd, KVM_RUN, 0) == 0) {
			refused = 0;
			if (!vcpu_exit(v))
				break;
		} else if (errno == EINTR) {
			v->exits[VM_EXIT_SIGNAL]++;
			v->run->immediate_exit = 0;
		} else if (errno != EAGAIN || ++refused == REFUSED_MAX) {
			vcpu_end(v, VM_END_ERRNO);
			break;
		}
	}
}

int vm_add_vcpu(struct vm *vm, int fd, uint64_t run_size, int stats_fd, uint64_t stats_offset)
{
	struct vcpu *v;

	if (vm->n_vcpus == VM_MAX_VCPUS)
		return -ENOSPC;
	v = calloc(1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	*v = (struct vcpu){.vm = vm,
			   .index = vm->n_vcpus,
			   .fd = fd,
			   .stats_fd = stats_fd,
			   .stats_offset = stats_offset,
			   .run_size = run_size,
			   .host_cpu = -1};
	v->run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (v->run == MAP_FAILED) {
		free(v);
		return -errno;
	}
	vm->vcpus[vm->n_vcpus++] = v;
	return 0;
}

int vm_coalesce(struct vm *vm, uint64_t offset)
{
	if (!vm->n_vcpus || offset + 4096 > vm->vcpus[0]->run_size)
		return -EINVAL;
	vm->coalesced = (void *)((uint8_t *)vm->vcpus[0]->run + offset);
	return 0;
}

int vm_pin_vcpu(struct vm *vm, uint32_t index, uint32_t host_cpu)
{
	if (index >= vm->n_vcpus || host_cpu >= CPU_SETSIZE)
		return -EINVAL;
	vm->vcpus[index]->host_cpu = (int)host_cpu;
	return 0;
}
