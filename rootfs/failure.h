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

int fail(struct failure *f, int status, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

#endif
