"""The jail around real runs: for root, for nobody, where a host lacks something, and without it.

What a worker can do inside of it is tests/kvm/test_escape.py's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import EVENT_LIMIT, IMAGES, Done, Host, command

import pyvmm
from pyvmm import delegation, kernel

NOBODY = 65534
CGROUPS = Path("/sys/fs/cgroup")
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
LIMITS = "AS, FSIZE, NOFILE, NPROC, CORE, MEMLOCK"
NAMESPACES = "mount, network, PID, IPC, UTS, cgroup"
OFF = "or do without the walls around the monitor (--jail=off)"
WARNING = (
    b"pyvmm: warning: --jail=off: a guest that breaks out of the monitor has all your rights\n"
)


def landlock() -> str:
    """As this host has it, by the doctor, who tries."""
    said = subprocess.run([command(), "doctor"], check=False, capture_output=True, text=True).stdout
    found = re.search(r"wall: landlock: (.*)", said)
    assert found
    return found[1]


def cgroup() -> str:
    _, reason = delegation.find()
    return f"none: {reason}" if reason else "memory, pids, cpu"


def test_walls_of_root() -> None:
    if os.geteuid():
        pytest.skip("not root: test_walls_of_nobody has what there is")
    walls = pyvmm.run(IMAGES / "shell", ["true"], kernel="minimal").walls
    assert re.fullmatch(r"20[456]\d{7}, no capabilities", walls.pop("user"))
    assert walls == {
        "namespaces": NAMESPACES,
        "root": "empty, read-only",
        "landlock": landlock(),
        "seccomp": "main, io, vcpu",
        "rlimits": LIMITS,
        "cgroup": cgroup(),
    }


def test_without_walls(host: Host) -> None:
    done = host.run("echo", "hello", kernel="minimal", jail="off")
    done.check(0, b"hello\n", WARNING)
    assert pyvmm.run(IMAGES / "shell", ["true"], kernel="minimal", jail="off").walls == {
        "jail": "off"
    }


def test_a_jail_is_on_or_off() -> None:
    with pytest.raises(pyvmm.UsageError, match=r"^jail 'of': must be on or off$"):
        pyvmm.run(IMAGES / "shell", ["true"], jail="of")  # type: ignore[arg-type]
    text = "^a cgroup and a disk rate need the jail: leave out --jail=off$"
    with pytest.raises(pyvmm.UsageError, match=text):
        pyvmm.run(IMAGES / "shell", ["true"], jail="off", disk_rate="1M")


# ---- as nobody ----


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of nobody's, with a kernel, and /dev/kvm for everybody."""
    directory = Path(tempfile.mkdtemp(prefix="pyvmm-nobody-"))
    directory.chmod(0o755)
    shutil.copy(kernel.find("minimal").path, directory / "vmlinux")
    (directory / "home").mkdir()
    os.chown(directory / "home", NOBODY, NOBODY)
    mode = os.stat("/dev/kvm").st_mode
    os.chmod("/dev/kvm", 0o666)
    yield directory
    os.chmod("/dev/kvm", mode)
    shutil.rmtree(directory)


def as_nobody(place: Path, *words: str) -> Done:
    environment = {
        "HOME": str(place / "home"), "XDG_CACHE_HOME": str(place / "home"),
        "TMPDIR": str(place / "home"), "PATH": os.environ["PATH"],
    }  # fmt: skip
    line = [command(), "run", "--image", str(IMAGES / "shell"), "--kernel", str(place / "vmlinux")]
    done = subprocess.run(
        [*line, *words], check=False, capture_output=True, env=environment,
        user=NOBODY, group=NOBODY, extra_groups=[],
    )  # fmt: skip
    if b"ermission denied" in done.stderr and b"pyvmm" not in done.stderr:
        pytest.skip("nobody cannot read this pyvmm")
    progress = b"(pyvmm: (layer|writing|unpacking|initramfs)[^\n]*\n)*"
    return Done(done.returncode, done.stdout, re.sub(b"^" + progress, b"", done.stderr))


def sysctl(name: str, value: str) -> Iterator[None]:
    path = Path("/proc/sys", name)
    if not path.exists():
        pytest.skip(f"this kernel has no sysctl {name}")
    before = path.read_text()
    path.write_text(value)
    yield
    path.write_text(before)


@pytest.fixture
def no_namespaces() -> Iterator[None]:
    yield from sysctl("user/max_user_namespaces", "0")


@pytest.fixture
def no_permission() -> Iterator[None]:
    yield from sysctl("kernel/unprivileged_userns_clone", "0")


@ROOT_ONLY
def test_walls_of_nobody(place: Path) -> None:
    done = as_nobody(place, "--json", "-", "--", "echo", "hello")
    assert (done.code, done.err) == (0, b"")
    result = json.loads(done.out)
    assert result["stdout"] == "hello\n"
    assert re.fullmatch("none: .*", result["walls"].pop("cgroup"))
    assert result["walls"] == {
        "namespaces": f"{NAMESPACES}, user",
        "root": "empty, read-only",
        "user": "no capabilities",
        "landlock": landlock(),
        "seccomp": "main, io, vcpu",
        "rlimits": LIMITS,
    }


@ROOT_ONLY
@pytest.mark.usefixtures("no_namespaces")
def test_a_host_with_no_more_namespaces(place: Path) -> None:
    as_nobody(place, "--", "true").check(
        125, b"",
        b"pyvmm: cannot start a process for the VM, in namespaces of its own: No space left on "
        b"device: raise the sysctls user.max_*_namespaces, " + OFF.encode() + b"\n",
    )  # fmt: skip
    as_nobody(place, "--jail", "off", "--", "echo", "hello").check(0, b"hello\n", WARNING)


@ROOT_ONLY
@pytest.mark.usefixtures("no_permission")
def test_a_host_that_keeps_namespaces_from_users(place: Path) -> None:
    as_nobody(place, "--", "true").check(
        125, b"",
        b"pyvmm: cannot start a process for the VM, in namespaces of its own: Operation not "
        b"permitted: allow user namespaces (sysctls kernel.unprivileged_userns_clone=1, "
        b"kernel.apparmor_restrict_unprivileged_userns=0; a container's seccomp profile), "
        + OFF.encode() + b"\n",
    )  # fmt: skip


@ROOT_ONLY
@pytest.mark.skipif(bool(delegation.find()[1]), reason=f"here: {delegation.find()[1]}")
def test_a_delegated_cgroup(place: Path) -> None:
    """A user's, with the user in a leaf of it: as systemd delegates."""
    slice_ = CGROUPS / "test-delegated"
    leaf = slice_ / "leaf"
    leaf.mkdir(parents=True)
    (CGROUPS / "cgroup.subtree_control").write_text("+memory +pids +cpu")
    (slice_ / "cgroup.subtree_control").write_text("+memory +pids +cpu")
    for path in (slice_, leaf, slice_ / "cgroup.procs", leaf / "cgroup.procs",
                 slice_ / "cgroup.subtree_control"):  # fmt: skip
        os.chown(path, NOBODY, NOBODY)
    ours = (CGROUPS / Path("/proc/self/cgroup").read_text().split("::/")[1].strip()).resolve()
    (leaf / "cgroup.procs").write_text(str(os.getpid()))
    try:
        done = as_nobody(place, "--json", "-", "--", "true")
    finally:
        (ours / "cgroup.procs").write_text(str(os.getpid()))
        # The command is over before its server is, which takes the worker down.
        deadline = time.monotonic() + EVENT_LIMIT
        while (leaf / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        left = sorted(path.name for path in slice_.iterdir() if path.is_dir())
        leaf.rmdir()
        slice_.rmdir()
    assert (done.code, done.err) == (0, b"")
    assert json.loads(done.out)["walls"]["cgroup"] == "memory, pids, cpu"
    assert left == ["leaf"]


@ROOT_ONLY
def test_a_cgroup_that_is_not_there(host: Host) -> None:
    if delegation.find()[1]:
        pytest.skip(f"here: {delegation.find()[1]}")
    host.run("true", kernel="minimal", cgroup="no/such").check(
        125, b"",
        b"pyvmm: cgroup no/such: /sys/fs/cgroup/no/such: No such file or directory: name one that "
        b"this user may write, and that has no processes of its own (--cgroup)\n",
    )  # fmt: skip
