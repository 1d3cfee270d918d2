/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connections that an input of vsock.c makes, seen from both of their ends: vsock_guest.c is
 * the driver's, as Linux's behaves, vsock_host.c the caller's, with its sockets and the switch
 * channel.
 */
#ifndef FUZZ_VSOCK_FLOWS_H
#define FUZZ_VSOCK_FLOWS_H

#include "machine.h"
#include "virtio_vsock.h"

#define FLOWS	     24
#define GUEST_CID    3u
#define F_SEQPACKET  2u
#define PERIOD	     4099u
#define CHUNK	     (64u << 10)
#define MESSAGES_MAX 512
#define HEADER	     44u
#define BOTH	     (SHUTDOWN_RCV | SHUTDOWN_SEND)

enum { STREAM = 1, SEQPACKET = 2 };
enum { EOM = 1, EOR = 2 };

enum guest_state {
	GUEST_NONE,   /* knows nothing of it: offered, or its REQUEST has not come */
	GUEST_ASKING, /* sent REQUEST */
	GUEST_ASKED,  /* got REQUEST */
	GUEST_LINKED,
	GUEST_OVER,
};

/* One direction's messages, of a SEQPACKET connection: where they end. */
struct messages {
	uint64_t ends[MESSAGES_MAX];
	unsigned first, last;
};

struct flow {
	bool used, seqpacket;
	bool vague; /* a reset came in between: nothing is promised */
	uint8_t seed;
	uint32_t host_port, guest_port;
	/* the guest's end */
	enum guest_state guest;
	uint64_t tx, rx;    /* bytes sent and received */
	uint64_t message;   /* where the one begins that it sends */
	uint32_t fwd, told; /* of those received: read; and said so */
	uint32_t alloc, peer_alloc, peer_fwd;
	uint32_t shut, peer_shut; /* SHUTDOWN_* sent and received */
	struct messages to_host, to_guest;
	/* the host's end */
	int fd; /* -1: none, or closed */
	bool had_fd, wants_ok, host_shut_read, host_shut_write, host_eof;
	uint64_t host_tx, host_rx;
};

extern struct flow flows[FLOWS];
extern bool seqpacket_offered;
extern uint64_t progress; /* counts what happens */

struct flow *flow_new(void);
struct flow *flow_pick(uint8_t which);
const uint8_t *flow_bytes(const struct flow *f, bool to_host, uint64_t at);
void flows_forget(bool all);
bool message_put(struct messages *m, uint64_t end);

/* ---- vsock_guest.c ---- */

void guest_begin(void);
bool guest_packet(struct flow *f, uint16_t op, uint32_t flags, uint32_t len, uint8_t shape);
void guest_request(uint8_t which);
void guest_send(struct flow *f, uint32_t len, bool ends, uint8_t shape);
void guest_read(struct flow *f, uint32_t len, bool tell);
void guest_grow(struct flow *f, uint32_t alloc);
void guest_control(struct flow *f, uint8_t what);
void guest_post(unsigned q, unsigned count, uint32_t size, uint8_t shape);
void guest_lie(struct flow *f);
void guest_took(unsigned q, struct given *g, uint32_t len);
extern unsigned events_seen;
extern bool odd_buffers; /* in pieces, so that a ring may be full of few */

/* ---- vsock_host.c ---- */

void host_begin(bool narrow);
void host_connect(uint8_t flags);
void host_offer(uint8_t flags);
void host_listen(uint8_t what);
void host_answer(bool accept, uint8_t flags);
void host_reset(void);
void host_say_anything(void);
void host_write(struct flow *f, uint32_t len);
void host_read(struct flow *f, uint32_t len);
void host_shut(struct flow *f, uint8_t how);
extern unsigned resets_sent;

#endif
