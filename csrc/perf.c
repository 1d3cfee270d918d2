/* SPDX-License-Identifier: Apache-2.0
 *
 * Counters of what the guest executes (perf_event_open(2)), opened before the walls are up, read at
 * the guest's marks.
 */
#include <errno.h>
#include <linux/perf_event.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"

/* A counter of this thread and of all that it makes from now on, in guest mode only, so that it
 * counts the vCPUs, however many there are, and nothing of ours. `user`: of the guest, only its
 * user mode, which is all that kernel.perf_event_paranoid 2 lets an unprivileged process have.
 * Returns a descriptor. */
int perf_open(uint32_t type, uint64_t config, bool user)
{
	struct perf_event_attr attr = {
		.type = type,
		.size = sizeof(attr),
		.config = config,
		.read_format = PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING,
		.inherit = 1,
		.exclude_host = 1,
		.exclude_hv = 1,
		.exclude_kernel = user,
	};
	long fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);

	return fd < 0 ? -errno : (int)fd;
}

int vm_add_counter(struct vm *vm, int fd)
{
	if (vm->n_counters == VM_MAX_COUNTERS)
		return -ENOSPC;
	vm->counters[vm->n_counters++] = fd;
	return 0;
}

/* read(2) of such a descriptor sums up the threads, also those that run just now on other CPUs. */
void perf_read(struct vm *vm, struct vm_count *counts)
{
	for (unsigned i = 0; i < vm->n_counters; i++)
		if (read(vm->counters[i], &counts[i], sizeof(counts[i])) != sizeof(counts[i]))
			memset(&counts[i], 0, sizeof(counts[i]));
}
