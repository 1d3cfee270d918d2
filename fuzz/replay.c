/* SPDX-License-Identifier: Apache-2.0 */
/* Gives a harness the files named, without a fuzzer: clang is not everywhere. */
#include <stdio.h>
#include <stdlib.h>

#include "harness.h"

#define INPUT_MAX (1u << 20)

int main(int argc, char **argv)
{
	thorough = true;
	for (int i = 1; i < argc; i++) {
		/* Of its very size, or a read past its end would go unseen. */
		FILE *file = fopen(argv[i], "rb");
		uint8_t *room = malloc(INPUT_MAX), *input;
		size_t size = file && room ? fread(room, 1, INPUT_MAX, file) : 0;

		if (!file || ferror(file)) {
			perror(argv[i]);
			return 1;
		}
		input = realloc(room, size ? size : 1);
		fprintf(stderr, "%s\n", argv[i]);
		LLVMFuzzerTestOneInput(input, size);
		free(input);
		fclose(file);
	}
	printf("%d inputs, %u %s\n", argc - 1, reached, goal);
	return 0;
}
