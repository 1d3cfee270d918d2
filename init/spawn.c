/* From CONFIG to a running program: the child is prepared, held, measured from, and let go. */
#include <linux/capability.h>
#include <linux/prctl.h>

#include "init.h"
#include "sys.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define PATH_SIZE    4096
#define NOFILE	     1048576 /* as Docker */

/*
 * What the child says over the status pipe: ready (no step), or the step that failed. A forked
 * child's string literals are where the parent's are, so a pointer is enough. Exec closes the
 * pipe: end of file after "ready" means that the program runs.
 */
struct report {
	const char *step;
	long err;
};

struct pipes {
	int in[2];
	int out[2];
	int err[2];
	int status[2];
	int go[2];
};

static void pipe_make(int fds[2])
{
	long err = sys_pipe2(fds, O_CLOEXEC);

	if (err < 0)
		fail_errno(CODE_INTERNAL, "pipe", err);
}

static void pipe_make_output(int fds[2])
{
	pipe_make(fds);
	sys_fcntl(fds[0], F_SETPIPE_SZ, PIPE_SIZE);
	sys_fcntl(fds[0], F_SETFL, O_NONBLOCK);
}

/* One slave in the program's three places, the master twice: each direction is closed by itself. */
static void pipe_make_tty(struct pipes *p, const struct config *c)
{
	p->out[0] = tty_open(&p->in[0], c->size);
	p->out[1] = p->err[1] = p->in[0];
	p->err[0] = -1;
	p->in[1] = sys_fcntl(p->out[0], F_DUPFD_CLOEXEC, 0);
	if (p->in[1] < 0)
		fail_errno(CODE_INTERNAL, "terminal", p->in[1]);
}

static void pipe_make_input(int fds[2], bool piped)
{
	if (piped) {
		pipe_make(fds);
		sys_fcntl(fds[1], F_SETPIPE_SZ, PIPE_SIZE);
		sys_fcntl(fds[1], F_SETFL, O_NONBLOCK);
		return;
	}
	fds[0] = sys_open("/dev/null", O_RDONLY | O_CLOEXEC, 0);
	fds[1] = -1;
	if (fds[0] < 0)
		fail_errno(CODE_INTERNAL, "/dev/null", fds[0]);
}

static _Noreturn void child_fail(int status, const char *step, long err)
{
	struct report r = {step, err};

	sys_write(status, &r, sizeof(r));
	sys_exit_group(CODE_NOTFOUND);
	__builtin_unreachable();
}

static void child_check(int status, const char *step, long err)
{
	if (err < 0)
		child_fail(status, step, err);
}

/*
 * The bounding set goes while there is the capability to do it; with it empty and nothing
 * inheritable, not even uid 0 or a setuid file gains any from exec. The rest goes when the ids
 * are set, which takes capabilities too.
 */
static void child_set_ids(int status, const struct config *c, const struct user *u)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};

	if (!c->privileged) {
		for (unsigned long cap = 0; !sys_prctl(PR_CAPBSET_DROP, cap, 0, 0, 0); cap++)
			;
		if (sys_prctl(PR_CAPBSET_READ, 0, 0, 0, 0))
			child_fail(status, "bounding set", -EPERM);
	}
	child_check(status, "groups", sys_setgroups(u->group_count, u->groups));
	child_check(status, "gid", sys_setresgid(u->gid, u->gid, u->gid));
	child_check(status, "uid", sys_setresuid(u->uid, u->uid, u->uid));
	if (c->privileged)
		return;
	child_check(status, "ambient set",
		    sys_prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
	child_check(status, "capabilities", sys_capset(&head, none));
	child_check(status, "no_new_privs", sys_prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	child_check(status, "seccomp", seccomp_install());
}

/* PATH's directories in turn. A file that is there and may not be run is remembered. */
static long exec_search(const char *name, const char *path, char **args, char **env)
{
	struct span rest = span_of(path);
	long result = -ENOENT;

	while (rest.len) {
		struct span dir = span_cut(&rest, ':');
		char file[PATH_SIZE];
		struct text t = {file, sizeof(file), 0};
		struct stat st;
		long err;

		if (dir.len + str_len(name) + 2 > sizeof(file))
			continue;
		text_add_span(&t, dir.len ? dir : span_of("."));
		text_add(&t, "/");
		text_add(&t, name);
		err = sys_execve(file, args, env);
		if (err == -EACCES) {
			/* Also the answer for a directory, or inside one that is closed to us. */
			if (!sys_stat(file, &st) && S_ISREG(st.st_mode))
				result = err;
		} else if (err != -ENOENT && err != -ENOTDIR) {
			return err;
		}
	}
	return result;
}

static _Noreturn void child_run(const struct pipes *p, const struct config *c, const struct user *u)
{
	const int stdio[3] = {p->in[0], p->out[1], p->err[1]};
	const struct rlimit files = {NOFILE, NOFILE};
	const sigset_t no_signals = 0;
	const struct report ready = {0};
	int status = p->status[1];
	char go;
	long err;

	host_drop_ports();
	sys_setsid();
	sys_umask(022);
	for (int fd = 0; fd < 3; fd++) {
		/* A program that is not root may open /dev/stdout only if it owns the pipe. */
		if (c->tty)
			sys_fchown(stdio[fd], u->uid, -1); /* the group is devpts' own, tty */
		else if (fd || c->stdin_pipe)
			sys_fchown(stdio[fd], u->uid, u->gid);
		child_check(status, "stdio", sys_dup2(stdio[fd], fd));
	}
	if (c->tty)
		child_check(status, "terminal", tty_control(0));
	sys_setrlimit(RLIMIT_NOFILE, &files);
	child_set_ids(status, c, u);
	sys_rt_sigprocmask(SIG_SETMASK, &no_signals, NULL, sizeof(no_signals));

	sys_write(status, &ready, sizeof(ready));
	if (sys_read(p->go[0], &go, sizeof(go)) != sizeof(go))
		sys_exit_group(CODE_INTERNAL);
	if (str_find(c->args[0], '/'))
		err = sys_execve(c->args[0], c->args, c->env);
	else
		err = exec_search(c->args[0], config_env(c, "PATH"), c->args, c->env);
	child_fail(status, "exec", err);
}

/* As Docker makes it: every missing part, root's own, 0755. */
static long workdir_enter(const char *path)
{
	char part[PATH_SIZE];
	struct span rest = span_of(path);
	struct text t = {part, sizeof(part), 0};
	long err = 0;

	if (rest.len >= sizeof(part))
		return -ENAMETOOLONG;
	text_add(&t, "/");
	while (rest.len) {
		struct span name = span_cut(&rest, '/');

		if (!name.len)
			continue;
		text_add_span(&t, name);
		err = sys_mkdir(part, 0755);
		if (err < 0 && err != -EEXIST)
			return err;
		text_add(&t, "/");
	}
	return sys_chdir(path);
}

static _Noreturn void spawn_failed(const char *name, long err)
{
	const char *why = errno_text(err);

	if (err == -ENOENT && !str_find(name, '/'))
		why = "executable file not found in $PATH";
	fail(err == -ENOENT ? CODE_NOTFOUND : CODE_NOEXEC, "exec: \"", name, "\": ", why, NULL);
}

/* Waits until the child is ready, takes the time, lets it go, and waits for its exec. */
static uint64_t spawn_start(const struct pipes *p, const char *name)
{
	struct report r;
	uint64_t start_ns;

	if (sys_read(p->status[0], &r, sizeof(r)) != sizeof(r))
		fail(CODE_INTERNAL, "the program's process died before it started", NULL);
	if (r.step)
		fail_errno(CODE_INTERNAL, r.step, r.err);
	usage_start();
	start_ns = clock_ns();
	host_mark(MARK_START);
	sys_write(p->go[1], "", 1);
	if (sys_read(p->status[0], &r, sizeof(r)) == sizeof(r))
		spawn_failed(name, r.err);
	return start_ns;
}

void spawn_program(struct program *program, struct config *c, const struct user *u)
{
	struct pipes p;
	long err = workdir_enter(c->workdir);

	if (err < 0)
		fail(CODE_INTERNAL, "working directory \"", c->workdir, "\": ", errno_text(err),
		     NULL);
	config_env_default(c, "PATH", DEFAULT_PATH);
	config_env_default(c, "HOME", u->home);
	config_env_default(c, "TERM", "xterm");
	if (c->hostname)
		config_env_default(c, "HOSTNAME", c->hostname);

	if (c->tty) {
		pipe_make_tty(&p, c);
	} else {
		pipe_make_input(p.in, c->stdin_pipe);
		pipe_make_output(p.out);
		pipe_make_output(p.err);
	}
	pipe_make(p.status);
	pipe_make(p.go);
	program->pid = sys_fork();
	if (!program->pid)
		child_run(&p, c, u);
	if (program->pid < 0)
		fail_errno(CODE_INTERNAL, "fork", program->pid);
	sys_close(p.in[0]);
	if (!c->tty) {
		sys_close(p.out[1]);
		sys_close(p.err[1]);
	}
	sys_close(p.status[1]);
	sys_close(p.go[0]);
	program->start_ns = spawn_start(&p, c->args[0]);
	sys_close(p.status[0]);
	sys_close(p.go[1]);
	program->in = p.in[1];
	program->out[0] = p.out[0];
	program->out[1] = p.err[0];
	program->tty = c->tty;
}
