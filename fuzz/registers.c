/* SPDX-License-Identifier: Apache-2.0 */
/* The registers of all devices at once (Virtio 1.2 §4.2.2), written in any order and width. */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "harness.h"
#include "machine.h"

#define DISK (64u << 10)

const char *const goal = "that start a device";

void target_begin(void)
{
	int base = keep_fd(memfd_create("disk", 0)), overlay = keep_fd(memfd_create("disk", 0));

	check(!ftruncate(base, DISK) && !ftruncate(overlay, DISK), "ftruncate");
	wire(vm_add_blk(vm, base, overlay, DISK, false, "fuzz"));
	wire(vm_add_rng(vm));
	wire(vm_add_vsock(vm, 3, 1 << 20));
	hostile = true;
}

/* An access of any width anywhere; what is read is what a page of the device's says. */
static void access_any(bool write)
{
	uint64_t address = MMIO_BASE + in16();
	uint8_t data[8], page[8];
	uint32_t len = 1 + below(8), reg = (uint32_t)(address - MMIO_BASE);

	if (below(16) == 0)
		address = any_number();
	memset(data, 0x5a, sizeof(data));
	if (write)
		for (unsigned i = 0; i < len; i++)
			data[i] = in8();
	in_device = true;
	vm_mmio(vm, address, data, len, write);
	in_device = false;
	if (write || address != MMIO_BASE + reg)
		return;
	memset(page, 0xff, sizeof(page));
	if (reg < 3 * MMIO_STRIDE && reg % MMIO_STRIDE + len <= MMIO_STRIDE)
		memcpy(page, (uint8_t *)vm_registers(vm) + reg, len);
	check(!memcmp(data, page, len), "another value than the register's page has");
}

/* What holds whatever was written. */
static void check_registers(unsigned slot)
{
	static const uint32_t ids[] = {2, 4, 19}, queues[] = {1, 1, 3};
	struct virtio_dev *dev = vm->devices[slot];
	uint32_t selected = dev->queue_sel;

	check(reg_read(slot, 0) == 0x74726976 && reg_read(slot, 4) == 2, "magic and version");
	check(reg_read(slot, 8) == ids[slot], "another device");
	check(reg_read(slot, REG_QUEUE_NUM_MAX) == (selected < queues[slot] ? VQ_SIZE : 0),
	      "a queue that is none");
	check(reg_read(slot, REG_STATUS) == dev->status && dev->status <= 0xff, "the status");
	for (unsigned q = 0; q < queues[slot]; q++) {
		const struct virtq *vq = &dev->vq[q];

		check(!vq->ready || (vq->num && vq->num <= VQ_SIZE && !(vq->num & (vq->num - 1))),
		      "a queue of no size");
	}
	if (dev->status & FEATURES_OK)
		goal_met |= virtio_running(dev);
}

void target_op(uint8_t op)
{
	static const uint16_t regs[] = {REG_DEVICE_FEATURES_SEL,
					REG_DRIVER_FEATURES_SEL,
					REG_DRIVER_FEATURES,
					REG_QUEUE_SEL,
					REG_QUEUE_NUM,
					REG_QUEUE_READY,
					REG_INTERRUPT_ACK,
					REG_STATUS,
					REG_QUEUE_DESC,
					REG_QUEUE_DESC + 4,
					REG_QUEUE_AVAIL,
					REG_QUEUE_AVAIL + 4,
					REG_QUEUE_USED,
					REG_QUEUE_USED + 4,
					0x50,
					REG_CONFIG};
	static const uint8_t out[64];
	unsigned slot = below(3), q = slot == 2 ? below(3) : 0;
	uint32_t out_len, in_len;
	uint64_t value;

	switch (op % 12) {
	case 0:
		access_any(false);
		break;
	case 1:
		access_any(true);
		break;
	case 2:
		settle();
		break;
	case 3:
		value = any_number() | VIRTIO_F_VERSION_1;
		start(slot, value, 1u << below(9));
		break;
	case 4:
		out_len = in8() % sizeof(out);
		in_len = in8();
		give(slot, q, out, out_len, in_len, in8());
		break;
	case 5:
		kick(slot, q);
		break;
	case 6:
		collect(slot, NULL);
		break;
	case 7:
	case 8:
		hostile_op();
		break;
	default: /* a register there is */
		value = any_number();
		reg_write(slot, regs[below(16)], (uint32_t)value);
	}
	check_registers(slot);
}

void target_end(void)
{
	settle();
}
