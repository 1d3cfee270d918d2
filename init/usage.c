/* What a run used: rusage of everything reaped in it, and the guest's own counters. */
#include "init.h"
#include "sys.h"

#define NS_PER_TICK 10000000 /* USER_HZ is 100 on x86 */
#define STEAL_FIELD 8

static struct counters {
	uint64_t steal_ns;
	uint64_t oom_kills;
} before;

/* Held open: a privileged program could mount something else on /proc. */
static int stat_fd = -1, vmstat_fd = -1;

static struct span counters_read(int fd, char *buf, size_t size)
{
	struct span s = {buf, 0};
	long n;

	while (s.len < size && (n = sys_pread64(fd, buf + s.len, size - s.len, s.len)) > 0)
		s.len += n;
	return s;
}

static uint64_t steal_ns(void)
{
	char buf[512];
	struct span all = counters_read(stat_fd, buf, sizeof(buf));
	struct span line = span_cut(&all, '\n');
	uint64_t ticks = 0;

	/* "cpu" is followed by two spaces: an empty field, so the eighth number is the tenth. */
	for (int i = 0; i < STEAL_FIELD + 1; i++)
		span_cut(&line, ' ');
	span_number(span_cut(&line, ' '), &ticks);
	return ticks * NS_PER_TICK;
}

static uint64_t oom_kills(void)
{
	static char buf[16384];
	struct span rest = counters_read(vmstat_fd, buf, sizeof(buf));
	uint64_t kills = 0;

	while (rest.len) {
		struct span line = span_cut(&rest, '\n');

		if (span_is(span_cut(&line, ' '), span_of("oom_kill")) && span_number(line, &kills))
			break;
	}
	return kills;
}

void usage_start(void)
{
	if (stat_fd < 0) {
		stat_fd = sys_open("/proc/stat", O_RDONLY | O_CLOEXEC, 0);
		vmstat_fd = sys_open("/proc/vmstat", O_RDONLY | O_CLOEXEC, 0);
	}
	before = (struct counters){steal_ns(), oom_kills()};
}

/*
 * wait4's numbers of one child of init's and of all that it had waited for. Not the sum that
 * getrusage(RUSAGE_CHILDREN) keeps: its peak is the highest of all runs, and has no difference.
 */
void usage_add(struct exit_report *r, const struct rusage *u)
{
	uint64_t peak = (uint64_t)u->ru_maxrss * 1024;

	r->user_us += (uint64_t)u->ru_utime.tv_sec * 1000000 + (uint64_t)u->ru_utime.tv_usec;
	r->system_us += (uint64_t)u->ru_stime.tv_sec * 1000000 + (uint64_t)u->ru_stime.tv_usec;
	r->peak_rss = peak > r->peak_rss ? peak : r->peak_rss;
	r->minor_faults += u->ru_minflt;
	r->major_faults += u->ru_majflt;
	r->block_in += u->ru_inblock;
	r->block_out += u->ru_oublock;
	r->voluntary_switches += u->ru_nvcsw;
	r->involuntary_switches += u->ru_nivcsw;
}

void usage_collect(struct exit_report *r)
{
	r->steal_ns = steal_ns() - before.steal_ns;
	r->oom_kills = oom_kills() - before.oom_kills;
}
