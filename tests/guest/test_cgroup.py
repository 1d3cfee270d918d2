"""Real cgroups, with plain processes: limits as the kernel took them, what happens at them, what is
left. They need root and a cgroup2 with the memory controller, as in the kvmbox.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm import cgroup, footprint
from pyvmm.cgroup import Cgroup
from pyvmm.errors import HostError

ROOT = Path("/sys/fs/cgroup")
MiB = 1 << 20
NOBODY = 65534
SYS_CLONE3, CLONE_INTO_CGROUP = 435, 0x200000000
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUSER, CLONE_NEWPID = (
    0x20000, 0x2000000, 0x10000000, 0x20000000,
)  # fmt: skip
MNT_DETACH = 2
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 1 << 14, 1 << 18

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists(ROOT / "memory.stat"),
    reason="needs root, and the topmost cgroup2 at /sys/fs/cgroup",
)


def ours() -> list[str]:
    return sorted(p.name for p in ROOT.glob("pyvmm-*"))


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    assert ours() == []
    yield
    assert ours() == []


@pytest.fixture
def group() -> Iterator[Cgroup]:
    made = Cgroup()
    assert made.reason == ""
    yield made
    made.close()


def read(group: Cgroup, name: str) -> str:
    return Path(group.path, name).read_text()


def events(group: Cgroup, name: str) -> dict[str, int]:
    return {k: int(v) for k, v in (line.split() for line in read(group, name).splitlines())}


def born_in(fd: int, function: Callable[[], int], flags: int = 0) -> int:
    """Fork a child that is in the cgroup from its first instruction; it exits with the number."""
    # struct clone_args (VER2): flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size,
    # tls, set_tid, set_tid_size, cgroup
    args = struct.pack(
        "<11Q", CLONE_INTO_CGROUP | flags, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, fd
    )
    libc = ctypes.PyDLL(None, use_errno=True)  # with Python's lock, which the child needs
    pid = int(libc.syscall(SYS_CLONE3, args, len(args)))
    if pid == 0:
        leave_with(function)
    if pid < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return pid


def child(function: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        leave_with(function)
    return pid


def leave_with(function: Callable[[], int]) -> None:
    code = 99
    try:
        code = function()
    except BaseException as e:
        os.write(2, f"{type(e).__name__}: {e}\n".encode())
    os._exit(code)


def status(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


def sleep() -> int:
    time.sleep(600)
    return 0


def exited(code: int) -> int:
    return code << 8


def refusal(name: str, why: str) -> str:
    return (
        f"cgroup {name}: {why}: name one that this user may write, "
        "and that has no processes of its own (--cgroup)"
    )


# ---- limits ----


def test_every_limit_is_what_was_written(group: Cgroup) -> None:
    group.limit(memory=123 * MiB, pids=5, cpus=3, cpuset="0")
    files = (
        "memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "cpuset.cpus",
    )  # fmt: skip
    assert [read(group, name) for name in files] == [
        f"{123 * MiB}\n", "0\n", "1\n", "5\n", "300000 100000\n", "0\n",
    ]  # fmt: skip
    assert (group.notes, group.reason) == ([], "")
    assert Path(group.path).parent == ROOT
    assert os.stat(group.path).st_mode & 0o777 == 0o700


def test_what_is_not_named_stays(group: Cgroup) -> None:
    group.limit(pids=7)
    group.limit(memory=64 * MiB)
    assert [read(group, name) for name in ("pids.max", "memory.max")] == ["7\n", f"{64 * MiB}\n"]
    assert read(group, "cpu.max") == "max 100000\n"


def test_a_child_is_born_in_it(group: Cgroup) -> None:
    def look() -> int:
        return int(Path("/proc/self/cgroup").read_text() != f"0::/{Path(group.path).name}\n")

    assert status(born_in(group.fd, look)) == exited(0)


def test_beyond_memory_max_all_of_it_is_killed(group: Cgroup) -> None:
    group.limit(memory=24 * MiB, pids=5)
    beside = born_in(group.fd, sleep)

    def eat() -> int:
        return len(bytearray(b"x") * (64 * MiB))

    assert status(born_in(group.fd, eat)) == signal.SIGKILL
    assert status(beside) == signal.SIGKILL
    assert events(group, "memory.events")["oom_group_kill"] == 1


def test_below_memory_max_nothing_is(group: Cgroup) -> None:
    group.limit(memory=96 * MiB)

    def eat() -> int:
        return int(len(bytearray(b"x") * (32 * MiB)) != 32 * MiB)

    assert status(born_in(group.fd, eat)) == exited(0)
    assert events(group, "memory.events")["max"] == 0


def test_a_fork_bomb_stops_at_pids_max(group: Cgroup) -> None:
    group.limit(memory=64 * MiB, pids=6)

    def bomb() -> int:
        for count in range(100):
            try:
                child(sleep)
            except OSError as e:
                return count if e.errno == errno.EAGAIN else 98
        return 97

    assert status(born_in(group.fd, bomb)) == exited(5)
    assert events(group, "pids.events") == {"max": 1}
    assert read(group, "pids.current") == "5\n"


def test_pids_limit_threads_of_a_child_that_was_there_before(group: Cgroup) -> None:
    """The worker is born first, and the limits come when the run is known."""
    told, tell = os.pipe()

    def bomb() -> int:
        os.read(told, 1)
        try:
            child(sleep)
        except OSError as e:
            return e.errno or 98
        return 97

    pid = born_in(group.fd, bomb)
    group.limit(pids=1)
    os.write(tell, b"!")
    os.close(tell)
    os.close(told)
    assert status(pid) == exited(errno.EAGAIN)


def test_cpu_time(group: Cgroup) -> None:
    group.limit(cpus=1)
    assert read(group, "cpu.max") == "100000 100000\n"


def test_a_cpu_that_is_not_there_is_noted(group: Cgroup) -> None:
    group.limit(cpuset="1000000")
    assert group.notes == ["no cpuset.cpus: 1000000: Numerical result out of range"]


# ---- the disk's rate ----


def test_disk_rate_is_of_the_whole_disk(group: Cgroup) -> None:
    disk = os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR)
    try:
        device = os.fstat(disk).st_dev
        group.limit(disk_rate=(8 * MiB, [disk, disk]))
    finally:
        os.close(disk)
    name = f"{os.major(device)}:{os.minor(device)}"
    assert read(group, "io.max") == f"{name} rbps={8 * MiB} wbps={8 * MiB} riops=max wiops=max\n"


def test_disk_rate_of_what_is_no_disk(group: Cgroup) -> None:
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    try:
        minor = os.minor(os.fstat(fd).st_dev)
        with pytest.raises(HostError) as caught:
            group.limit(disk_rate=(MiB, [fd]))
        assert footprint.is_on_tmpfs(fd)
    finally:
        os.close(fd)
    assert str(caught.value) == (
        f"disk rate: device 0:{minor} is a file system without one disk, as tmpfs or btrfs "
        "(set TMPDIR and XDG_CACHE_HOME to directories of another)"
    )


def test_other_file_systems_are_not_tmpfs() -> None:
    fd = os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR)
    assert not footprint.is_on_tmpfs(fd)
    os.close(fd)


# ---- the end ----


def busy(group: Cgroup) -> list[int]:
    """Two children in it, one of which has a child in it, too."""
    told, tell = os.pipe()

    def parent() -> int:
        child(sleep)
        os.write(tell, b"!")
        return sleep()

    pids = [born_in(group.fd, parent), born_in(group.fd, sleep)]
    os.read(told, 1)
    os.close(told)
    os.close(tell)
    assert len(read(group, "cgroup.procs").split()) == 3
    return pids


@pytest.mark.parametrize("kill", ["cgroup.kill", "cgroup.kill-that-is-not-there"])
def test_close_kills_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, kill: str) -> None:
    monkeypatch.setattr(cgroup, "KILL", kill)
    group = Cgroup()
    pids = busy(group)
    before = len(os.listdir("/proc/self/fd"))
    group.close()
    assert not os.path.exists(group.path)
    assert [status(pid) for pid in pids] == [signal.SIGKILL] * 2
    assert len(os.listdir("/proc/self/fd")) == before - 1
    group.close()  # again


def test_what_does_not_go_in_time_is_told(group: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process in a system call that cannot be interrupted: here, one that is not killed."""
    pid = born_in(group.fd, sleep)
    with monkeypatch.context() as patch:
        patch.setattr(cgroup, "_kill", lambda path, seconds: seconds)
        begin = time.monotonic()
        assert not cgroup.remove(group.path, 0.5)
        assert 0.5 <= time.monotonic() - begin < 30
    assert cgroup.remove(group.path, 60)
    assert status(pid) == signal.SIGKILL


def test_the_server_removes_what_was_let_go() -> None:
    group = Cgroup()
    pid = born_in(group.fd, closed_sleep)
    before = len(os.listdir("/proc/self/fd"))
    group.let_go()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    assert cgroup.remove(group.path)
    assert status(pid) == signal.SIGKILL
    assert cgroup.remove(group.path)  # again
    group.close()


@pytest.mark.parametrize("kill", ["cgroup.kill", "cgroup.kill-that-is-not-there"])
def test_two_remove_at_once(monkeypatch: pytest.MonkeyPatch, kill: str) -> None:
    """A killed caller's server, and a sweeper."""
    monkeypatch.setattr(cgroup, "KILL", kill)
    group = Cgroup()
    pid = born_in(group.fd, closed_sleep)
    real = cgroup._kill

    def slow_kill(path: str, seconds: float) -> float:
        monkeypatch.setattr(cgroup, "_kill", real)
        assert cgroup.remove(path)
        return real(path, seconds)

    monkeypatch.setattr(cgroup, "_kill", slow_kill)
    assert cgroup.remove(group.path)
    assert status(pid) == signal.SIGKILL
    group.close()


# ---- dead callers ----


def start_caller() -> tuple[int, str, int]:
    """A process that has a cgroup with a process in it: its pid, the path, and the inmate's pid."""
    told, tell = os.pipe()

    def caller() -> int:
        group = Cgroup()
        inmate = born_in(group.fd, closed_sleep)
        while len(os.listdir(f"/proc/{inmate}/fd")) > 3:  # the lock is not yet the caller's alone
            time.sleep(0.01)
        os.write(tell, f"{group.path} {inmate}".encode())
        return sleep()

    pid = child(caller)
    os.close(tell)
    path, inmate = os.read(told, 4096).decode().split()
    os.close(told)
    return pid, path, int(inmate)


def closed_sleep() -> int:
    os.closerange(3, 1000)  # as a worker: the lock is its caller's alone
    return sleep()


def test_a_sweeper_takes_the_dead_and_leaves_the_living(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "SWEEP_GRACE", 60.0)
    dead, dead_path, inmate = start_caller()
    living, path, _ = start_caller()
    os.kill(dead, signal.SIGKILL)
    assert status(dead) == signal.SIGKILL
    # They sweep, too: what was killed is swept once only, and the living two are left.
    assert Path(dead_path, "cgroup.procs").read_text() == f"{inmate}\n"
    group = Cgroup()
    try:
        assert not os.path.exists(dead_path)
        assert ours() == sorted([Path(path).name, Path(group.path).name])
        assert len(Path(path, "cgroup.procs").read_text().split()) == 1
    finally:
        os.kill(living, signal.SIGKILL)
        status(living)
        cgroup.sweep(str(ROOT))
        assert ours() == [Path(group.path).name]  # our own is locked, too
        group.close()


def test_a_lock_that_a_sweeper_took_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our mkdir() and our lock: the directory is given up for another."""
    real = os.open
    lost: list[str] = []

    def slow_open(path: str, flags: int, *args: int, **kwargs: int) -> int:
        if cgroup.PREFIX in path and not lost:
            lost.append(path)
            cgroup.sweep(str(ROOT))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", slow_open)
    group = Cgroup()
    assert not os.path.exists(lost[0])
    assert ours() == [Path(group.path).name]
    group.close()


def test_locked_by_another_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    held: list[int] = []

    def slow_flock(fd: int, how: int) -> None:
        if not held:
            held.append(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
            real(held[0], how)
        real(fd, how)

    monkeypatch.setattr(cgroup, "flock", slow_flock)
    group = Cgroup()
    assert len(ours()) == 2
    os.close(held[0])
    cgroup.sweep(str(ROOT))
    assert ours() == [Path(group.path).name]
    group.close()


# ---- delegation ----


@pytest.fixture
def subtree() -> Iterator[Path]:
    """A cgroup that is the user nobody's, with a leaf for the process that is to make others."""
    top = ROOT / "delegated"
    (top / "leaf").mkdir(parents=True)
    for path in (top, top / "leaf"):
        for name in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
            os.chown(path / name, NOBODY, NOBODY)
    yield top
    cgroup.sweep(str(top))
    for path in (top / "leaf", top):
        path.rmdir()


def as_nobody(leaf: Path, function: Callable[[], None]) -> None:
    """Run it as nobody in the cgroup ``leaf``; what it raises is shown."""

    def run() -> int:
        (leaf / "cgroup.procs").write_text("0")
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        function()
        return 0

    assert status(child(run)) == exited(0)


def test_unprivileged_beside_its_own(subtree: Path) -> None:
    def make() -> None:
        group = Cgroup()
        assert group.reason == "", group.reason
        group.limit(memory=64 * MiB, pids=3, cpus=2)
        assert group.notes == [], group.notes
        assert Path(group.path).parent == subtree
        assert read(group, "memory.max") == f"{64 * MiB}\n"
        inmate = born_in(group.fd, sleep)
        assert read(group, "cgroup.procs") == f"{inmate}\n"
        group.close()
        assert status(inmate) == signal.SIGKILL
        assert not os.path.exists(group.path)

    # Its parents have the controllers on, itself not yet.
    for controller in ("memory", "pids", "cpu"):
        (ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
    as_nobody(subtree / "leaf", make)
    as_nobody(subtree / "leaf", make)


def test_unprivileged_with_namespaces(subtree: Path) -> None:
    """As a jailed worker is born: in a user namespace and a PID namespace of its own."""

    def make() -> None:
        group = Cgroup()
        flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWCGROUP
        inmate = born_in(group.fd, sleep, flags)
        assert read(group, "cgroup.procs") == f"{inmate}\n"
        group.close()
        assert status(inmate) == signal.SIGKILL
        assert not os.path.exists(group.path)

    as_nobody(subtree / "leaf", make)


def test_unprivileged_by_name(subtree: Path) -> None:
    def make() -> None:
        for name in (str(subtree), "delegated"):
            group = Cgroup(name)
            assert Path(group.path).parent == subtree
            group.close()

    as_nobody(subtree / "leaf", make)


def test_unprivileged_where_nothing_is_delegated(subtree: Path) -> None:
    def refused() -> None:
        group = Cgroup()
        assert (group.fd, group.path) == (-1, "")
        reason = group.reason
        assert reason == "no cgroup can be made beside this process's: it is the topmost", reason
        group.limit(memory=MiB, pids=1, cpus=1)
        group.close()

    def in_a_foreign_one() -> None:
        assert Cgroup().reason == f"{ROOT} is not delegated to this user", Cgroup().reason

    as_nobody(ROOT, refused)
    foreign = ROOT / "foreign"
    foreign.mkdir()
    as_nobody(foreign, in_a_foreign_one)
    foreign.rmdir()


def test_unprivileged_may_not_cross(subtree: Path) -> None:
    """One delegated to the user, and the user outside of it: the kernel would refuse the birth."""

    def refused() -> None:
        with pytest.raises(HostError) as caught:
            Cgroup("delegated")
        assert str(caught.value) == refusal("delegated", f"{ROOT} is not delegated to this user")

    as_nobody(ROOT, refused)


def test_controllers_that_the_parent_lacks(subtree: Path) -> None:
    """The inner one has memory only: the other limits are noted, or an error if it was named."""
    (subtree / "cgroup.subtree_control").write_text("+memory")
    inner = subtree / "inner"
    (inner / "leaf").mkdir(parents=True)
    for path in (inner, inner / "leaf"):
        for name in ("", "cgroup.procs", "cgroup.subtree_control"):
            os.chown(path / name, NOBODY, NOBODY)

    def make() -> None:
        group = Cgroup()
        group.limit(memory=64 * MiB, pids=3, cpus=2)
        assert Path(group.path).parent == inner
        assert read(group, "memory.max") == f"{64 * MiB}\n"
        assert group.notes == [
            f"no pids.max: {inner} has no pids controller",
            f"no cpu.max: {inner} has no cpu controller",
        ], group.notes
        group.close()
        group = Cgroup(str(inner))
        with pytest.raises(HostError) as caught:
            group.limit(cpus=2)
        group.close()
        assert str(caught.value) == (
            f"no cpu.max: {inner} has no cpu controller: name a parent that has it (--cgroup)"
        )

    as_nobody(inner / "leaf", make)
    (inner / "leaf").rmdir()
    inner.rmdir()


# ---- a container ----


@pytest.fixture
def container() -> Iterator[Path]:
    """What a container's cgroup is; in_container() makes it the topmost."""
    top = ROOT / "container"
    top.mkdir()
    (ROOT / "cgroup.subtree_control").write_text("+memory")
    yield top
    for path in (top / "init", top):
        if path.exists():
            path.rmdir()


def in_container(top: Path, function: Callable[[], None], flags: int = 0) -> None:
    """Run it as root where ``top`` is the root of a cgroup namespace and of /sys/fs/cgroup."""

    def run() -> int:
        (top / "cgroup.procs").write_text("0")
        libc = ctypes.CDLL(None)
        assert libc.unshare(CLONE_NEWNS | CLONE_NEWCGROUP) == 0
        assert libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None) == 0
        assert libc.umount2(os.fsencode(ROOT), MNT_DETACH) == 0
        arguments = (b"cgroup", os.fsencode(ROOT), b"cgroup2", ctypes.c_ulong(0), None)
        assert libc.mount(*arguments) == 0
        if flags:
            again = ctypes.c_ulong(MS_REMOUNT | MS_BIND | flags)
            assert libc.mount(None, os.fsencode(ROOT), None, again, None) == 0
        function()
        return 0

    assert status(child(run)) == exited(0)


def test_container_with_all_in_its_topmost(container: Path) -> None:
    def refused() -> None:
        group = Cgroup()
        assert group.reason == f"{ROOT} has processes of its own", group.reason

    in_container(container, refused)


def test_container_with_its_processes_in_a_leaf(container: Path) -> None:
    def make() -> None:
        (ROOT / "init").mkdir()
        (ROOT / "init/cgroup.procs").write_text("0")
        group = Cgroup()
        group.limit(memory=64 * MiB)
        assert Path(group.path).parent == ROOT
        inmate = born_in(group.fd, sleep)
        group.close()
        assert status(inmate) == signal.SIGKILL

    in_container(container, make)
    assert sorted(p.name for p in container.iterdir() if p.is_dir()) == ["init"]


def test_container_with_a_read_only_mount(container: Path) -> None:
    def refused() -> None:
        assert Cgroup().reason == f"{ROOT} is read-only", Cgroup().reason

    in_container(container, refused, MS_RDONLY)


# ---- parents that cannot be ----


def test_a_parent_with_processes_of_its_own() -> None:
    top = ROOT / "crowded"
    top.mkdir()
    pid = child(sleep)
    (top / "cgroup.procs").write_text(str(pid))
    with pytest.raises(HostError) as caught:
        Cgroup("crowded")
    assert str(caught.value) == refusal("crowded", f"{top} has processes of its own")
    os.kill(pid, signal.SIGKILL)
    status(pid)
    top.rmdir()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("absent", f"{ROOT}/absent: No such file or directory"),
        ("/tmp", f"not below {ROOT}"),
        ("../../../tmp", f"not below {ROOT}"),
    ],
)
def test_names_of_no_cgroup(name: str, why: str) -> None:
    with pytest.raises(HostError) as caught:
        Cgroup(name)
    assert str(caught.value) == refusal(name, why)
