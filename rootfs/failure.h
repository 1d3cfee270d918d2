/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ROOTFS_FAILURE_H
#define ROOTFS_FAILURE_H

#include <stddef.h>
#include <stdint.h>

#include "ext4_cdef.h"

/* Functions that can fail return 0 or an enum ext4_status and leave one line of text. */
struct failure {
	char text[512];
};

void failure_say(struct failure *f, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A macro, so that a static analyzer sees which status a function returns. */
#define fail(f, status, ...) (failure_say(f, __VA_ARGS__), (status))

#endif
