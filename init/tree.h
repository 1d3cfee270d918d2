/* Trees of files between guest and host: docs/protocol.md, "Files". */
#ifndef PYVMM_INIT_TREE_H
#define PYVMM_INIT_TREE_H

#include "init.h"
#include "sys.h"

/* The same numbers both ways; FRAME_END and FRAME_FAILED are the exchange's. */
enum tree_frame {
	TREE_ENTRY = 12,
	TREE_DATA,
	TREE_HOLE,
	TREE_LEAVE,
};

/* GET's flags */
#define TREE_FOLLOW 1u

/* PUT: what becomes of its path. */
enum tree_put_how {
	TREE_CP,    /* a directory that is there: into it; else the entry becomes it */
	TREE_INTO,  /* into that directory */
	TREE_MAKE,  /* the same, and it is made if it is not there */
	TREE_EXACT, /* the file of that name is written, as open(2) would */
};

/* An entry's flags */
#define TREE_LINK 1u /* a hard link to an earlier entry: the target is its path */
#define TREE_KEEP 2u /* a directory on the way: if it is there it stays as it is */

/* Then the name, one component (GET: none for the first entry); then a link's target. */
struct tree_entry {
	uint32_t mode; /* type and permissions, as stat's */
	uint32_t uid;
	uint32_t gid;
	uint32_t mtime_ns;
	int64_t mtime;
	uint64_t size; /* of a regular file, in bytes; of a device, its number */
	uint16_t name_length;
	uint16_t flags;
	uint32_t zero;
};

#define TREE_NAME_MAX  255
#define TREE_PATH_MAX  4096
#define TREE_DEPTH_MAX 4096 /* a descriptor for each level */
/* With its header DATA is as long as vsock's largest packet: one frame more makes one packet more.
 */
#define TREE_DATA_MAX (FRAME_MAX - sizeof(struct frame))

/* tree_frames.c: frames by the buffer full, since files may be many and small */
void *tree_out_room(uint32_t length);
void tree_out(uint16_t type, uint32_t length);
void tree_out_flush(void);
uint8_t *tree_in(struct frame *head);

/* tree_path.c: where we are, for what a failure says */
size_t tree_path_enter(const char *name);
void tree_path_leave(size_t length);
char *tree_path_begin(const uint8_t *path, size_t length);
_Noreturn void tree_fail(long err);

#endif
