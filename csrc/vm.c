/* SPDX-License-Identifier: Apache-2.0
 *
 * The machine as a whole: made by Python piece by piece, started, ended once, freed.
 */
#include <errno.h>
#include <linux/mempolicy.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"

#define MAX_NODES 1024 /* as the kernel's CONFIG_NODES_SHIFT allows at most */

void *vm_memory_at(struct vm *vm, uint64_t gpa, uint64_t len)
{
	for (unsigned i = 0; i < vm->n_memory; i++) {
		const struct memory_region *m = &vm->memory[i];

		if (gpa >= m->gpa && gpa - m->gpa <= m->size && len <= m->size - (gpa - m->gpa))
			return m->host + (gpa - m->gpa);
	}
	return NULL;
}

struct vm *vm_new(void)
{
	struct vm *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return NULL;
	vm->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&vm->serial.lock, NULL);
	pthread_mutex_init(&vm->coalesced_lock, NULL);
	pthread_mutex_init(&vm->gate.lock, NULL);
	pthread_cond_init(&vm->gate.changed, NULL);
	vm->serial.irq_fd = vm->serial.out_fd = -1;
	vm->wake.fd = vm->epoll_fd = -1;
	vm->registers = mmap(NULL, VM_MAX_DEVICES * MMIO_STRIDE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (vm->registers == MAP_FAILED || loop_init(vm) || vm->done_fd < 0) {
		vm_free(vm);
		return NULL;
	}
	return vm;
}

/* Frees what the core made. Descriptors that were handed in stay the caller's, but for vsock's. */
void vm_free(struct vm *vm)
{
	vm_stop(vm);
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		munmap(vm->vcpus[i]->run, vm->vcpus[i]->run_size);
		free(vm->vcpus[i]);
	}
	for (unsigned i = 0; i < vm->n_devices; i++) {
		struct virtio_dev *dev = vm->devices[i];

		if (dev->ops->reset)
			dev->ops->reset(dev);
		dev->ops->free(dev);
	}
	if (vm->registers != MAP_FAILED)
		munmap(vm->registers, VM_MAX_DEVICES * MMIO_STRIDE);
	if (vm->wake.fd >= 0)
		close(vm->wake.fd);
	if (vm->epoll_fd >= 0)
		close(vm->epoll_fd);
	if (vm->done_fd >= 0)
		close(vm->done_fd);
	free(vm);
}

int vm_add_memory(struct vm *vm, uint64_t gpa, uint64_t size, void *host)
{
	if (vm->n_memory == VM_MAX_MEMORY)
		return -ENOSPC;
	vm->memory[vm->n_memory++] = (struct memory_region){gpa, size, host};
	return 0;
}

int vm_bind_memory(void *host, uint64_t size, uint32_t node)
{
	const unsigned bits = 8 * sizeof(unsigned long);
	unsigned long mask[MAX_NODES / (8 * sizeof(unsigned long))] = {0};

	if (node >= MAX_NODES)
		return -EINVAL;
	mask[node / bits] = 1ul << node % bits;
	/* The kernel takes one bit less than it is told of. glibc has no mbind: libnuma does. */
	return syscall(SYS_mbind, host, size, MPOL_BIND, mask, MAX_NODES + 1ul, 0u) ? -errno : 0;
}

void *vm_registers(struct vm *vm)
{
	return vm->registers;
}

int vm_done_fd(struct vm *vm)
{
	return vm->done_fd;
}

const struct vm_end *vm_get_end(struct vm *vm)
{
	return &vm->end;
}

uint64_t vm_start_ns(struct vm *vm)
{
	return vm->start_ns;
}

uint64_t vm_exits(struct vm *vm, int kind)
{
	uint64_t total = 0;

	for (unsigned i = 0; i < vm->n_vcpus; i++)
		total += vm->vcpus[i]->exits[kind];
	return total;
}

const struct vm_mark *vm_get_mark(struct vm *vm, int mark)
{
	return &vm->marks[mark];
}
