/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-blk (Virtio 1.2 §5.2): a read-only base file with a copy-on-write overlay before it.
 *
 * The overlay is a sparse file with the base's layout and a bitmap of the clusters it holds. A
 * cluster is an ext4 block, so that a guest's write seldom needs the rest of one copied up. The
 * overlay lives as long as the run: a flush therefore has nothing to make durable.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core.h"

#define VIRTIO_ID_BLK 2

#define BLK_F_SEG_MAX	   (1ull << 2)
#define BLK_F_RO	   (1ull << 5)
#define BLK_F_BLK_SIZE	   (1ull << 6)
#define BLK_F_FLUSH	   (1ull << 9)
#define BLK_F_DISCARD	   (1ull << 13)
#define BLK_F_WRITE_ZEROES (1ull << 14)

enum {
	BLK_T_IN = 0,
	BLK_T_OUT = 1,
	BLK_T_FLUSH = 4,
	BLK_T_GET_ID = 8,
	BLK_T_DISCARD = 11,
	BLK_T_WRITE_ZEROES = 13
};
enum { BLK_S_OK = 0, BLK_S_IOERR = 1, BLK_S_UNSUPP = 2 };

#define SECTOR	      512u
#define CLUSTER	      4096u
#define SEG_MAX	      128u /* of data; with header and status it fits VQ_IOV_MAX */
#define ID_LEN	      20u
#define DISCARD_MAX   (1u << 22) /* sectors in one discard or write-zeroes: 2 GiB */
#define DISCARD_ALIGN (CLUSTER / SECTOR)
#define RANGE_UNMAP   1u /* in a write-zeroes: the blocks may be given up */

/* §5.2.4, up to what the features we offer use. */
struct blk_config {
	uint64_t capacity;
	uint32_t size_max, seg_max;
	uint8_t geometry[4];
	uint32_t blk_size;
	uint8_t topology[8], writeback, unused0;
	uint16_t num_queues;
	uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
	uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
	uint8_t write_zeroes_may_unmap, unused1[3];
} __attribute__((packed));

struct blk {
	struct virtio_dev dev;
	struct blk_config config;
	int base_fd, overlay_fd; /* overlay -1: writes go to the base */
	uint64_t size;
	uint8_t *present; /* a bit a cluster: it is in the overlay */
	char id[ID_LEN];
};

struct blk_request {
	uint32_t type, reserved;
	uint64_t sector;
};

struct blk_range {
	uint64_t sector;
	uint32_t sectors, flags;
};

static bool cluster_present(const struct blk *b, uint64_t cluster)
{
	return b->present[cluster / 8] >> (cluster % 8) & 1;
}

/* Transfer all of [at, at+len) between file and memory; a file that ends early reads as zeros. */
static int file_io(int fd, const struct iovec *iov, unsigned n, uint64_t at, size_t len, bool write)
{
	for (size_t done = 0; done < len;) {
		struct iovec part[VQ_IOV_MAX];
		unsigned parts = iov_slice(iov, n, done, len - done, part);
		ssize_t r = write ? pwritev(fd, part, (int)parts, (off_t)(at + done))
				  : preadv(fd, part, (int)parts, (off_t)(at + done));

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0 || (r == 0 && write))
			return -EIO;
		if (r == 0) {
			for (unsigned i = 0; i < parts; i++)
				memset(part[i].iov_base, 0, part[i].iov_len);
			return 0;
		}
		done += (size_t)r;
	}
	return 0;
}

/* Bring a cluster into the overlay, so that a part of it can be written there. */
static int cluster_copy_up(struct blk *b, uint64_t cluster)
{
	uint8_t bytes[CLUSTER];
	uint64_t at = cluster * CLUSTER;
	struct iovec iov = {bytes, MIN(CLUSTER, b->size - at)};

	if (cluster_present(b, cluster))
		return 0;
	if (file_io(b->base_fd, &iov, 1, at, iov.iov_len, false) ||
	    file_io(b->overlay_fd, &iov, 1, at, iov.iov_len, true))
		return -EIO;
	b->present[cluster / 8] |= (uint8_t)(1 << cluster % 8);
	return 0;
}

/* Ready the overlay for a write of [at, at+len): copy up the clusters it covers in part. */
static int overlay_prepare(struct blk *b, uint64_t at, size_t len)
{
	uint64_t end = at + len;

	if (at % CLUSTER && cluster_copy_up(b, at / CLUSTER))
		return -EIO;
	if (end % CLUSTER && end != b->size && cluster_copy_up(b, end / CLUSTER))
		return -EIO;
	return 0;
}

static void overlay_mark(struct blk *b, uint64_t at, size_t len)
{
	for (uint64_t c = at / CLUSTER; c * CLUSTER < at + len; c++)
		b->present[c / 8] |= (uint8_t)(1 << c % 8);
}

static int blk_write(struct blk *b, const struct iovec *iov, unsigned n, uint64_t at, size_t len)
{
	if (b->overlay_fd < 0)
		return file_io(b->base_fd, iov, n, at, len, true);
	if (overlay_prepare(b, at, len) || file_io(b->overlay_fd, iov, n, at, len, true))
		return -EIO;
	overlay_mark(b, at, len);
	return 0;
}

/* Read run by run: neighbouring clusters that come from the same file in one call. */
static int blk_read(struct blk *b, const struct iovec *iov, unsigned n, uint64_t at, size_t len)
{
	if (b->overlay_fd < 0)
		return file_io(b->base_fd, iov, n, at, len, false);
	for (size_t done = 0; done < len;) {
		uint64_t first = (at + done) / CLUSTER, c = first + 1;
		bool over = cluster_present(b, first);
		struct iovec part[VQ_IOV_MAX];
		size_t run;
		unsigned parts;

		while (c * CLUSTER < at + len && cluster_present(b, c) == over)
			c++;
		run = MIN(c * CLUSTER - (at + done), len - done);
		parts = iov_slice(iov, n, done, run, part);
		if (file_io(over ? b->overlay_fd : b->base_fd, part, parts, at + done, run, false))
			return -EIO;
		done += run;
	}
	return 0;
}

static int blk_zero(struct blk *b, uint64_t at, uint64_t len)
{
	int fd = b->overlay_fd < 0 ? b->base_fd : b->overlay_fd;

	if (b->overlay_fd >= 0 && overlay_prepare(b, at, len))
		return -EIO;
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)len) < 0)
		return -EIO;
	if (b->overlay_fd >= 0)
		overlay_mark(b, at, len);
	return 0;
}

static bool blk_inside(const struct blk *b, uint64_t sector, uint64_t len)
{
	return sector <= b->size / SECTOR && len <= b->size - sector * SECTOR;
}

/* DISCARD and WRITE_ZEROES (§5.2.6): both leave zeros, which is more than a discard promises. */
static int blk_discard(struct blk *b, const struct chain *c, size_t out_len, uint32_t known_flags)
{
	struct blk_range range;
	struct iovec iov[VQ_IOV_MAX];
	unsigned n = iov_slice(c->iov, c->n_out, sizeof(struct blk_request), sizeof(range), iov);

	if (out_len != sizeof(range))
		return BLK_S_IOERR;
	iov_copy_out(iov, n, &range, sizeof(range));
	if (range.sectors > DISCARD_MAX || range.flags & ~known_flags)
		return BLK_S_UNSUPP;
	if (!blk_inside(b, range.sector, (uint64_t)range.sectors * SECTOR))
		return BLK_S_IOERR;
	if (range.sectors == 0)
		return BLK_S_OK;
	return blk_zero(b, range.sector * SECTOR, (uint64_t)range.sectors * SECTOR) ? BLK_S_IOERR
										    : BLK_S_OK;
}

/* Do one request; *written = bytes put into the guest's memory, without the status byte. */
static int blk_request(struct blk *b, const struct chain *c, uint32_t *written)
{
	const struct iovec *in = c->iov + c->n_out;
	size_t in_len = iov_size(in, c->n_in) - 1; /* the status byte comes last */
	size_t out_len = iov_size(c->iov, c->n_out);
	struct blk_request req;
	struct iovec data[VQ_IOV_MAX];
	unsigned n;

	*written = 0;
	if (iov_copy_out(c->iov, c->n_out, &req, sizeof(req)) != sizeof(req))
		return BLK_S_IOERR;
	out_len -= sizeof(req);
	switch (req.type) {
	case BLK_T_IN:
		if (in_len % SECTOR || !blk_inside(b, req.sector, in_len))
			return BLK_S_IOERR;
		n = iov_slice(in, c->n_in, 0, in_len, data);
		if (blk_read(b, data, n, req.sector * SECTOR, in_len))
			return BLK_S_IOERR;
		*written = (uint32_t)in_len;
		return BLK_S_OK;
	case BLK_T_OUT:
		if (b->dev.features & BLK_F_RO || out_len % SECTOR ||
		    !blk_inside(b, req.sector, out_len))
			return BLK_S_IOERR;
		n = iov_slice(c->iov, c->n_out, sizeof(req), out_len, data);
		return blk_write(b, data, n, req.sector * SECTOR, out_len) ? BLK_S_IOERR : BLK_S_OK;
	case BLK_T_FLUSH:
		if (b->overlay_fd < 0 && !(b->dev.features & BLK_F_RO) && fdatasync(b->base_fd) < 0)
			return BLK_S_IOERR;
		return BLK_S_OK;
	case BLK_T_GET_ID:
		*written = (uint32_t)iov_copy_in(in, c->n_in, b->id, MIN(in_len, ID_LEN));
		return BLK_S_OK;
	case BLK_T_DISCARD:
	case BLK_T_WRITE_ZEROES:
		if (b->dev.features & BLK_F_RO)
			return BLK_S_IOERR;
		return blk_discard(b, c, out_len, req.type == BLK_T_DISCARD ? 0 : RANGE_UNMAP);
	default:
		return BLK_S_UNSUPP;
	}
}

static void blk_serve(struct virtio_dev *dev, unsigned q)
{
	struct blk *b = (struct blk *)dev;
	struct virtq *vq = &dev->vq[q];
	struct chain c;
	int r;

	do {
		while ((r = virtq_pop(dev->vm, vq, &c)) > 0) {
			const struct iovec *last = &c.iov[c.n_out + c.n_in - 1];
			uint32_t written;

			if (c.n_in == 0 || last->iov_len == 0) {
				r = -EINVAL; /* no room for a status */
				break;
			}
			((uint8_t *)last->iov_base)[last->iov_len - 1] =
				(uint8_t)blk_request(b, &c, &written);
			virtq_push(vq, c.head, written + 1);
			virtio_notify(dev, vq);
		}
	} while (r == 0 && virtq_rearm(vq, 0));
	if (r < 0)
		virtio_break(dev);
}

static void blk_free(struct virtio_dev *dev)
{
	struct blk *b = (struct blk *)dev;

	free(b->present);
	free(b);
}

static const struct virtio_ops blk_ops = {
	.id = VIRTIO_ID_BLK,
	.n_queues = 1,
	.serve = blk_serve,
	.free = blk_free,
};

int vm_add_blk(struct vm *vm, int base_fd, int overlay_fd, uint64_t size, bool read_only,
	       const char *serial)
{
	uint64_t features = BLK_F_SEG_MAX | BLK_F_BLK_SIZE;
	struct blk *b;
	int slot;

	if (size == 0 || size % SECTOR || size > INT64_MAX)
		return -EINVAL;
	b = calloc(1, sizeof(*b));
	if (!b)
		return -ENOMEM;
	b->base_fd = base_fd;
	b->overlay_fd = overlay_fd;
	b->size = size;
	b->present = calloc((size / CLUSTER + 8) / 8, 1);
	if (!b->present) {
		free(b);
		return -ENOMEM;
	}
	memcpy(b->id, serial, strnlen(serial, ID_LEN));
	b->config = (struct blk_config){
		.capacity = size / SECTOR,
		.seg_max = SEG_MAX,
		.blk_size = SECTOR,
		.num_queues = 1,
		.max_discard_sectors = DISCARD_MAX,
		.max_discard_seg = 1,
		.discard_sector_alignment = DISCARD_ALIGN,
		.max_write_zeroes_sectors = DISCARD_MAX,
		.max_write_zeroes_seg = 1,
		.write_zeroes_may_unmap = 1,
	};
	features |= read_only ? BLK_F_RO : BLK_F_FLUSH | BLK_F_DISCARD | BLK_F_WRITE_ZEROES;
	slot = virtio_register(vm, &b->dev, &blk_ops, features, &b->config, sizeof(b->config));
	if (slot < 0)
		blk_free(&b->dev);
	return slot;
}
