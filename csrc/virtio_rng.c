/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-rng (Virtio 1.2 §5.4): the host's random numbers.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "core.h"

#define VIRTIO_ID_RNG 4
#define RNG_CHUNK     256 /* one getrandom() of up to this many bytes is never short or interrupted */

static void rng_serve(struct virtio_dev *dev, unsigned q)
{
	struct virtq *vq = &dev->vq[q];
	struct chain c;
	int r;

	do {
		while ((r = virtq_pop(dev->vm, vq, &c)) > 0) {
			uint8_t bytes[RNG_CHUNK];
			size_t want = MIN(iov_size(c.iov + c.n_out, c.n_in), sizeof(bytes));
			ssize_t got = getrandom(bytes, want, 0);

			if (got < 0)
				got = 0;
			iov_copy_in(c.iov + c.n_out, c.n_in, bytes, (size_t)got);
			virtq_push(vq, c.head, (uint32_t)got);
		}
	} while (r == 0 && virtq_rearm(vq, 0));
	if (r < 0)
		virtio_break(dev);
	else
		virtio_notify(dev, vq);
}

static void rng_free(struct virtio_dev *dev)
{
	free(dev);
}

static const struct virtio_ops rng_ops = {
	.id = VIRTIO_ID_RNG,
	.n_queues = 1,
	.serve = rng_serve,
	.free = rng_free,
};

int vm_add_rng(struct vm *vm)
{
	struct virtio_dev *dev = calloc(1, sizeof(*dev));
	int slot;

	if (!dev)
		return -ENOMEM;
	slot = virtio_register(vm, dev, &rng_ops, 0, NULL, 0);
	if (slot < 0)
		free(dev);
	return slot;
}
