/*
 * The ways a run or a session ends early: FAILED to the host if it listens, and for PID 1, whose
 * end is the machine's, one line on the console.
 */
#include <stdarg.h>

#include "init.h"
#include "sys.h"

#define CONSOLE_FD 2
#define TEXT_MAX   4096

static const struct {
	int number;
	const char *text;
} errnos[] = {
	{EPERM, "operation not permitted"},
	{ENOENT, "no such file or directory"},
	{EIO, "input/output error"},
	{ENXIO, "no such device or address"},
	{E2BIG, "argument list too long"},
	{ENOEXEC, "exec format error"},
	{EAGAIN, "resource temporarily unavailable"},
	{ENOMEM, "cannot allocate memory"},
	{EACCES, "permission denied"},
	{EBUSY, "device or resource busy"},
	{EEXIST, "file exists"},
	{ENODEV, "no such device"},
	{ENOTDIR, "not a directory"},
	{EISDIR, "is a directory"},
	{EINVAL, "invalid argument"},
	{ETXTBSY, "text file busy"},
	{EFBIG, "file too large"},
	{ENOSPC, "no space left on device"},
	{EROFS, "read-only file system"},
	{EMLINK, "too many links"},
	{ENAMETOOLONG, "file name too long"},
	{ENOSYS, "function not implemented"},
	{ELOOP, "too many levels of symbolic links"},
	{ELIBBAD, "accessing a corrupted shared library"},
	{EAFNOSUPPORT, "address family not supported by protocol"},
	{ENETUNREACH, "network is unreachable"},
	{ECONNRESET, "connection reset by peer"},
	{ETIMEDOUT, "connection timed out"},
};

const char *errno_text(long err)
{
	static char buf[32];
	struct text t = {buf, sizeof(buf), 0};

	err = err < 0 ? -err : err;
	for (size_t i = 0; i < ARRAY_SIZE(errnos); i++)
		if (errnos[i].number == err)
			return errnos[i].text;
	text_add(&t, "error ");
	text_add_number(&t, err);
	return buf;
}

static void console_write(const char *what)
{
	char buf[TEXT_MAX + 32];
	struct text t = {buf, sizeof(buf), 0};

	text_add(&t, "pyvmm-init: ");
	text_add(&t, what);
	text_add(&t, "\n");
	if (!host_print(buf, t.len))
		sys_write(CONSOLE_FD, buf, t.len);
}

void log_line(const char *what, long err)
{
	char buf[TEXT_MAX];
	struct text t = {buf, sizeof(buf), 0};

	text_add(&t, what);
	text_add(&t, ": ");
	text_add(&t, errno_text(err));
	console_write(buf);
}

/*
 * A session's process stays for what its program has left running: init would count it as its own
 * program's.
 */
void process_end(void)
{
	if (sys_getpid() == 1)
		host_reset();
	while (sys_wait4(-1, NULL, 0, NULL) > 0)
		;
	sys_exit_group(0);
	__builtin_unreachable();
}

/* The parts of the message end with a NULL. */
void fail(uint32_t code, const char *part, ...)
{
	struct {
		uint32_t code;
		char text[TEXT_MAX];
	} payload = {.code = code};
	struct text t = {payload.text, sizeof(payload.text), 0};
	va_list parts;

	va_start(parts, part);
	for (; part; part = va_arg(parts, const char *))
		text_add(&t, part);
	va_end(parts);
	if (sys_getpid() == 1)
		console_write(payload.text);
	if (proto_fd < 0)
		process_end();
	proto_send(FRAME_FAILED, 0, &payload, sizeof(payload.code) + t.len);
	proto_finish();
}

void fail_errno(uint32_t code, const char *what, long err)
{
	fail(code, what, ": ", errno_text(err), NULL);
}
