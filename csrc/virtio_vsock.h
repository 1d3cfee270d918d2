/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-vsock (Virtio 1.2 §5.10): what the device (virtio_vsock.c: queues, packets, ports) and its
 * connections (vsock_conn.c: credit, held data, the host's socket) know of each other. All of it
 * runs with the device's lock held.
 */
#ifndef PYVMM_VIRTIO_VSOCK_H
#define PYVMM_VIRTIO_VSOCK_H

#include "core.h"

#define HOST_CID    2
#define TYPE_STREAM 1

enum {
	OP_REQUEST = 1,
	OP_RESPONSE = 2,
	OP_RST = 3,
	OP_SHUTDOWN = 4,
	OP_RW = 5,
	OP_CREDIT_UPDATE = 6,
	OP_CREDIT_REQUEST = 7,
};
#define SHUTDOWN_RCV  1u
#define SHUTDOWN_SEND 2u

#define BUF_ALLOC  (1u << 20) /* what a guest may send ahead of the host's reader, a connection */
#define MAX_PORTS  16
#define MAX_RESETS 64

/* §5.10.6, struct virtio_vsock_hdr */
struct vsock_hdr {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port, len;
	uint16_t type, op;
	uint32_t flags, buf_alloc, fwd_cnt;
} __attribute__((packed));

_Static_assert(sizeof(struct vsock_hdr) == 44, "the header has 44 bytes on the wire");

struct vsock;

struct conn {
	struct event ev; /* first: the loop hands it back */
	struct vsock *vsock;
	uint32_t host_port, guest_port;
	bool offered, linked; /* waits for the guest's REQUEST; is a connection the guest knows */
	/* host -> guest */
	struct conn *next; /* in the ready line */
	bool in_line, respond, send_credit, send_request, readable, host_eof;
	uint32_t peer_alloc, peer_fwd, sent;
	/* guest -> host */
	uint8_t *held;
	uint32_t held_at, held_len; /* ring of BUF_ALLOC bytes */
	uint32_t received, forwarded, forwarded_told;
	uint32_t guest_shutdown; /* SHUTDOWN_* flags */
};

struct vsock {
	struct virtio_dev dev;
	uint64_t guest_cid;
	struct conn conns[MAX_PORTS];
	struct conn *ready_first, *ready_last;
	struct {
		uint32_t host_port, guest_port;
	} resets[MAX_RESETS];
	unsigned n_resets;
	bool tx_waits; /* until there is room for the resets that its packets may need */
};

/* ---- virtio_vsock.c ---- */

void vsock_line_up(struct conn *c);
void vsock_leave_line(struct conn *c);
void vsock_reset_peer(struct vsock *v, uint32_t host_port, uint32_t guest_port);
void vsock_run(struct vsock *v);

/* ---- vsock_conn.c ---- */

void conn_offer(struct conn *c, uint32_t port, int fd);
void conn_link(struct conn *c, const struct vsock_hdr *hdr);
void conn_free(struct conn *c);
void conn_packet(struct conn *c, const struct vsock_hdr *hdr, struct iovec *iov, unsigned n);
bool conn_next(struct conn *c, struct chain *ch, struct vsock_hdr *hdr);
bool conn_has_more(const struct conn *c);
void conn_watch(struct conn *c);

#endif
