/* SPDX-License-Identifier: Apache-2.0
 *
 * Python with gcc's sanitizers in it, for extensions that are built with them (package.py). In the
 * program itself, because a module that is loaded later comes too late for them, and LD_PRELOAD is
 * no way to reach processes that the library starts with an empty environment.
 */
#include <Python.h>

/* These functions are the sanitizers' own way of finding options in a program. */
#define OPTION_OF_SANITIZER __attribute__((visibility("default"), used)) const char *

OPTION_OF_SANITIZER __asan_default_options(void)
{
	/* exitcode: a worker is PID 1 of its namespace, which a signal of its own does not end.
	 * allocator_may_return_null: what is asked for in vain fails as it does in malloc.
	 * detect_leaks: only where the whole process is ours to look at; run turns it on.
	 * handle_*: such an end is a signal's, as without us. */
	return "exitcode=66:allocator_may_return_null=1:detect_leaks=0:strict_string_checks=1:"
	       "handle_segv=0:handle_sigbus=0:handle_sigfpe=0";
}

OPTION_OF_SANITIZER __ubsan_default_options(void)
{
	return "print_stacktrace=0:exitcode=66";
}

OPTION_OF_SANITIZER __lsan_default_options(void)
{
	return "print_suppressions=0";
}

/* Python keeps to the end what it has interned and imported; all of it comes from its own
 * allocators. What is left are the C parts' own malloc(). */
OPTION_OF_SANITIZER __lsan_default_suppressions(void)
{
	return "leak:_PyMem_\nleak:PyMem_\nleak:_PyObject_\nleak:PyObject_\nleak:PyThread_\n";
}

/* Once more in one line, and as the last: that line of a worker's log its caller tells of. */
void __asan_set_error_report_callback(void (*callback)(const char *));
void __sanitizer_set_death_callback(void (*callback)(void));

static char last_line[4096];
static size_t last_length;

static void keep(const char *report)
{
	const char *end = strstr(report, "Shadow bytes");
	size_t length = end ? (size_t)(end - report) : strlen(report);

	last_length = length < sizeof(last_line) ? length : sizeof(last_line);
	for (size_t i = 0; i < last_length; i++)
		last_line[i] = report[i] == '\n' ? '|' : report[i];
}

static void tell(void)
{
	if (last_length && write(2, last_line, last_length) < 0)
		return;
}

int main(int argc, char **argv)
{
	__asan_set_error_report_callback(keep);
	__sanitizer_set_death_callback(tell);
	return Py_BytesMain(argc, argv);
}
