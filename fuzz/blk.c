/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-blk: requests, in the order in which they are used, against a disk that is an array. The
 * base file must stay as it is where there is an overlay.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "harness.h"
#include "machine.h"

#define SECTOR	 512u
#define CLUSTER	 4096u
#define MODEL	 (20 * CLUSTER) /* bytes of the disk that are in the array */
#define DATA_MAX (64u << 10)
#define HEADER	 16u

enum { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, WRITE_ZEROES = 13 };
enum { OK = 0, IOERR = 1, UNSUPP = 2 };

static const uint64_t sizes[] = {SECTOR, 7 * SECTOR, CLUSTER, 16 * CLUSTER + 5 * SECTOR,
				 (4ull << 30) + 3 * SECTOR};
const char *const goal = "that write";

static uint64_t size, base_size;
static bool read_only, has_overlay, may_be_hostile;
static uint8_t base[MODEL], disk[MODEL];
static int base_fd;

static int file_of(uint64_t bytes)
{
	int fd = keep_fd(memfd_create("disk", MFD_ALLOW_SEALING));

	check(!ftruncate(fd, (off_t)bytes), "ftruncate");
	return fd;
}

void target_begin(void)
{
	uint8_t options = in8();
	int overlay = -1, slot;

	size = sizes[below(sizeof(sizes) / sizeof(*sizes))];
	read_only = options & 1;
	has_overlay = options & 2;
	may_be_hostile = options & 4;
	base_size = options & 8 ? size / 2 : size; /* a file that ends early reads as zeros */
	base_fd = file_of(base_size);
	if (has_overlay)
		overlay = file_of(size);
	if (has_overlay && options & 16) { /* that cannot be written */
		check(!fcntl(overlay, F_ADD_SEALS, F_SEAL_WRITE), "F_SEAL_WRITE");
		hostile = true;
	}
	memset(base, 0, sizeof(base));
	for (uint64_t i = 0; i < MIN(base_size, MODEL); i++)
		base[i] = (uint8_t)(1 + i % 251);
	check(pwrite(base_fd, base, MIN(base_size, MODEL), 0) >= 0, "pwrite");
	memcpy(disk, base, sizeof(disk));
	slot = vm_add_blk(vm, base_fd, overlay, size, read_only, "fuzz");
	wire(slot);
	start_any(0);
}

static void request(void)
{
	static const uint32_t kinds[] = {IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, OUT};
	static uint8_t out[HEADER + DATA_MAX];
	unsigned choice = below(8);
	uint32_t type = choice < 7 ? kinds[choice] : in32(), len = in8() * SECTOR;
	uint64_t sector = below(4) ? in8() : any_number();
	uint32_t out_len = HEADER, in_len = 1;
	uint8_t shape = in8(), fill = in8();

	if (fill % 16 == 0)
		len = in16();
	len = MIN(len, DATA_MAX);
	memcpy(out, &type, 4);
	memset(out + 4, 0, 4);
	memcpy(out + 8, &sector, 8);
	if (type == OUT) {
		memset(out + HEADER, fill, len);
		out_len += len;
	} else if (type == DISCARD || type == WRITE_ZEROES) {
		uint32_t range[2] = {below(4) ? in8() : (uint32_t)any_number(), fill % 4};

		memcpy(out + HEADER, &sector, 8);
		memcpy(out + HEADER + 8, range, 8);
		out_len += 16;
	} else {
		in_len += len;
	}
	if (fill % 32 == 1)
		out_len = in8() % (out_len + 1);
	give(0, 0, out, out_len, in_len, shape);
}

static bool inside(uint64_t sector, uint64_t len)
{
	return sector <= size / SECTOR && len <= size - sector * SECTOR;
}

/* Zero, or with `from` write, what of [at, at+len) is in the array. */
static void change(uint64_t at, uint64_t len, const uint8_t *from)
{
	if (at >= MODEL)
		return;
	len = MIN(len, MODEL - at);
	if (from)
		memcpy(disk + at, from, len);
	else
		memset(disk + at, 0, len);
	goal_met = true;
}

static uint8_t zero(const uint8_t *out, uint32_t len, uint32_t known)
{
	uint64_t sector;
	uint32_t range[2];

	if (len != 16)
		return IOERR;
	memcpy(&sector, out, 8);
	memcpy(range, out + 8, 8);
	if (range[0] > 1u << 22 || range[1] & ~known)
		return UNSUPP;
	if (!inside(sector, (uint64_t)range[0] * SECTOR))
		return IOERR;
	change(sector * SECTOR, (uint64_t)range[0] * SECTOR, NULL);
	return OK;
}

/* What the request must have given: its status; *data: the bytes read, in `disk`. */
static uint8_t expect(const struct given *g, const uint8_t **data, uint32_t *read)
{
	static const uint8_t id[20] = "fuzz";
	uint32_t type, len = g->out_len - HEADER, room = g->in_len - 1;
	uint64_t sector;

	*read = 0;
	*data = NULL;
	if (g->out_len < HEADER)
		return IOERR;
	memcpy(&type, g->out, 4);
	memcpy(&sector, g->out + 8, 8);
	switch (type) {
	case IN:
		if (room % SECTOR || !inside(sector, room))
			return IOERR;
		*read = room;
		if (sector * SECTOR + room <= MODEL)
			*data = disk + sector * SECTOR;
		return OK;
	case OUT:
		if (read_only || len % SECTOR || !inside(sector, len))
			return IOERR;
		change(sector * SECTOR, len, g->out + HEADER);
		return OK;
	case FLUSH:
		return OK;
	case GET_ID:
		*read = MIN(room, (uint32_t)sizeof(id));
		*data = id;
		return OK;
	case DISCARD:
	case WRITE_ZEROES:
		return read_only ? IOERR : zero(g->out + HEADER, len, type == DISCARD ? 0 : 1);
	default:
		return UNSUPP;
	}
}

static void took(unsigned q, struct given *g, uint32_t len)
{
	const uint8_t *data;
	uint32_t read;
	uint8_t status;

	(void)q;
	if (hostile)
		return;
	status = expect(g, &data, &read);
	check(g->in[g->in_len - 1] == status, "another status");
	check(len == read + 1, "another length");
	check(!data || !memcmp(g->in, data, read), "other data");
}

void target_op(uint8_t op)
{
	switch (op % 16) {
	case 0:
	case 1:
		settle();
		break;
	case 2:
		collect(0, took);
		break;
	case 3:
		devices[0].queue[0].wants_interrupts = in8() & 1;
		break;
	case 4: /* what was done is so, what was not will not be */
		if (in8() % 8)
			break;
		collect(0, took);
		start_any(0);
		break;
	case 5:
	case 6:
		if (may_be_hostile)
			hostile_op();
		break;
	case 7:
	case 8:
		kick(0, 0);
		break;
	default:
		request();
	}
}

void target_end(void)
{
	static uint8_t now[MODEL];
	struct queue *vq = &devices[0].queue[0];

	kick(0, 0);
	settle();
	collect(0, took);
	for (unsigned i = 0; i < vq->num; i++)
		check(hostile || !vq->given[i].busy, "a request is left");
	if (!has_overlay && !read_only)
		return;
	memset(now, 0, sizeof(now));
	check(pread(base_fd, now, sizeof(now), 0) >= 0, "pread");
	check(!memcmp(now, base, sizeof(base)), "the base changed");
}
