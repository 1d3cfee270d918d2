/* SPDX-License-Identifier: Apache-2.0 */
/* What the harnesses and those who call them, libFuzzer or replay.c, know of each other. */
#ifndef FUZZ_HARNESS_H
#define FUZZ_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* In an input of tar.c this stands between two layers. */
#define NEXT_LAYER "\n--- next layer ---\n"
extern unsigned reached; /* inputs that reached the harness's goal: one that says something */
extern const char *const goal;
extern bool thorough; /* every check, also those that take long */

/* libFuzzer's side: https://llvm.org/docs/LibFuzzer.html */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *data1, size_t size1, const uint8_t *data2,
				 size_t size2, uint8_t *out, size_t max_size, unsigned seed);

#endif
