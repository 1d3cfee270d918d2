/* The output files, sent when nothing but init is alive. */
#include "init.h"
#include "sys.h"

struct file_begin {
	int32_t error;
	uint32_t mode;
	uint64_t size;
};

/* A link is followed: it is the guest's own tree. Opening a device or a fifo may do anything. */
static long file_open(const char *path, struct stat *st)
{
	long err = sys_stat(path, st);

	if (err)
		return err;
	if (S_ISDIR(st->st_mode))
		return -EISDIR;
	if (!S_ISREG(st->st_mode))
		return -EINVAL;
	return sys_open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0);
}

/* A byte more than the host keeps tells it that there are more: a sparse file may have exabytes. */
static long file_data(int fd, uint16_t index, uint64_t limit)
{
	static char buf[FRAME_MAX];
	uint64_t sent = 0;
	long n = 0;

	while (sent <= limit && (n = sys_read(fd, buf, sizeof(buf))) > 0) {
		if ((uint64_t)n > limit - sent)
			n = limit - sent + 1;
		proto_send(FRAME_FILE_DATA, index, buf, n);
		sent += n;
	}
	return n < 0 ? n : 0;
}

static void file_send(const char *path, uint16_t index, uint64_t limit)
{
	struct file_begin begin = {0};
	struct stat st;
	long n = 0, fd = file_open(path, &st);
	int32_t error;

	if (fd < 0) {
		begin.error = -fd;
	} else {
		begin.mode = st.st_mode;
		begin.size = st.st_size;
	}
	proto_send(FRAME_FILE_BEGIN, index, &begin, sizeof(begin));
	if (fd >= 0) {
		n = file_data(fd, index, limit);
		sys_close(fd);
	}
	error = fd < 0 ? begin.error : -n;
	proto_send(FRAME_FILE_END, index, &error, sizeof(error));
}

/* What is there after the next run is to be that run's. A directory or a device is nobody's result.
 */
void files_remove(const struct config *c)
{
	struct stat st;

	for (size_t i = 0; i < c->output_count; i++)
		if (!sys_stat(c->outputs[i], &st) && S_ISREG(st.st_mode))
			sys_unlink(c->outputs[i]);
}

void files_send(const struct config *c)
{
	for (size_t i = 0; i < c->output_count; i++)
		file_send(c->outputs[i], i, c->limit);
}
