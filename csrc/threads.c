/* SPDX-License-Identifier: Apache-2.0
 *
 * The threads of a VM: made, confined, let run all at once, ended.
 *
 * They are made before the guest's first instruction and wait at a gate, each behind its own
 * seccomp filter. So no filter has to allow the making of threads, and none is missing when the
 * guest runs.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"

#define KICK_SIGNAL SIGUSR1

/* From here on this thread may call only what the filter for its kind allows; for good. */
static int confine(const struct vm *vm, int kind)
{
	struct sock_fprog filter = {vm->filters[kind].n, (void *)vm->filters[kind].code};

	if (!filter.len)
		return 0;
	/* SPEC_ALLOW: mitigations for the thread would slow the guest as well, and what they keep
	 * apart is in one process here. */
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW,
		       &filter)
		       ? -errno
		       : 0;
}

/* Confine this thread and wait for vm_start(); false if it is to end instead. */
static bool gate_pass(struct vm *vm, int kind)
{
	struct gate *gate = &vm->gate;
	int error = confine(vm, kind);

	pthread_mutex_lock(&gate->lock);
	gate->waiting++;
	if (error)
		gate->error = error;
	pthread_cond_broadcast(&gate->changed);
	while (!gate->open)
		pthread_cond_wait(&gate->changed, &gate->lock);
	pthread_mutex_unlock(&gate->lock);
	return !atomic_load(&vm->stop);
}

static void *io_thread(void *arg)
{
	struct vm *vm = arg;

	pthread_setname_np(pthread_self(), "io");
	if (gate_pass(vm, VM_THREAD_IO))
		loop_run(vm);
	return NULL;
}

/* At its first KVM_RUN a VM gets a thread of KVM's own (kvm-nx-lpage-recovery), since Linux 6.14 as
 * one of this process: now, while it may make threads. */
static void vcpu_enter_kvm(struct vcpu *v)
{
	v->run->immediate_exit = 1;
	ioctl(v->fd, KVM_RUN, 0);
	v->run->immediate_exit = 0;
}

static void *vcpu_thread(void *arg)
{
	struct vcpu *v = arg;
	char name[16] = "vcpu";

	name[4] = (char)('0' + v->index / 10);
	name[5] = (char)('0' + v->index % 10);
	pthread_setname_np(pthread_self(), name);
	if (v->index == 0)
		vcpu_enter_kvm(v);
	if (gate_pass(v->vm, VM_THREAD_VCPU))
		vcpu_run(v);
	return NULL;
}

static void kick_handler(int signal)
{
	(void)signal; /* its only use is to interrupt KVM_RUN */
}

/* A pinned thread is made with its affinity: it never runs, and touches nothing, anywhere else. */
static int vcpu_spawn(struct vcpu *v)
{
	pthread_attr_t attributes;
	cpu_set_t cpus;
	int r = pthread_attr_init(&attributes);

	if (r)
		return -r;
	if (v->host_cpu >= 0) {
		CPU_ZERO(&cpus);
		CPU_SET((size_t)v->host_cpu, &cpus);
		r = pthread_attr_setaffinity_np(&attributes, sizeof(cpus), &cpus);
	}
	if (!r)
		r = pthread_create(&v->thread, &attributes, vcpu_thread, v);
	v->started = !r;
	pthread_attr_destroy(&attributes);
	return -r;
}

int vm_confine(struct vm *vm, int kind, const void *filter, uint32_t n)
{
	if (kind < 0 || kind >= VM_THREAD_KINDS || !n || n > BPF_MAXINSNS)
		return -EINVAL;
	vm->filters[kind].code = filter;
	vm->filters[kind].n = (uint16_t)n;
	return 0;
}

int vm_spawn(struct vm *vm)
{
	struct sigaction action = {.sa_handler = kick_handler};
	int r;

	sigaction(KICK_SIGNAL, &action, NULL);
	r = pthread_create(&vm->io_thread, NULL, io_thread, vm);
	if (r)
		return -r;
	vm->io_started = true;
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		r = vcpu_spawn(vm->vcpus[i]);
		if (r)
			return r;
	}
	pthread_mutex_lock(&vm->gate.lock);
	while (vm->gate.waiting < vm->n_vcpus + 1)
		pthread_cond_wait(&vm->gate.changed, &vm->gate.lock);
	r = vm->gate.error;
	pthread_mutex_unlock(&vm->gate.lock);
	return r;
}

static void gate_open(struct vm *vm)
{
	pthread_mutex_lock(&vm->gate.lock);
	vm->gate.open = true;
	pthread_cond_broadcast(&vm->gate.changed);
	pthread_mutex_unlock(&vm->gate.lock);
}

int vm_start(struct vm *vm)
{
	int r = confine(vm, VM_THREAD_MAIN);

	if (r)
		return r;
	vm->start_ns = now_ns();
	gate_open(vm);
	return 0;
}

/* Ends all threads; returns when they have ended. Safe to call again, and before vm_start(). */
void vm_stop(struct vm *vm)
{
	uint64_t one = 1;

	atomic_store(&vm->stop, true);
	if (!atomic_exchange(&vm->ended, true))
		vm->end = (struct vm_end){.reason = VM_END_STOPPED, .time_ns = now_ns()};
	gate_open(vm);
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		struct vcpu *v = vm->vcpus[i];

		if (!v->started)
			continue;
		/* immediate_exit closes the window between the loop's check and KVM_RUN. */
		__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		pthread_kill(v->thread, KICK_SIGNAL);
	}
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		if (vm->vcpus[i]->started)
			pthread_join(vm->vcpus[i]->thread, NULL);
		vm->vcpus[i]->started = false;
	}
	if (vm->io_started) {
		if (write(vm->wake.fd, &one, sizeof(one)) == sizeof(one))
			pthread_join(vm->io_thread, NULL);
		vm->io_started = false;
	}
}
