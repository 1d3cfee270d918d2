/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio over MMIO, version 2 (Virtio 1.2 §4.2). A device's registers are one page, which the guest
 * has mapped read-only: reading is no exit, and a write comes here, changes the device and renews
 * the page. A kick is an ioeventfd at QueueNotify and never comes here, an interrupt is an edge
 * through an irqfd. Its acknowledgement goes into an ioeventfd that nobody reads: each line has one
 * device and is an edge, so that an interrupt status that stays set misleads nobody.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "core.h"

enum {
	REG_MAGIC = 0x000,
	REG_VERSION = 0x004,
	REG_DEVICE_ID = 0x008,
	REG_VENDOR_ID = 0x00c,
	REG_DEVICE_FEATURES = 0x010,
	REG_DEVICE_FEATURES_SEL = 0x014,
	REG_DRIVER_FEATURES = 0x020,
	REG_DRIVER_FEATURES_SEL = 0x024,
	REG_QUEUE_SEL = 0x030,
	REG_QUEUE_NUM_MAX = 0x034,
	REG_QUEUE_NUM = 0x038,
	REG_QUEUE_READY = 0x044,
	REG_INTERRUPT_STATUS = 0x060,
	REG_INTERRUPT_ACK = 0x064,
	REG_STATUS = 0x070,
	REG_QUEUE_DESC_LOW = 0x080,
	REG_QUEUE_DESC_HIGH = 0x084,
	REG_QUEUE_AVAIL_LOW = 0x090,
	REG_QUEUE_AVAIL_HIGH = 0x094,
	REG_QUEUE_USED_LOW = 0x0a0,
	REG_QUEUE_USED_HIGH = 0x0a4,
	REG_SHM_LEN_LOW = 0x0b0,
	REG_SHM_BASE_HIGH = 0x0bc,
	REG_CONFIG_GENERATION = 0x0fc,
	REG_CONFIG = 0x100,
};

#define STATUS_FEATURES_OK	  8
#define STATUS_DRIVER_OK	  4
#define STATUS_DEVICE_NEEDS_RESET 64
#define ISR_QUEUE		  1
#define ISR_CONFIG		  2
#define VENDOR_ID		  0x4d56 /* no registry for MMIO; any value will do */

/* A driver that goes on although its features were refused (§3.1.1) is not served. */
bool virtio_running(const struct virtio_dev *dev)
{
	const uint32_t on = STATUS_FEATURES_OK | STATUS_DRIVER_OK;

	return (dev->status & (on | STATUS_DEVICE_NEEDS_RESET)) == on;
}

static uint32_t *isr(struct virtio_dev *dev)
{
	return (uint32_t *)(void *)(dev->page + REG_INTERRUPT_STATUS);
}

static void publish(struct virtio_dev *dev, uint32_t reg, uint32_t value)
{
	__atomic_store_n((uint32_t *)(void *)(dev->page + reg), value, __ATOMIC_RELEASE);
}

/* Renew the registers that depend on the selectors and on what the driver wrote. */
static void virtio_publish(struct virtio_dev *dev)
{
	const struct virtq *vq =
		dev->queue_sel < dev->ops->n_queues ? &dev->vq[dev->queue_sel] : NULL;
	uint64_t features = dev->features_sel > 1 ? 0 : dev->features >> (32 * dev->features_sel);

	publish(dev, REG_DEVICE_FEATURES, (uint32_t)features);
	publish(dev, REG_QUEUE_NUM_MAX, vq ? VQ_SIZE : 0);
	publish(dev, REG_QUEUE_READY, vq && vq->ready);
	publish(dev, REG_STATUS, dev->status);
}

static void virtio_interrupt(struct virtio_dev *dev, uint32_t cause)
{
	uint64_t one = 1;

	__atomic_fetch_or(isr(dev), cause, __ATOMIC_SEQ_CST);
	if (write(dev->irq_fd, &one, sizeof(one)) < 0)
		return; /* an eventfd at its maximum is an interrupt that is pending anyway */
}

/* Interrupt the driver if it wants to hear of what was pushed; whether it did. */
bool virtio_notify(struct virtio_dev *dev, struct virtq *vq)
{
	bool wanted = virtq_wants_interrupt(vq);

	if (wanted)
		virtio_interrupt(dev, ISR_QUEUE);
	return wanted;
}

/* The loop has slept for a moment. */
void virtio_quiet(struct virtio_dev *dev)
{
	pthread_mutex_lock(&dev->lock);
	dev->ops->quiet(dev);
	pthread_mutex_unlock(&dev->lock);
}

/* The driver broke its rings: stop serving it and say so (§2.1.2). */
void virtio_break(struct virtio_dev *dev)
{
	dev->status |= STATUS_DEVICE_NEEDS_RESET;
	virtio_publish(dev);
	virtio_interrupt(dev, ISR_CONFIG);
}

static void virtio_kicked(struct event *ev, uint32_t events)
{
	struct virtio_queue_event *kick = (struct virtio_queue_event *)ev;
	struct virtio_dev *dev = kick->dev;
	unsigned q = (unsigned)(kick - dev->kick);

	(void)events;
	pthread_mutex_lock(&dev->lock);
	if (virtio_running(dev) && dev->vq[q].ready)
		dev->ops->serve(dev, q);
	pthread_mutex_unlock(&dev->lock);
}

static void virtio_reset(struct virtio_dev *dev)
{
	if (dev->ops->reset)
		dev->ops->reset(dev);
	dev->status = 0;
	dev->driver_features = 0;
	dev->features_sel = dev->driver_features_sel = dev->queue_sel = 0;
	publish(dev, REG_INTERRUPT_STATUS, 0);
	memset(dev->vq, 0, sizeof(dev->vq));
}

static void virtio_set_status(struct virtio_dev *dev, uint32_t value)
{
	bool was_running = virtio_running(dev);

	if (value == 0) {
		virtio_reset(dev);
		return;
	}
	/* §3.1.1: the driver checks whether FEATURES_OK stuck. We need a modern driver. */
	if ((value & STATUS_FEATURES_OK) && ((dev->driver_features & ~dev->features) ||
					     !(dev->driver_features & VIRTIO_F_VERSION_1)))
		value &= ~(uint32_t)STATUS_FEATURES_OK;
	dev->status = (value & 0xff) | (dev->status & STATUS_DEVICE_NEEDS_RESET);
	if (!was_running && virtio_running(dev)) {
		uint64_t one = 1;

		/* A kick may have come before DRIVER_OK: have every queue looked at once. */
		for (unsigned q = 0; q < dev->ops->n_queues; q++)
			if (write(dev->kick[q].ev.fd, &one, sizeof(one)) < 0)
				continue;
	}
}

static void virtio_set_ready(struct virtio_dev *dev, struct virtq *vq, uint32_t value)
{
	vq->ready = false;
	if (!(value & 1))
		return;
	vq->event_idx = dev->driver_features & VIRTIO_F_EVENT_IDX;
	if (virtq_map(dev->vm, vq))
		virtio_break(dev);
	else
		vq->ready = true;
}

static void set_half(uint64_t *address, bool high, uint32_t value)
{
	if (high)
		*address = (*address & 0xffffffffu) | (uint64_t)value << 32;
	else
		*address = (*address & ~0xffffffffull) | value;
}

static void virtio_write(struct virtio_dev *dev, uint32_t reg, uint32_t value)
{
	struct virtq none = {0};
	struct virtq *vq = dev->queue_sel < dev->ops->n_queues ? &dev->vq[dev->queue_sel] : &none;
	bool settable = !vq->ready;

	switch (reg) {
	case REG_DEVICE_FEATURES_SEL:
		dev->features_sel = value;
		break;
	case REG_DRIVER_FEATURES_SEL:
		dev->driver_features_sel = value;
		break;
	case REG_DRIVER_FEATURES:
		if (dev->status & STATUS_FEATURES_OK || dev->driver_features_sel > 1)
			break;
		set_half(&dev->driver_features, dev->driver_features_sel, value);
		break;
	case REG_QUEUE_SEL:
		dev->queue_sel = value;
		break;
	case REG_QUEUE_NUM:
		if (settable)
			vq->num = value <= VQ_SIZE ? (uint16_t)value : 0;
		break;
	case REG_QUEUE_READY:
		if (vq != &none)
			virtio_set_ready(dev, vq, value);
		break;
	case REG_STATUS:
		virtio_set_status(dev, value);
		break;
	case REG_QUEUE_DESC_LOW:
	case REG_QUEUE_DESC_HIGH:
		if (settable)
			set_half(&vq->desc_addr, reg & 4, value);
		break;
	case REG_QUEUE_AVAIL_LOW:
	case REG_QUEUE_AVAIL_HIGH:
		if (settable)
			set_half(&vq->avail_addr, reg & 4, value);
		break;
	case REG_QUEUE_USED_LOW:
	case REG_QUEUE_USED_HIGH:
		if (settable)
			set_half(&vq->used_addr, reg & 4, value);
		break;
	default:
		break;
	}
}

void vm_mmio(struct vm *vm, uint64_t addr, uint8_t *data, uint32_t len, bool write)
{
	uint64_t slot = (addr - MMIO_BASE) / MMIO_STRIDE;
	uint32_t reg = (addr - MMIO_BASE) % MMIO_STRIDE;
	struct virtio_dev *dev;
	uint32_t value;

	if (addr < MMIO_BASE || slot >= vm->n_devices || reg + len > MMIO_STRIDE) {
		if (!write)
			memset(data, 0xff, len);
		return;
	}
	dev = vm->devices[slot];
	if (!write) {
		memcpy(data, dev->page + reg, len);
		return;
	}
	/* §4.2.2.2: 32-bit aligned accesses only. No configuration field of ours is writable. */
	if (len != 4 || reg % 4 || reg >= REG_CONFIG)
		return;
	memcpy(&value, data, 4);
	if (reg == REG_INTERRUPT_ACK) {
		/* Without the lock, which a long request may hold. */
		__atomic_fetch_and(isr(dev), ~value, __ATOMIC_SEQ_CST);
		return;
	}
	pthread_mutex_lock(&dev->lock);
	virtio_write(dev, reg, value);
	virtio_publish(dev);
	pthread_mutex_unlock(&dev->lock);
}

/* Put the device in the next slot; returns the slot. The device is freed with the VM from then. */
int virtio_register(struct vm *vm, struct virtio_dev *dev, const struct virtio_ops *ops,
		    uint64_t features, const void *config, size_t config_len)
{
	if (vm->n_devices == VM_MAX_DEVICES || REG_CONFIG + config_len > MMIO_STRIDE)
		return -ENOSPC;
	dev->vm = vm;
	dev->ops = ops;
	dev->features = features | VIRTIO_COMMON_FEATURES;
	dev->page = vm->registers + vm->n_devices * MMIO_STRIDE;
	publish(dev, REG_MAGIC, 0x74726976);
	publish(dev, REG_VERSION, 2);
	publish(dev, REG_DEVICE_ID, ops->id);
	publish(dev, REG_VENDOR_ID, VENDOR_ID);
	/* §4.2.2: a shared memory region that does not exist has length and base -1. */
	memset(dev->page + REG_SHM_LEN_LOW, 0xff, REG_SHM_BASE_HIGH + 4 - REG_SHM_LEN_LOW);
	memset(dev->page + REG_CONFIG, 0xff, MMIO_STRIDE - REG_CONFIG);
	if (config_len)
		memcpy(dev->page + REG_CONFIG, config, config_len);
	virtio_publish(dev);
	dev->irq_fd = -1;
	pthread_mutex_init(&dev->lock, NULL);
	for (unsigned q = 0; q < VIRTIO_MAX_QUEUES; q++)
		dev->kick[q] = (struct virtio_queue_event){{.fd = -1, .fn = virtio_kicked}, dev};
	vm->devices[vm->n_devices] = dev;
	return (int)vm->n_devices++;
}

int vm_device_queues(struct vm *vm, int slot)
{
	return slot < 0 || (unsigned)slot >= vm->n_devices ? -ENODEV
							   : (int)vm->devices[slot]->ops->n_queues;
}

int vm_wire_device(struct vm *vm, int slot, int irq_fd, const int *kick_fds)
{
	int queues = vm_device_queues(vm, slot);

	if (queues < 0)
		return queues;
	vm->devices[slot]->irq_fd = irq_fd;
	for (int q = 0; q < queues; q++) {
		struct event *ev = &vm->devices[slot]->kick[q].ev;
		int r;

		ev->fd = kick_fds[q];
		/* Each kick is a change, of a counter that nobody need read. */
		r = loop_add(vm, ev, EPOLLIN | EPOLLET);
		if (r)
			return r;
	}
	return 0;
}
