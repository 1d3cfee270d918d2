"""The guest's init, run natively: PID 1 of new namespaces, driven over a socket pair.

Everything but the ports, the vsock connection and the disk (host.c and boot.c) is the code that
runs in a guest; init_harness.c stands in for those.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest

from .init_guest import (
    AGAIN,
    ARG,
    BURN,
    CLOCK,
    CONFIG,
    END,
    ENV,
    EXIT,
    FAILED,
    FILE_BEGIN,
    HELLO,
    HOSTNAME,
    KILL,
    LIMIT,
    OUTPUT,
    PRIVILEGED,
    STARTED,
    STDIN,
    STDIN_PIPE,
    STDOUT,
    TAKEN,
    USER,
    WORKDIR,
    Guest,
    Run,
    frame,
    record,
)


@pytest.fixture
def run(guest):
    """Runs a command to the end, with further records."""

    def go(*args: str, records: bytes = b"") -> Run:
        g = guest()
        g.send(frame(CONFIG, b"".join(record(ARG, a) for a in args) + records))
        return g.finish()

    return go


@pytest.fixture
def shell(run):
    def go(script: str, records: bytes = b"") -> Run:
        return run("/bin/sh", "-c", script, records=records)

    return go


# The binary


def test_static_and_small(built: Path) -> None:
    binary = built / "init"
    assert binary.stat().st_size < 100_000
    if shutil.which("readelf"):
        headers = subprocess.run(
            ["readelf", "-lW", binary], capture_output=True, text=True, check=True
        ).stdout
        assert "INTERP" not in headers
        assert "DYNAMIC" not in headers
        assert "RWE" not in headers


# A plain run


def test_order_of_frames(run) -> None:
    r = run("echo", "hello", "world")
    assert not r.of(FAILED), r.failed
    assert [k for k, _, _ in r.frames] == [HELLO, STARTED, STDOUT, EXIT, END]
    assert r.stdout == b"hello world\n"
    assert r.marks == b"\x01\x02\x03"
    assert r.console == ""
    version, cpus, init_ns, memory = struct.unpack("<IIQQ", r.of(HELLO)[0])
    start_ns = struct.unpack("<Q", r.of(STARTED)[0])[0]
    assert version == 2
    assert cpus == len(os.sched_getaffinity(0))
    assert memory > 1 << 20
    assert init_ns < start_ns < r.exit["end_ns"] < time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_code(shell, code: int) -> None:
    r = shell(f"exit {code}")
    assert (r.exit["code"], r.exit["signal"]) == (code, 0)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_death_by_signal(shell, sig: int) -> None:
    r = shell(f"kill -{int(sig)} $$")
    assert (r.exit["code"], r.exit["signal"]) == (128 + sig, sig)


def test_usage(shell) -> None:
    r = shell("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo > /written; sleep 0.05")
    e = r.exit
    assert 10_000 < e["user_us"] < 60_000_000
    assert 100 << 10 < e["peak_rss"] < 1 << 30
    assert e["minor_faults"] > 10
    assert e["voluntary"] >= 1
    assert e["oom_kills"] == 0


def test_large_binary_output_on_both_streams(shell, root: Path) -> None:
    size = 8 << 20
    for name in ("a", "b"):
        (root / name).write_bytes(os.urandom(size))
    r = shell("cat /a & cat /b >&2; wait")
    assert r.stdout == (root / "a").read_bytes()
    assert r.stderr == (root / "b").read_bytes()


def test_output_is_live(guest) -> None:
    g = guest()
    g.send(
        frame(
            CONFIG,
            record(ARG, "/bin/sh")
            + record(ARG, "-c")
            + record(ARG, "echo now; read line")
            + record(STDIN_PIPE, 1),
        )
    )
    assert g.until(STDOUT) == b"now\n"
    g.send(frame(STDIN, b"go\n"))
    assert g.finish().exit["code"] == 0


def test_a_slow_host_loses_nothing(guest) -> None:
    g = guest()
    g.send(frame(CONFIG, b"".join(record(ARG, a) for a in ("head", "-c", "3000000", "/dev/zero"))))
    time.sleep(0.5)
    assert len(g.finish().stdout) == 3_000_000


def test_streams_closed_early(shell) -> None:
    r = shell("exec >&- 2>&-; sleep 0.1; exit 3")
    assert r.exit["code"] == 3


# What cannot be started


@pytest.mark.parametrize(
    ("program", "code", "text"),
    [
        ("nothing-here", 127, "executable file not found in $PATH"),
        ("", 127, "executable file not found in $PATH"),
        ("/nothing/here", 127, "no such file or directory"),
        ("/etc", 126, "permission denied"),
        ("/etc/passwd", 126, "permission denied"),
        ("/no-shebang", 126, "exec format error"),
        ("/missing-interpreter", 127, "no such file or directory"),
        ("/etc/passwd/x", 126, "not a directory"),
    ],
)
def test_cannot_execute(run, root: Path, program: str, code: int, text: str) -> None:
    for name, content in (("no-shebang", "echo hi"), ("missing-interpreter", "#!/none\n")):
        (root / name).write_text(content)
        (root / name).chmod(0o755)
    r = run(program)
    assert [k for k, _, _ in r.frames] == [HELLO, FAILED, END]
    assert r.failed == (code, f'exec: "{program}": {text}')
    assert f'exec: "{program}"' in r.console


def test_path_search(run, root: Path) -> None:
    (root / "one/tool").mkdir(parents=True)
    (root / "closed").mkdir(mode=0o700)
    (root / "two").mkdir()
    tool = root / "two/tool"
    tool.write_text("#!/bin/sh\necho two\n")
    path = record(ENV, "PATH=/none:/etc/passwd:/closed:/one:/two:/bin")
    tool.chmod(0o644)
    assert run("tool", records=path + record(USER, "alice")).failed == (
        126,
        'exec: "tool": permission denied',
    )
    tool.chmod(0o755)
    assert run("tool", records=path + record(USER, "alice")).stdout == b"two\n"
    assert run("nix", records=path + record(USER, "alice")).failed[0] == 127


# Environment, directory, user


def test_default_environment(run) -> None:
    r = run("env", records=record(HOSTNAME, "box"))
    assert sorted(r.stdout.decode().split("\n")[:-1]) == [
        "HOME=/root",
        "HOSTNAME=box",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "TERM=xterm",
    ]


def test_later_environment_wins(run) -> None:
    pairs = ["A=1", "B=x=y", "A=2", "AB=3", "EMPTY=", "HOME=/h", "TERM=vt", "PATH=/bin", "A=3"]
    r = run("env", records=b"".join(record(ENV, p) for p in pairs))
    assert sorted(r.stdout.decode().split()) == [
        "A=3",
        "AB=3",
        "B=x=y",
        "EMPTY=",
        "HOME=/h",
        "PATH=/bin",
        "TERM=vt",
    ]


def test_long_arguments(run) -> None:
    long = "x" * 100_000
    assert run("echo", long).stdout == long.encode() + b"\n"
    assert run("echo", "x" * 200_000).failed == (126, 'exec: "echo": argument list too long')


def test_workdir(shell, root: Path) -> None:
    r = shell("pwd; stat -c %a . ..", records=record(WORKDIR, "/deep//er/still/"))
    assert r.stdout.split() == [b"/deep/er/still", b"755", b"755"]
    (root / "link").symlink_to("/deep")
    assert shell("pwd -P", records=record(WORKDIR, "/link/b")).stdout == b"/deep/b\n"
    assert shell("pwd").stdout == b"/\n"


def test_workdir_that_cannot_be(run) -> None:
    code, text = run("pwd", records=record(WORKDIR, "/etc/passwd")).failed
    assert (code, text) == (125, 'working directory "/etc/passwd": not a directory')


def test_workdir_closed_to_the_user(shell, root: Path) -> None:
    (root / "private").mkdir(mode=0o700)
    r = shell("id -u", records=record(WORKDIR, "/private") + record(USER, "alice"))
    assert r.stdout == b"1000\n"


@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups", "home"),
    [
        ("", 0, 0, "0 10", "/root"),
        ("root", 0, 0, "0 10", "/root"),
        ("alice", 1000, 1000, "1000 10 29", "/home/alice"),
        ("1000", 1000, 1000, "1000 10 29", "/home/alice"),
        ("alice:audio", 1000, 29, "29", "/home/alice"),
        ("alice:50", 1000, 50, "50", "/home/alice"),
        ("4242", 4242, 0, "0", "/"),
        ("4242:4343", 4242, 4343, "4343", "/"),
        ("homeless", 1001, 1001, "1001", "/"),
    ],
)
def test_user(shell, user: str, uid: int, gid: int, groups: str, home: str) -> None:
    r = shell("id -u; id -g; grep Groups /proc/self/status; echo $HOME", records=record(USER, user))
    got_uid, got_gid, got_groups, got_home = r.stdout.decode().splitlines()
    assert (int(got_uid), int(got_gid), got_home) == (uid, gid, home)
    # The kernel keeps them sorted.
    assert sorted(got_groups.split()[1:]) == sorted(groups.split())


@pytest.mark.parametrize(
    ("user", "text"),
    [
        ("nobody-here", "unable to find user nobody-here: no matching entries in passwd file"),
        ("negative", "unable to find user negative: no matching entries in passwd file"),
        ("alice:none", "unable to find group none: no matching entries in group file"),
        ("4294967295", "uids and gids must be in range 0-2147483647"),
        (
            "99999999999999999999999",
            "unable to find user 99999999999999999999999: no matching entries in passwd file",
        ),
    ],
)
def test_unknown_user(run, user: str, text: str) -> None:
    assert run("id", records=record(USER, user)).failed == (125, text)


def test_no_passwd_at_all(shell, root: Path) -> None:
    (root / "etc/passwd").unlink()
    os.mkfifo(root / "etc/passwd")
    (root / "etc/group").unlink()
    assert shell("echo $HOME").stdout == b"/\n"
    assert shell("id -u", records=record(USER, "7")).stdout == b"7\n"


def test_a_user_can_reopen_its_streams(shell) -> None:
    r = shell(
        "echo a > /dev/stdout; echo b > /dev/stderr; cat /dev/stdin",
        records=record(USER, "alice") + record(STDIN_PIPE, 0),
    )
    assert (r.stdout, r.stderr, r.exit["code"]) == (b"a\n", b"b\n", 0)


# Input and signals


def test_stdin_is_null_by_default(run) -> None:
    assert run("cat").exit["code"] == 0


def stdin_guest(guest, *args: str) -> Guest:
    g = guest()
    g.send(frame(CONFIG, b"".join(record(ARG, a) for a in args) + record(STDIN_PIPE, 1)))
    return g


def test_stdin_through_the_window(guest) -> None:
    data = os.urandom(3 << 20)
    g = stdin_guest(guest, "cat")
    allowed = threading.Semaphore(4)

    def feed() -> None:
        for at in range(0, len(data), 65536):
            allowed.acquire()
            g.send(frame(STDIN, data[at : at + 65536]))
        g.send(frame(STDIN))

    feeder = threading.Thread(target=feed)
    feeder.start()
    taken = released = 0
    while (got := g.receive())[0] != EXIT:
        if got[0] == TAKEN:
            taken += struct.unpack("<I", got[2])[0]
            while released < taken // 65536:
                released += 1
                allowed.release()
    feeder.join()
    r = g.finish()
    assert r.stdout == data
    assert taken == len(data)


def test_unread_stdin_does_not_stop_kill(guest) -> None:
    g = stdin_guest(guest, "sleep", "100")
    g.until(STARTED)
    # The pipe takes 1 MiB, then the window is full and stays so.
    sent = taken = 0
    while sent < (1 << 20) + (256 << 10):
        if sent - taken <= (192 << 10):
            g.send(frame(STDIN, bytes(65536)))
            sent += 65536
        else:
            taken += struct.unpack("<I", g.until(TAKEN))[0]
    g.send(frame(KILL, struct.pack("<I", signal.SIGTERM)))
    assert g.finish().exit["signal"] == signal.SIGTERM


def test_stdin_that_nobody_wants_is_taken(guest) -> None:
    g = stdin_guest(guest, "sh", "-c", "exec <&-; echo closed; sleep 100")
    g.until(STDOUT)
    for _ in range(40):
        g.send(frame(STDIN, bytes(65536)))
        assert struct.unpack("<I", g.until(TAKEN))[0] == 65536
    g.send(frame(KILL, struct.pack("<I", signal.SIGKILL)))
    assert g.finish().exit["code"] == 137


def test_kill_reaches_everyone(guest) -> None:
    g = guest()
    script = """
        trap 'wait; echo parent; exit 5' TERM
        (trap 'echo child; exit' TERM; echo up; while :; do sleep 0.05; done) &
        while :; do sleep 0.05; done
    """
    g.send(frame(CONFIG, b"".join(record(ARG, a) for a in ("sh", "-c", script))))
    g.until(STDOUT)  # both have their traps
    g.send(frame(KILL, struct.pack("<I", signal.SIGTERM)))
    r = g.finish()
    assert r.exit["code"] == 5
    assert r.stdout == b"up\nchild\nparent\n"


def test_init_sleeps_while_the_program_runs(shell) -> None:
    r = shell(
        # On a busy machine init may still be on its way to sleep.
        "until grep -q '^State:.S' /proc/1/status; do sleep 0.01; done; "
        "count() { grep ctxt_switches /proc/1/status; }; a=$(count); sleep 1; b=$(count); "
        'test "$a" = "$b" || echo "$a" "$b"'
    )
    assert r.stdout == b""


# Orphans and leftovers


def test_orphans_are_reaped(shell) -> None:
    """Each is in /proc until somebody has waited for it."""
    r = shell(
        "for i in 1 2 3 4 5; do (sleep 0.05 & echo $! >> /orphans); done; "
        "for pid in $(cat /orphans); do while [ -e /proc/$pid ]; do sleep 0.01; done; done; "
        "wc -l < /orphans"
    )
    assert r.exit["code"] == 0
    assert r.stdout == b"5\n"


def test_leftovers_die_with_the_program(shell) -> None:
    r = shell("for i in $(seq 50); do setsid sleep 1000 & done; trap '' TERM; echo done")
    assert r.stdout == b"done\n"
    assert r.exit["code"] == 0


def test_leftovers_that_write_do_not_keep_the_run_open(shell) -> None:
    r = shell("(trap '' HUP TERM; while :; do echo spam; done) & sleep 0.1; exit 9")
    assert r.exit["code"] == 9
    assert set(r.stdout.split()) <= {b"spam"}


def test_fork_bomb(shell) -> None:
    # Bounded by depth: root's processes know no RLIMIT_NPROC, and this runs on the host's kernel.
    r = shell(
        "f() { [ $1 -gt 6 ] || { f $(($1+1)) & f $(($1+1)) & }; sleep 99; }; "
        "f 0 & sleep 0.3; exit 4"
    )
    assert r.exit["code"] == 4


# Confinement


def test_no_capabilities_and_no_new_privileges(shell) -> None:
    r = shell("grep -E '^(Cap|NoNewPrivs|Seccomp:|Sig[BI])' /proc/self/status")
    got = dict(line.split(":\t") for line in r.stdout.decode().splitlines())
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(got[name], 16) == 0
    assert got["NoNewPrivs"] == "1"
    assert got["Seccomp"] == "2"
    assert int(got["SigBlk"], 16) == 0
    assert int(got["SigIgn"], 16) == 0


@pytest.mark.parametrize("user", ["root", "alice"])
def test_probe(run, user: str) -> None:
    r = run("/probe", records=record(USER, user))
    got = dict(line.split() for line in r.stdout.decode().splitlines())
    may = {name for name, result in got.items() if result == "ok"}
    expected = {"unshare_files", "getppid"}
    if user == "root":
        expected |= {"kill_init", "term_init"}  # the kernel drops them: the run ended well
    assert may == expected
    assert got["clone3"] == "ENOSYS"
    assert got["unshare_user"] == got["clone_user"] == "EPERM"
    assert got["core_pattern"] in ("EROFS", "EACCES")
    assert r.exit["code"] == 0


def test_privileged(shell) -> None:
    r = shell(
        "mount -t tmpfs none /mnt && echo mounted; grep Seccomp: /proc/self/status",
        records=record(PRIVILEGED, 1) + record(WORKDIR, "/mnt"),
    )
    assert r.stdout == b"mounted\nSeccomp:\t0\n"


def test_descriptors_and_session(shell) -> None:
    r = shell(
        "ls /proc/self/fd; ps -o sid= -p $$ | tr -d ' '; echo $$; umask; ulimit -n; ulimit -c"
    )
    fds = r.stdout.split(b"\n")
    assert fds[:4] == [b"0", b"1", b"2", b"3"]  # 3 is ls's own
    sid, pid, umask, files, core = r.stdout.split()[4:]
    assert sid == pid
    assert umask == b"0022"
    # Raising the hard limit takes CAP_SYS_RESOURCE, which a container's root may lack.
    inherited = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert int(files) in (1048576, inherited)
    assert core == b"0"


# The file systems


def test_mounts(shell) -> None:
    r = shell("cat /proc/self/mounts")
    mounts = {}
    for line in r.stdout.decode().splitlines():
        _, path, kind, options = line.split()[:4]
        mounts[path] = (kind, options.split(","))
    assert mounts["/proc"][0] == "proc"
    assert mounts["/dev"][0] == "tmpfs"
    assert mounts["/dev/pts"][0] == "devpts"
    assert "ro" in mounts["/sys"][1]
    assert "ro" in mounts["/proc/sys"][1]
    assert len(r.stdout.splitlines()) == len(mounts)
    assert "/tmp" not in mounts
    assert "/run" not in mounts


def test_devices(shell) -> None:
    r = shell(
        "ls /dev; head -c 3 /dev/zero | wc -c; echo x > /dev/null; head -c 4 /dev/urandom "
        "| wc -c; echo shm > /dev/shm/x; cat /dev/shm/x; stat -c %a /tmp /dev/shm /dev/null",
        records=record(USER, "alice"),
    )
    assert r.stderr == b""
    names = r.stdout.decode().split()
    assert {
        "fd",
        "full",
        "null",
        "ptmx",
        "pts",
        "random",
        "shm",
        "stderr",
        "stdin",
        "stdout",
        "tty",
        "urandom",
        "zero",
    } <= set(names)
    assert names[-6:] == ["3", "4", "shm", "1777", "1777", "666"]


def test_links_in_place_of_mount_points(shell, root: Path) -> None:
    (root / "elsewhere").mkdir()
    for name in ("proc", "sys", "dev", "run"):
        (root / name).symlink_to("elsewhere")
    assert shell("cat /proc/self/comm; ls /elsewhere").stdout == b"cat\n"


def test_network_names(shell, root: Path) -> None:
    (root / "etc/hosts").write_text("")
    script = "cat /etc/hosts; hostname; grep -c 127.0.0.1 /proc/net/fib_trie; cat /etc/hostname"
    r = shell(script, records=record(HOSTNAME, "box"))
    assert r.stdout.decode() == (
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tbox\n"
        "box\n2\nbox\n"
    )
    (root / "etc/hosts").write_text("mine\n")
    assert shell("cat /etc/hosts").stdout == b"mine\n"


# Output files


def test_outputs(shell, root: Path) -> None:
    big = os.urandom(1_000_000)
    (root / "big").write_bytes(big)
    (root / "link").symlink_to("/big")
    paths = ["/made", "/none", "/etc", "/fifo", "/link", "/empty", "/dev/null", "/loop"]
    r = shell(
        "echo made > /made; mkfifo /fifo; : > /empty; ln -s loop /loop; echo x > /x/y",
        records=b"".join(record(OUTPUT, p) for p in paths),
    )
    assert r.file(0) == (0, b"made\n", 0)
    assert r.file(1) == (errno.ENOENT, b"", errno.ENOENT)
    assert r.file(2) == (errno.EISDIR, b"", errno.EISDIR)
    assert r.file(3) == (errno.EINVAL, b"", errno.EINVAL)
    assert r.file(4) == (0, big, 0)
    assert r.file(5) == (0, b"", 0)
    assert r.file(6) == (errno.EINVAL, b"", errno.EINVAL)
    assert r.file(7) == (errno.ELOOP, b"", errno.ELOOP)
    kinds = [k for k, _, _ in r.frames]
    assert kinds.index(EXIT) < kinds.index(FILE_BEGIN)
    assert kinds[-1] == END
    _, mode, size = struct.unpack("<iIQ", r.of(FILE_BEGIN)[0])
    assert (mode, size) == (0o100644, 5)


@pytest.mark.parametrize("limit", [0, 1, 65535, 65536, 99_999, 100_000])
def test_outputs_that_are_longer_than_the_host_keeps(shell, root: Path, limit: int) -> None:
    """A byte more, to tell; and no waiting for what a sparse file pretends to have."""
    data = os.urandom(100_000)
    (root / "whole").write_bytes(data)
    records = record(LIMIT, struct.pack("<Q", limit)) + record(OUTPUT, "/whole")
    r = shell("truncate -s 1T /sparse", records=records + record(OUTPUT, "/sparse"))
    assert r.file(0) == (0, data[: limit + 1], 0)
    assert r.file(1) == (0, bytes(limit + 1), 0)


# Several runs


def shell_guest(guest, script: str, records: bytes = b"") -> Guest:
    g = guest()
    words = b"".join(record(ARG, a) for a in ("/bin/sh", "-c", script))
    g.send(frame(CONFIG, words + records))
    return g


def test_again(guest) -> None:
    """Each run as if it were the first, but for what it finds on the disk."""
    g = shell_guest(guest, "echo x >> /count; wc -l < /count; pwd; exit 3", record(WORKDIR, "/w"))
    first = g.end()
    assert first.stdout == b"1\n/w\n"
    ended = first.exit["end_ns"]
    for number in (2, 3, 4, 5):
        g.again()
        r = g.end()
        assert [k for k, _, _ in r.frames if k != STDOUT] == [STARTED, EXIT, END]
        assert r.stdout == b"%d\n/w\n" % number
        assert (r.exit["code"], r.exit["signal"], r.exit["oom_kills"]) == (3, 0, 0)
        assert ended < struct.unpack("<Q", r.of(STARTED)[0])[0] < r.exit["end_ns"]
        ended = r.exit["end_ns"]
    g.close()
    assert g.run.marks == b"\x01" + b"\x02\x03" * 5
    assert g.run.console == ""


def test_again_leaves_no_descriptor_open(guest) -> None:
    """Neither in init nor, so, in the program."""
    script = "ls /proc/self/fd; grep FDSize /proc/1/status"
    g = shell_guest(guest, script, record(STDIN_PIPE, 1))
    first = g.end().stdout
    for _ in range(40):
        g.again()
        r = g.end()
    g.close()
    assert r.stdout == first


def test_again_usage_is_of_one_run(guest) -> None:
    """The first uses much, its orphans too; the second nothing."""
    heavy = f"""
        [ -e /been ] && exec true
        touch /been
        (head -c 50000000 /dev/zero | tail -c 40000000 | wc -c) &
        {BURN}
        wait
    """
    g = shell_guest(guest, heavy)
    first = g.end().exit
    g.again()
    second = g.finish().exit
    assert first["peak_rss"] >= 40_000_000
    assert second["peak_rss"] < 10_000_000
    assert first["user_us"] + first["system_us"] >= 1_000_000
    assert second["user_us"] + second["system_us"] < 1_000_000
    assert first["minor_faults"] > 9_000
    assert second["minor_faults"] < 1_000


def test_again_after_leftovers(guest) -> None:
    script = "ps -e -o comm= | grep -c '^sleep'; setsid sleep 1000 & setsid sleep 1000 & sleep 0.2"
    g = shell_guest(guest, script)
    for _ in range(3):
        assert g.end().stdout == b"0\n"
        g.again()
    assert g.finish().stdout == b"0\n"


def test_again_after_a_kill(guest) -> None:
    g = shell_guest(guest, "[ -e /been ] && exit 4; touch /been; echo up; sleep 1000")
    g.until(STDOUT)
    g.send(frame(KILL, struct.pack("<I", signal.SIGKILL)))
    assert g.end().exit["code"] == 137
    g.again()
    assert g.finish().exit["code"] == 4


def test_again_stdin_is_each_runs_own(guest) -> None:
    """What came too late for one run is not the next one's, also if it comes with its own."""
    g = shell_guest(guest, "read line; echo $line", record(STDIN_PIPE, 1))
    for number in range(3):
        g.send(frame(STDIN, b"run %d\n" % number))
        assert g.end().stdout == b"run %d\n" % number
        g.send(frame(STDIN, b"late\n" * 10000) * 2 + frame(KILL, struct.pack("<I", 15)))
        g.again()
    g.send(frame(STDIN, b"split"))
    g.send(frame(STDIN, b" in two\n") + frame(STDIN))
    assert g.end().stdout == b"split in two\n"
    g.again(frame(STDIN, b"together\n") + frame(STDIN))
    r = g.finish()
    assert r.stdout == b"together\n"
    assert r.exit["code"] == 0
    assert r.of(TAKEN) == [struct.pack("<I", 9)]


def test_again_has_the_whole_window(guest) -> None:
    g = shell_guest(guest, "true", record(STDIN_PIPE, 1))
    for _ in range(3):
        g.send(frame(STDIN, bytes(65536)) * 4)
        assert g.end().exit["code"] == 0
        g.again()
    g.send(frame(STDIN, bytes(65536)) * 4)
    assert g.finish().exit["code"] == 0


def test_again_outputs_are_that_runs(guest, root: Path) -> None:
    """A file that only the run before had written is not taken for this one's."""
    (root / "made").mkdir()
    script = (
        "[ -e /been ] && echo two >/b || echo one >/a; echo x >>/both; touch /been; ln -sf b /l"
    )
    paths = ["/a", "/b", "/both", "/l", "/dev/null", "/made"]
    g = shell_guest(guest, script, b"".join(record(OUTPUT, p) for p in paths))
    first = g.end()
    g.again()
    second = g.finish()
    none = (errno.ENOENT, b"", errno.ENOENT)
    device, directory = ((e, b"", e) for e in (errno.EINVAL, errno.EISDIR))
    assert [first.file(i) for i in range(6)] == [
        (0, b"one\n", 0), none, (0, b"x\n", 0), none, device, directory,
    ]  # fmt: skip
    assert [second.file(i) for i in range(6)] == [
        none, (0, b"two\n", 0), (0, b"x\n", 0), (0, b"two\n", 0), device, directory,
    ]  # fmt: skip


def test_again_when_it_can_no_longer_start(guest) -> None:
    """That ends the runs: the host closes."""
    g = shell_guest(guest, "rm /bin")
    assert g.end().exit["code"] == 0
    g.again()
    r = g.finish()
    assert [k for k, _, _ in r.frames] == [FAILED, END]
    assert r.failed == (127, 'exec: "/bin/sh": no such file or directory')


def test_again_in_crumbs(guest) -> None:
    g = shell_guest(guest, "cat", record(STDIN_PIPE, 1))
    g.send(frame(STDIN))
    g.end()
    g.run = Run()
    for byte in frame(AGAIN) + frame(STDIN, b"hello") + frame(STDIN):
        g.send(bytes([byte]))
        time.sleep(0.001)
    assert g.finish().stdout == b"hello"


@pytest.mark.parametrize(
    "data",
    [frame(CONFIG), frame(99), frame(AGAIN, b"x"), struct.pack("<IHH", 65537, STDIN, 0)],
)
def test_wrong_frame_after_the_end(guest, data: bytes) -> None:
    g = shell_guest(guest, "true")
    g.end()
    g.send(data)
    assert g.finish().of(END) == [b""]
    assert g.process.wait() == 0
    assert "host connection: " in g.run.console


# What a host may get wrong


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", "no command specified"),
        (b"\x01\x00\x00", "config: a record is cut short"),
        (struct.pack("<HHI", 1, 0, 5) + b"four", "config: a record is malformed"),
        (struct.pack("<HHI", 1, 0, 0xFFFFFFFF), "config: a record is malformed"),
        (struct.pack("<HHI", 1, 1, 0), "config: a record is malformed"),
        (record(0, "x"), "config: unknown key"),
        (record(14, "x"), "config: unknown key"),
        (record(ARG, b"a\0b"), "config: a record holds a NUL byte"),
        (record(ENV, "novalue"), 'config: "novalue" is not KEY=VALUE'),
        (record(ENV, "=x"), 'config: "=x" is not KEY=VALUE'),
        (record(WORKDIR, "a"), 'config: "a" is not an absolute path'),
        (record(OUTPUT, ""), 'config: "" is not an absolute path'),
        (record(STDIN_PIPE, b""), "config: a flag is not 0 or 1"),
        (record(PRIVILEGED, 2), "config: a flag is not 0 or 1"),
        (record(CLOCK, b"1234"), "config: the clock is not 8 bytes"),
        (record(LIMIT, b"1234"), "config: the limit is not 8 bytes"),
        (record(HOSTNAME, "h" * 65), "config: the hostname is too long"),
        (record(OUTPUT, "/x") * 65537, "config: too many outputs"),
    ],
)
def test_malformed_config(guest, payload: bytes, text: str) -> None:
    g = guest()
    g.send(frame(CONFIG, payload))
    r = g.finish()
    assert r.failed == (125, text)
    assert r.frames[-1][0] == END


@pytest.mark.parametrize(
    "data",
    [
        frame(STDIN, b"early"),
        frame(99),
        struct.pack("<IHH", (16 << 20) + 1, CONFIG, 0),
    ],
)
def test_wrong_first_frame(guest, data: bytes) -> None:
    g = guest()
    g.send(data)
    r = g.finish()
    assert [k for k, _, _ in r.frames] == [HELLO]
    assert "host connection: " in r.console


@pytest.mark.parametrize(
    "data",
    [
        frame(CONFIG),
        frame(AGAIN),
        frame(99),
        frame(KILL, b"123"),
        frame(KILL, struct.pack("<I", 0)),
        frame(KILL, struct.pack("<I", 65)),
        struct.pack("<IHH", 65537, STDIN, 0),
        frame(STDIN, bytes(65536)) * 30,
    ],
)
def test_wrong_frame_while_running(guest, data: bytes) -> None:
    g = stdin_guest(guest, "sleep", "1000")
    g.until(STARTED)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        g.send(data)
    r = g.finish()
    assert END not in [k for k, _, _ in r.frames]
    assert "host connection: " in r.console


@pytest.mark.parametrize("after", [HELLO, STARTED, STDOUT])
def test_a_host_that_goes_away(guest, after: int) -> None:
    g = guest()
    if after != HELLO:
        g.send(frame(CONFIG, b"".join(record(ARG, a) for a in ("yes",))))
    g.until(after)
    g.close()
    assert "host connection: " in g.run.console


def test_frames_in_crumbs(guest) -> None:
    g = guest()
    config = frame(CONFIG, record(ARG, "cat") + record(STDIN_PIPE, 1))
    for byte in config + frame(STDIN, b"hello") + frame(STDIN):
        g.send(bytes([byte]))
        time.sleep(0.001)
    assert g.finish().stdout == b"hello"
