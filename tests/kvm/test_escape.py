"""Out of a worker that a guest has broken: what escape.c tries on each kind of its threads fails.

Twice: with all walls up, and without seccomp, so that each of the others is seen to stand alone.
And what a worker looks like from outside.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyvmm.jail import SPARE, UNUSED_ID

sys.path.append(str(Path(__file__).parent))

import escape

KILLED = (
    "worker killed by signal 31 (Bad system call): a system call that its seccomp policy forbids"
)
# What a policy allows with such arguments, and what comes of it. Everything else kills.
ALLOWED = {
    "write_base": dict.fromkeys(escape.KINDS, "EBADF"),  # it was opened to be read
    "pwritev_base": {"io": "EBADF"},
    "grow_disk": {"io": "EFBIG"},  # RLIMIT_FSIZE
    "sendmsg_named": {"io": "EISCONN"},
    "receive_rights": {"io": "1"},  # see ALONE
    "receive_rights_room": {"io": "1"},  # see ALONE
    "tgkill_other": {"main": "ESRCH"},  # PID namespace
    "map_much": {"main": "ENOMEM"},  # RLIMIT_AS
    "kvm_run": {"vcpu": "EINVAL"},  # of a descriptor that is no vCPU's
    "kvm_get_regs": {"main": "EINVAL"},  # the same
}

# ---- without seccomp ----

# "|": by the kernel's build and settings. ENOSYS and EAFNOSUPPORT: it is without all that.
NO_PATH, EMPTY_ROOT = "ENOENT", "EROFS"
NO_CAPABILITY = "EPERM"
OTHER_PID_NAMESPACE = "ESRCH"
STOPPED = {
    **dict.fromkeys(("open_file", "openat_file", "openat2_file", "open_process"), NO_PATH),
    **dict.fromkeys(("open_device", "read_link", "execve", "connect_path", "name_disk"), NO_PATH),
    **dict.fromkeys(("create_file", "create_unnamed", "make_directory"), EMPTY_ROOT),
    **dict.fromkeys(("make_device", "make_symlink"), EMPTY_ROOT),
    **dict.fromkeys(("chroot", "pivot_root", "mount", "umount", "open_tree"), NO_CAPABILITY),
    **dict.fromkeys(("fsopen", "move_mount", "mount_setattr", "unshare_mount"), NO_CAPABILITY),
    **dict.fromkeys(("unshare_net", "setns", "socket_raw", "raise_loopback"), NO_CAPABILITY),
    **dict.fromkeys(("open_handle", "prlimit_files", "prlimit_processes"), NO_CAPABILITY),
    **dict.fromkeys(("scheduler", "setgroups", "capset", "ambient", "securebits"), NO_CAPABILITY),
    **dict.fromkeys(("reboot", "swapon", "sethostname", "settimeofday"), NO_CAPABILITY),
    "syslog": NO_CAPABILITY,
    **dict.fromkeys(("userfaultfd", "bpf"), "EPERM|ENOSYS"),
    **dict.fromkeys(("iopl", "ioperm", "kexec_load", "kexec_file_load"), "EPERM|ENOSYS"),
    **dict.fromkeys(("init_module", "finit_module", "delete_module"), "EPERM|ENOSYS"),
    **dict.fromkeys(("acct", "fanotify_init"), "EPERM|ENOSYS"),
    "socket_packet": "EPERM|EAFNOSUPPORT",
    "perf_event_open": "EACCES|ENOSYS",
    "priority": "EACCES",
    **dict.fromkeys(("kill_host", "kill_all", "tgkill_host", "tgkill_other"), OTHER_PID_NAMESPACE),
    **dict.fromkeys(("tkill_host", "sigqueue_host", "own_host", "ptrace"), OTHER_PID_NAMESPACE),
    **dict.fromkeys(("process_vm_readv", "process_vm_writev"), OTHER_PID_NAMESPACE),
    **dict.fromkeys(("pidfd_open", "prlimit_host", "affinity_host"), OTHER_PID_NAMESPACE),
    **dict.fromkeys(("kcmp", "migrate_host"), "ESRCH|ENOSYS"),
    "pidfd_getfd": "EBADF",  # nobody's pidfd is to be had
    "pidfd_signal": "EBADF",
    "shm_host": "ENOENT",  # IPC namespace
    "tiocsti": "ENOTTY",  # --console's terminal is the caller's, who copies to it
    "connect_abstract": "ECONNREFUSED",  # network namespace
    "unshare_user": "EINVAL",  # it has threads
    "execveat_disk": "EACCES",  # it is nobody's program
    "write_base": "EBADF",
    "pwritev_base": "EBADF",
    "new_privileges": "EINVAL",
    "grow_disk": "EFBIG",  # RLIMIT_FSIZE
    "map_much": "ENOMEM",  # RLIMIT_AS
    "mlock": "EPERM",  # RLIMIT_MEMLOCK
    "mlockall": "EPERM",
    **dict.fromkeys(("accept", "listen"), "EINVAL"),  # a pair's end is connected
    **dict.fromkeys(("sendmsg_named", "sendto_named"), "EISCONN"),
    "x32": "ENOSYS|1",
    "no_such_call": "ENOSYS",
}

# Only seccomp is in the way of these.
EXECUTES = "who can call this runs code of his own already"
OWN = "it is about the worker's own threads"
GUEST = "what it has of KVM is one guest and its memory, which are the guest's anyway"
ALONE = {
    "handle_of_disk": ("0|EOPNOTSUPP", "the number opens nothing: see open_handle"),
    "lock_base": ("0", "whoever has a file open may lock it; the disk cache's locks are another's"),
    "execute_memory": ("ENOEXEC", EXECUTES),  # an empty program
    "personality": ("0", EXECUTES),
    "map_executable": ("0", EXECUTES),
    "map_disk": ("0", EXECUTES),
    "mprotect": ("0", EXECUTES),
    "pkey_mprotect": ("0|ENOSYS", EXECUTES),
    "shmat_executable": ("0", EXECUTES),
    "modify_ldt": ("0|ENOSYS", EXECUTES),
    "memfd_create": ("0", "memory of the cgroup's, in a descriptor that NOFILE leaves for vsock"),
    "third_descriptor": ("0", "NOFILE leaves as many as vsock has connections"),
    "io_uring_setup": ("ENOMEM|EPERM|ENOSYS|0", "no capability; MEMLOCK where rings are counted"),
    "dumpable": ("0", OWN),
    "pdeathsig": ("0", "the end of file on its sockets ends it as well"),
    "prctl_seccomp": ("EFAULT", "a filter more takes rights, and gives none"),
    "seccomp": ("EFAULT", "the same"),
    "add_key": ("0|ENOSYS", OWN),
    "find_key": ("0|ENOSYS", "the session's keyring is the caller's: KEYCTL_JOIN_SESSION_KEYRING"),
    "socket_netlink": ("0", "of its own network namespace, without capabilities"),
    "socket_vsock": ("0|EAFNOSUPPORT|EACCES", "vsock has no namespaces"),
    "socket_alg": ("0|EAFNOSUPPORT", "the kernel's ciphers, for anybody"),
    "kill_group": ("0", "the process group is its own"),
    "kvm_run": ("EINVAL", GUEST),
    "kvm_get_regs": ("EINVAL", GUEST),
    "kvm_create_vm": ("0", GUEST + "; another guest's as well"),
    "kvm_create_vcpu": ("EEXIST", GUEST),
    "kvm_set_memory": ("EINVAL", GUEST),
    "kvm_irq_line": ("0", GUEST),
    "int80": ("ENOSYS", "not tried: the same calls by another way"),
    "receive_rights": ("1", "who sends descriptors is the caller, and only vsock's connections"),
    "receive_rights_room": ("1", "the same"),
}

LANDLOCK_CREATE_RULESET = 444
KVM_THREAD = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 14)
THREADS = dict.fromkeys(("pyvmm-worker", "io", "vcpu00"), "2") | (
    {"kvm-nx-lpage-re": "0"} if KVM_THREAD else {}  # the kernel's own, which never leaves it
)
"""And whether a seccomp filter is on them (proc_pid_status(5))."""
ROOT, NOBODY = "root", "nobody"


def landlock() -> int:
    """The version of its ABI here, or less than 1."""
    return ctypes.CDLL(None).syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)


def expected(who: str) -> dict[str, str]:
    """What comes of each attempt when seccomp is off."""
    abi = landlock()
    connected = "EACCES" if abi >= 4 else "ENETUNREACH"
    return {
        **STOPPED,
        **{name: result for name, (result, _) in ALONE.items()},
        **dict.fromkeys(("fork", "vfork", "clone", "clone3"), "EAGAIN"),
        "open_root": "EACCES" if abi > 0 else "0",  # an empty directory
        "connect_inet": connected,
        "connect_inet6": f"{connected}|EADDRNOTAVAIL|EAFNOSUPPORT",
        # Without root it has no name in its own user namespace.
        "clone_user": "EAGAIN" if who == ROOT else "EPERM",
        **dict.fromkeys(("setuid", "setresuid", "setgid"), "EPERM" if who == ROOT else "EINVAL"),
        "mode_of_base": "EPERM" if who == ROOT else "0",  # the file is the user's own
        # Of kill_group, by us: a worker of the same user without Landlock's scopes.
        "signals": "0",
    }


# ---- runs ----


def status(path: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in (path / "status").read_text().splitlines())
    return {name: value.strip() for name, _, value in lines}


def threads(proc: Path) -> dict[str, dict[str, str]]:
    """The status of each, by its name."""
    return {(task / "comm").read_text().strip(): status(task) for task in (proc / "task").iterdir()}


@dataclass
class Runner:
    """escape.py as root, or as a user without rights."""

    place: Path
    """For what escape.make() makes, and each run's own files."""
    mounts: Path
    """Where mount points may be, in a mount namespace of their own."""

    def command(self, who: str, *words: str) -> list[str]:
        scratch = Path(tempfile.mkdtemp(dir=self.place))
        line = [sys.executable, str(Path(escape.__file__)), str(self.place), str(scratch), *words]
        if who == ROOT:
            return line
        if os.geteuid():
            return line
        os.chown(scratch, escape.NOBODY, escape.NOBODY)
        reachable = [escape.ROOT, Path(sys.prefix), Path(sys.base_prefix), self.place]
        mounts = Path(tempfile.mkdtemp(dir=self.mounts))
        mounts.chmod(0o755)
        return escape.as_nobody(line, reachable, mounts)

    def trial(self, who: str, mode: str) -> dict[str, dict[str, str]]:
        """What came of each attempt, for each kind of thread."""
        running = [
            subprocess.Popen(
                self.command(who, mode, kind),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for kind in escape.KINDS
        ]
        # Most of their time they wait for KVM, each for itself.
        said = [process.communicate(timeout=1200)[0] for process in running]
        assert [process.returncode for process in running] == [0, 0, 0], said
        return dict(zip(escape.KINDS, map(json.loads, said), strict=True))

    @contextmanager
    def held(self, who: str) -> Iterator[Path]:
        """The directory in /proc of a worker whose guest waits."""
        process = subprocess.Popen(
            self.command(who, "hold"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process:
            assert process.stdout
            proc = Path(f"/proc/{process.stdout.readline().strip()}")
            deadline = time.monotonic() + escape.LIMIT
            while {name: t["Seccomp"] for name, t in threads(proc).items()} != THREADS:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield proc


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm: not to be had")
    place = tmp_path_factory.mktemp("escape")
    place.chmod(0o755)
    escape.make(place)
    with tempfile.TemporaryDirectory(dir="/tmp") as mounts:  # where everybody may go
        os.chmod(mounts, 0o755)
        yield Runner(place, Path(mounts))


@pytest.fixture(scope="module", params=[ROOT, NOBODY])
def who(request: pytest.FixtureRequest) -> str:
    if request.param == ROOT and os.geteuid():
        pytest.skip("needs root")
    return str(request.param)


@pytest.fixture(scope="module")
def with_seccomp(runner: Runner) -> dict[str, dict[str, str]]:
    return runner.trial(NOBODY if os.geteuid() else ROOT, "seccomp")


@pytest.fixture(scope="module")
def without_seccomp(runner: Runner, who: str) -> dict[str, dict[str, str]]:
    return runner.trial(who, "beside")


@pytest.mark.parametrize("kind", escape.KINDS)
def test_all_walls(with_seccomp: dict[str, dict[str, str]], kind: str) -> None:
    found = with_seccomp[kind]
    assert found == {name: ALLOWED.get(name, {}).get(kind, KILLED) for name in found}
    assert len(found) == len(expected(ROOT)) - 1  # but for "signals"


@pytest.mark.parametrize("kind", escape.KINDS)
def test_each_wall_alone(without_seccomp: dict[str, dict[str, str]], who: str, kind: str) -> None:
    found, want = without_seccomp[kind], expected(who)
    assert found.keys() == want.keys()
    allowed = {name: want[name] for name in want if found[name] not in want[name].split("|")}
    assert {name: found[name] for name in allowed} == allowed == {}


# ---- from outside ----


@pytest.fixture(scope="module")
def proc(runner: Runner, who: str) -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("needs root, to look at a process that cannot be dumped")
    with runner.held(who) as directory:
        yield directory


def test_every_thread_has_no_rights(proc: Path, who: str) -> None:
    for facts in threads(proc).values():
        assert {facts[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        filters = "0" if facts["Name"] == "kvm-nx-lpage-re" else "1"
        assert (facts["NoNewPrivs"], facts["Seccomp_filters"]) == ("1", filters)
        assert (facts["Groups"], facts["TracerPid"]) == ("", "0")
        ids = {*facts["Uid"].split(), *facts["Gid"].split()}
        assert len(ids) == 1
        (number,) = map(int, ids)
        if who == ROOT:
            assert UNUSED_ID <= number < UNUSED_ID + (1 << 24)
        else:
            assert number == escape.NOBODY


def test_it_cannot_be_dumped(proc: Path) -> None:
    assert (proc / "mem").stat().st_uid == 0


def test_limits(proc: Path) -> None:
    files = 4096 + 2 + len(os.listdir(proc / "fd"))
    files = min(files, resource.getrlimit(resource.RLIMIT_NOFILE)[1])  # what there was before
    lines = (proc / "limits").read_text().splitlines()[1:]
    found = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    exact = {
        "Max file size": 16 << 20, "Max core file size": 0, "Max processes": 0,
        "Max open files": files, "Max locked memory": 0,
    }  # fmt: skip
    assert {name: found[name] for name in exact} == {
        name: [str(limit)] * 2 for name, limit in exact.items()
    }
    soft, hard = map(int, found["Max address space"])
    mapped = int(status(proc)["VmSize"].split()[0]) << 10
    assert soft == hard
    assert mapped < soft <= mapped + SPARE + (1 << 20)


def test_namespaces(proc: Path, who: str) -> None:
    other = {
        path.name
        for path in (proc / "ns").iterdir()
        if os.readlink(path) != os.readlink(f"/proc/self/ns/{path.name}")
    }
    theirs = {"cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "uts"}
    assert other == theirs | ({"user"} if who == NOBODY else set())
    assert status(proc)["NSpid"].split()[1:] == ["1"]


def test_nobody_else_in_its_namespaces(proc: Path) -> None:
    assert status(proc)["NSpid"].split()[0] == proc.name
    pid = os.readlink(proc / "ns/pid")
    inside = []
    for other in Path("/proc").iterdir():
        if other.name.isdigit():
            with suppress(OSError):
                if os.readlink(other / "ns/pid") == pid:
                    inside.append(other.name)
    assert inside == [proc.name]


def test_root_directory(proc: Path) -> None:
    assert os.listdir(proc / "root") == []
    assert os.readlink(proc / "cwd") == "/"
    (mount,) = (proc / "mountinfo").read_text().splitlines()
    fields = mount.split()
    assert fields[3:8] == ["/", "/", "ro,nosuid,nodev,noexec,relatime", "-", "tmpfs"]
    assert fields[9].startswith("ro,size=4k,nr_inodes=1,mode=555")


def test_descriptors(proc: Path) -> None:
    found: dict[str, int] = {}
    for fd in (proc / "fd").iterdir():
        target = os.readlink(fd)
        name = target.partition(":[")[0] if target.startswith("socket") else target
        if name.startswith("/") and not name.startswith(("/dev", "/memfd")):
            name = {"place": "overlay"}.get(name, Path(name).suffix or "kernel")
            if target.endswith("(deleted)"):
                name = "overlay"
        found[name] = found.get(name, 0) + 1
    assert found == {
        "/dev/null": 1,
        "/memfd:pyvmm-worker-log (deleted)": 2,
        "/memfd:pyvmm-console (deleted)": 1,
        "socket": 3,  # control, results, vsock's switch
        "/dev/kvm": 1,
        "anon_inode:kvm-vm": 1,
        "anon_inode:kvm-vcpu:0": 1,
        "anon_inode:kvm-vcpu-stats:0": 1,
        "anon_inode:[eventpoll]": 1,
        "anon_inode:[eventfd]": 12,
        ".ext4": 1,
        "overlay": 1,
    }


def test_no_environment(proc: Path) -> None:
    assert (proc / "environ").read_bytes() == b""


def test_no_memory_is_for_writing_and_executing(proc: Path) -> None:
    flags = {line.split()[1] for line in (proc / "maps").read_text().splitlines()}
    assert {f for f in flags if "w" in f and "x" in f} == set()


def test_it_dies_with_the_server(runner: Runner, who: str) -> None:
    if os.geteuid():
        pytest.skip("needs root, to look at a process that cannot be dumped")
    with runner.held(who) as proc:
        worker = os.pidfd_open(int(proc.name))
        server = int(status(proc)["PPid"])
        assert (Path(f"/proc/{server}/comm")).read_text() == "pyvmm-server\n"
        os.kill(server, signal.SIGKILL)
        ended = select.poll()
        ended.register(worker)
        assert ended.poll(60_000) == [(worker, select.POLLIN)]
        os.close(worker)
