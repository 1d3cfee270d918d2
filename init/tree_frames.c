/* Frames of a tree, as many to a system call as the buffer holds. */
#include "tree.h"

#define OUT_SIZE (4 * FRAME_MAX)
#define IN_SIZE	 (4 * (sizeof(struct frame) + FRAME_MAX))

static uint8_t out[OUT_SIZE], in[IN_SIZE];
static size_t out_len, in_head, in_tail;

void tree_out_flush(void)
{
	for (size_t done = 0; done < out_len;) {
		long n = sys_sendto(proto_fd, out + done, out_len - done, MSG_NOSIGNAL, NULL, 0);

		if (n < 0)
			proto_broken(errno_text(n));
		done += n;
	}
	out_len = 0;
}

/* Where a payload of up to `length` bytes can be put, for tree_out() then. */
void *tree_out_room(uint32_t length)
{
	if (OUT_SIZE - out_len < sizeof(struct frame) + length)
		tree_out_flush();
	return out + out_len + sizeof(struct frame);
}

void tree_out(uint16_t type, uint32_t length)
{
	const struct frame head = {length, type, 0};

	memcpy(out + out_len, &head, sizeof(head));
	out_len += sizeof(head) + length;
}

static void in_need(size_t length)
{
	if (IN_SIZE - in_head < length) {
		memmove(in, in + in_head, in_tail - in_head);
		in_tail -= in_head;
		in_head = 0;
	}
	while (in_tail - in_head < length) {
		long n = sys_read(proto_fd, in + in_tail, IN_SIZE - in_tail);

		if (n <= 0)
			proto_broken(n ? errno_text(n) : "closed by the host");
		in_tail += n;
	}
}

/* The next frame's payload. It is there until the next call. */
uint8_t *tree_in(struct frame *head)
{
	uint8_t *payload;

	if (in_head == in_tail)
		in_head = in_tail = 0;
	in_need(sizeof(*head));
	memcpy(head, in + in_head, sizeof(*head));
	if (head->length > FRAME_MAX)
		proto_broken("a frame is too long");
	in_need(sizeof(*head) + head->length);
	payload = in + in_head + sizeof(*head);
	in_head += sizeof(*head) + head->length;
	return payload;
}
