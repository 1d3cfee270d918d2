/* SPDX-License-Identifier: Apache-2.0
 *
 * virtio-vsock (Virtio 1.2 §5.10): what its parts know of each other. virtio_vsock.c has the device
 * and what the guest sends, vsock_rx.c what it is sent, vsock_table.c the connections' slots,
 * vsock_conn.c a connection's life, vsock_data.c and vsock_seqpacket.c its bytes, vsock_switch.c
 * what the caller asks for and is asked. All of it runs with the device's lock held.
 */
#ifndef PYVMM_VIRTIO_VSOCK_H
#define PYVMM_VIRTIO_VSOCK_H

#include "core.h"

#define HOST_CID 2
#define PORT_ANY 0xffffffffu /* nobody's port: the guest's one of what is on offer */

enum { TYPE_STREAM = 1, TYPE_SEQPACKET = 2 };
#define VIRTIO_VSOCK_F_STREAM	 1u
#define VIRTIO_VSOCK_F_SEQPACKET 2u
#define SEQ_EOM			 1u /* in a header's flags: the message's last packet */

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

enum { QUEUE_RX = 0, QUEUE_TX = 1, QUEUE_EVENT = 2 };

/* What a guest may send ahead of the host's reader: much on a few connections, little on each of
 * very many, so that what it can make us hold is bounded (footprint.py). */
#define MAX_CONNS    VM_VSOCK_CONNS
#define LARGE_CONNS  VM_VSOCK_LARGE
#define SMALL_BUFFER VM_VSOCK_SMALL_BUFFER
#define MAX_BUFFER   VM_VSOCK_MAX_BUFFER

#define MAX_RESETS    64
#define MAX_LISTENERS 1024
#define HASH_BITS     12
#define GATHER_IOV    1024 /* UIO_MAXIOV: more no call takes */
#define GATHER_BYTES  (1u << 18)
#define SCATTER_MAX   VQ_SIZE
#define MAX_PACKET    (1u << 16) /* VIRTIO_VSOCK_MAX_PKT_BUF_SIZE of Linux */

/* §5.10.6, struct virtio_vsock_hdr */
struct vsock_hdr {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port, len;
	uint16_t type, op;
	uint32_t flags, buf_alloc, fwd_cnt;
} __attribute__((packed));

_Static_assert(sizeof(struct vsock_hdr) == 44, "the header has 44 bytes on the wire");

struct vsock;

enum conn_state {
	CONN_FREE = 0,
	CONN_OFFERED, /* waits for the guest's REQUEST: vm_offer_port() */
	CONN_ASKED,   /* the guest's REQUEST waits for the caller's word; there is no socket yet */
	CONN_REQUESTED, /* our REQUEST waits for the guest's word */
	CONN_LINKED,
	CONN_CLOSING,  /* the guest is yet to get its RST; there is no socket any more */
	CONN_DRAINING, /* the guest knows it no more; what it sent still goes to the host */
};

/* What a connection has to say to the guest beside data; the first goes first. */
enum {
	SAY_RST = 1,
	SAY_REQUEST = 2,
	SAY_RESPONSE = 4,
	SAY_SHUTDOWN = 8,
	SAY_CREDIT_UPDATE = 16,
	SAY_CREDIT_REQUEST = 32,
};

/* All zeros, but for its generation, is a free one that was never used. */
struct conn {
	struct event ev; /* first: the loop hands it back */
	struct vsock *vsock;
	struct conn *next, *previous; /* in the ready line; next: among the free ones, too */
	struct conn *next_hash;	      /* with the same hash */
	enum conn_state state;
	uint16_t type;
	uint32_t host_port, guest_port, generation;
	bool in_line, named, quiet;
	/* host -> guest */
	unsigned say;	  /* SAY_* */
	bool readable;	  /* there may be something to read */
	bool half_closed; /* an end of file is to be read, then */
	bool hung_up, told_gone, host_eof;
	uint32_t peer_alloc, peer_fwd, sent;
	uint32_t next_len; /* of the message that waits for that much credit */
	/* guest -> host */
	uint32_t size;		    /* of the buffer */
	uint32_t window;	    /* what the guest may use of it: our buf_alloc */
	uint32_t partial;	    /* of a message whose end has not come, at the buffer's end */
	uint32_t held_at, held_len; /* in the buffer, a ring */
	bool held_any;		    /* memory of it has been touched */
	uint32_t received, forwarded, forwarded_told;
	uint32_t guest_shutdown, passed_shutdown; /* SHUTDOWN_* flags */
};

/* RW packets of one connection that came one after the other: sent to the host by one call. */
struct vsock_gather {
	struct conn *conn; /* NULL: nothing */
	unsigned n;
	uint32_t len;
	struct iovec iov[GATHER_IOV];
};

/* Receive buffers that are filled by one call. */
struct vsock_scatter {
	unsigned n, n_iov;
	uint32_t len;
	bool full; /* no other buffer can be joined to these */
	struct {
		uint8_t *hdr;
		uint32_t room; /* behind it */
		uint16_t head;
	} buffers[SCATTER_MAX];
	struct iovec iov[SCATTER_MAX + VQ_IOV_MAX];
};

struct vsock {
	struct virtio_dev dev;
	uint64_t guest_cid;
	/* vsock_table.c */
	struct conn *conns; /* MAX_CONNS */
	uint8_t *buffers;
	uint32_t large_buffer;	/* the size of the large ones */
	uint32_t fresh[2];	/* slots never used so far, large and small */
	struct conn *unused[2]; /* those used before */
	struct conn *hash[1u << HASH_BITS];
	uint64_t hash_key;
	/* virtio_vsock.c */
	struct conn *ready_first, *ready_last;
	struct {
		uint32_t host_port, guest_port;
		uint16_t type;
	} resets[MAX_RESETS];
	unsigned n_resets;
	uint32_t streamed; /* bytes by the guest since it was sent any; fewer if it falls silent */
	uint16_t put_off;  /* how many packets may come before TX's next kick */
	struct vsock_gather gather;
	struct vsock_scatter scatter;
	bool rx_short;	  /* RX had room for some of what there is, and none is left */
	bool tx_waits;	  /* until there is room for the resets that its packets may need */
	bool event_waits; /* TRANSPORT_RESET, for a buffer */
	bool starved;	  /* a connection has data and no credit, and has not asked for any */
	/* vsock_switch.c */
	struct event channel;
	uint32_t next_port, listeners[MAX_LISTENERS];
	unsigned n_listeners;
};

/* ---- virtio_vsock.c ---- */

bool vsock_may_serve(const struct vsock *v, unsigned q);
void vsock_gather(struct conn *c, const struct iovec *iov, unsigned n, uint32_t len);
void vsock_flush(struct conn *c);
void vsock_run(struct vsock *v);
void vsock_transport_reset(struct vsock *v);
struct vsock *vsock_in(struct vm *vm, int slot); /* NULL: there is another device, or none */

/* ---- vsock_rx.c ---- */

void vsock_line_up(struct conn *c);
void vsock_leave_line(struct conn *c);
void vsock_serve_rx(struct vsock *v);

/* ---- vsock_table.c ---- */

int table_init(struct vsock *v, uint32_t buffer);
void table_free(struct vsock *v);
struct conn *table_new(struct vsock *v);
void table_release(struct conn *c);
struct conn *table_used(struct vsock *v, struct conn *after);
struct conn *table_find(struct vsock *v, uint32_t host_port, uint32_t guest_port);
struct conn *table_at(struct vsock *v, uint32_t id);
uint32_t table_id(const struct conn *c);
void table_name(struct conn *c, uint32_t host_port, uint32_t guest_port);
void table_unname(struct conn *c);
uint8_t *table_buffer(const struct conn *c);

/* ---- vsock_conn.c ---- */

int conn_attach(struct conn *c, int fd);
void conn_set_type(struct conn *c, uint16_t type);
void conn_asked(struct conn *c, const struct vsock_hdr *hdr);
void conn_accept(struct conn *c);
void conn_free(struct conn *c);
void conn_reset(struct conn *c);
void conn_say(struct conn *c, unsigned what);
void conn_watch(struct conn *c);
void conn_packet(struct conn *c, const struct vsock_hdr *hdr, struct iovec *iov, unsigned n);
struct vsock_hdr conn_header(struct conn *c, uint16_t op);
bool conn_next(struct conn *c, struct vsock_hdr *hdr);
bool conn_has_more(const struct conn *c);

/* ---- vsock_data.c ---- */

bool conn_pending(const struct conn *c);
void conn_forwarded(struct conn *c, uint32_t n);
bool conn_flush(struct conn *c);
void conn_take(struct conn *c, struct iovec *iov, unsigned n, uint32_t len);
bool conn_may_send(const struct conn *c);
uint32_t conn_wants(struct conn *c);
uint32_t conn_fill(struct conn *c, struct iovec *iov, unsigned n, uint32_t len);
void conn_ask_credit(struct conn *c);

/* ---- vsock_seqpacket.c ---- */

uint32_t seqpacket_window(const struct conn *c);
bool seqpacket_flush(struct conn *c);
bool seqpacket_take(struct conn *c, struct iovec *iov, unsigned n, const struct vsock_hdr *hdr);
ssize_t seqpacket_next(const struct conn *c);

/* ---- vsock_switch.c ---- */

bool switch_ask(struct vsock *v, struct conn *c);
bool switch_listens(const struct vsock *v, uint32_t port);

#endif
