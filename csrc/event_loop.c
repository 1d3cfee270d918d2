/* SPDX-License-Identifier: Apache-2.0
 *
 * The io thread: one epoll set over the queues' ioeventfds and the devices' host descriptors. An
 * event is where it is for as long as the VM.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core.h"

#define MAX_EVENTS    32 /* a round */
#define LINGER_ROUNDS 8

static void loop_wake(struct event *ev, uint32_t events)
{
	(void)events;
	/* Never read: vm_stop() wants every later round to return at once as well. */
	(void)ev;
}

int loop_init(struct vm *vm)
{
	vm->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (vm->epoll_fd < 0)
		return -errno;
	vm->wake = (struct event){.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .fn = loop_wake};
	if (vm->wake.fd < 0)
		return -errno;
	return loop_add(vm, &vm->wake, EPOLLIN);
}

static int loop_control(struct vm *vm, int op, struct event *ev, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.ptr = ev};

	ev->events = events;
	return epoll_ctl(vm->epoll_fd, op, ev->fd, &e) < 0 ? -errno : 0;
}

int loop_add(struct vm *vm, struct event *ev, uint32_t events)
{
	ev->added = vm->round;
	return loop_control(vm, EPOLL_CTL_ADD, ev, events);
}

int loop_modify(struct vm *vm, struct event *ev, uint32_t events)
{
	return ev->events == events ? 0 : loop_control(vm, EPOLL_CTL_MOD, ev, events);
}

void loop_remove(struct vm *vm, struct event *ev)
{
	epoll_ctl(vm->epoll_fd, EPOLL_CTL_DEL, ev->fd, NULL);
}

int vm_poll(struct vm *vm, int timeout_ms)
{
	struct epoll_event all[MAX_EVENTS];
	struct virtio_dev *dev = vm->lingers;
	int n = epoll_wait(vm->epoll_fd, all, MAX_EVENTS,
			   dev && timeout_ms ? vm->linger_ms : timeout_ms);

	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	if (n == 0 && dev) {
		vm->lingers = NULL;
		virtio_quiet(dev);
		return 1;
	}
	vm->round++;
	for (int i = 0; i < n; i++) {
		struct event *ev = all[i].data.ptr;

		/* What an earlier handler of this round has closed, or put in its place, is not
		 * meant: events stay where they are, what they stand for does not. */
		if (ev->fd >= 0 && ev->added != vm->round)
			ev->fn(ev, all[i].events);
	}
	/* Others may leave no quiet moment. */
	if (vm->lingers && ++vm->linger_rounds >= LINGER_ROUNDS) {
		dev = vm->lingers;
		vm->lingers = NULL;
		vm->linger_rounds = 0;
		virtio_quiet(dev);
	}
	return n;
}

void loop_run(struct vm *vm)
{
	while (!atomic_load(&vm->stop) && vm_poll(vm, -1) >= 0)
		;
}
