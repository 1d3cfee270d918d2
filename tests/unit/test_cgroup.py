"""Where a cgroup can be made, in made-up trees; how much is allowed. Real ones: tests/guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pyvmm._core import lib

from pyvmm import cgroup, footprint
from pyvmm.delegation import find
from pyvmm.errors import HostError

MiB, GiB = 1 << 20, 1 << 30


class Host:
    """A made-up mount of cgroup2, and the process's own line of /proc/self/cgroup."""

    def __init__(self, place: Path) -> None:
        self.mount = place / "cgroup"
        self.own = place / "own"
        self.inside("/")

    def add(self, path: str, enabled: str = "cpu memory pids") -> str:
        directory = self.mount / path
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.controllers").write_text("cpu memory pids\n")
        (directory / "cgroup.subtree_control").write_text(f"{enabled}\n")
        (directory / "cgroup.procs").write_text("")
        return str(directory)

    def inside(self, path: str, before: str = "") -> None:
        self.own.write_text(f"{before}0::{path}\n")

    def find(self, where: str | None = None) -> tuple[str, str]:
        mounts = (str(self.mount / "absent"), str(self.mount))
        return find(where, mounts=mounts, own=str(self.own))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    made.add("")
    return made


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


# ---- where ----


def test_no_mount(tmp_path: Path) -> None:
    assert Host(tmp_path).find() == ("", "no cgroup2 here")


@pytest.mark.usefixtures("root")
def test_root_takes_the_mount(host: Host) -> None:
    host.inside("/system.slice/ci.service")
    assert host.find() == (str(host.mount), "")


@pytest.mark.usefixtures("root")
def test_the_memory_controller_is_switched_on(host: Host) -> None:
    host.add("", enabled="cpu")
    assert host.find() == (str(host.mount), "")
    # A real file takes it in; this one was written over.
    assert (host.mount / "cgroup.subtree_control").read_text().startswith("+memory")


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize("before", ["", "9:name=systemd:/x\n4:memory:/y\n"])
def test_a_user_takes_the_parent_of_their_own(host: Host, before: str) -> None:
    parent = host.add("user.slice/app.slice")
    host.inside("/user.slice/app.slice/run-1.scope", before)
    assert host.find() == (parent, "")


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize("own", ["0::/\n", "0::/../outside\n", "4:memory:/v1\n", ""])
def test_a_user_in_the_topmost(host: Host, own: str) -> None:
    host.own.write_text(own)
    assert host.find() == ("", "no cgroup can be made beside this process's: it is the topmost")


@pytest.mark.usefixtures("user")
def test_the_parent_is_outside_of_the_mount(host: Host) -> None:
    """As in a container whose mount begins at its own cgroup, without a cgroup namespace."""
    host.inside("/docker/1234")
    assert host.find() == ("", f"{host.mount}/docker: No such file or directory")


@pytest.mark.parametrize("name", ["a/b", "a/b/", "./a/../a/b", "{mount}/a/b"])
def test_named(host: Host, name: str) -> None:
    path = host.add("a/b")
    assert host.find(name.format(mount=host.mount)) == (path, "")


@pytest.mark.parametrize("name", ["..", "../cgroup2", "/tmp", "{mount}2/a"])
def test_named_outside(host: Host, name: str) -> None:
    assert host.find(name.format(mount=host.mount)) == ("", f"not below {host.mount}")


def test_named_absent(host: Host) -> None:
    assert host.find("a") == ("", f"{host.mount}/a: No such file or directory")


# ---- without one ----


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "find", lambda where: ("", "no cgroup2 here"))


@pytest.mark.usefixtures("nowhere")
def test_without_one_nothing_is_done() -> None:
    group = cgroup.Cgroup()
    group.limit(memory=MiB, pids=1, cpus=1, cpuset="0")
    group.close()
    assert (group.fd, group.reason, group.notes) == (-1, "no cgroup2 here", [])


@pytest.mark.usefixtures("nowhere")
def test_what_was_asked_for_by_name_is_an_error() -> None:
    with pytest.raises(HostError) as caught:
        cgroup.Cgroup().limit(disk_rate=(MiB, []))
    assert str(caught.value) == "a disk rate needs a cgroup: no cgroup2 here (--cgroup)"
    with pytest.raises(HostError) as caught:
        cgroup.Cgroup("a")
    assert str(caught.value) == (
        "cgroup a: no cgroup2 here: name one that this user may write, "
        "and that has no processes of its own (--cgroup)"
    )


# ---- how much ----


@pytest.mark.parametrize(
    ("ram", "vcpus", "disk", "on_tmpfs", "limit"),
    [
        (64 * MiB, 1, GiB, False, (64 + 0.5 + 64 + 1 + 316 + 256) * MiB),
        (512 * MiB, 8, 128 * MiB, False, (512 + 4 + 64 + 8 + 316 + 128) * MiB),
        (2 * GiB, 1, GiB, True, (2048 + 16 + 64 + 1 + 316 + 1024 + 4) * MiB),
        (4096, 1, 4096, True, 4096 + 4096 + (65 + 316) * MiB + 4096),
    ],
)
def test_memory(ram: int, vcpus: int, disk: int, on_tmpfs: bool, limit: int) -> None:
    assert footprint.memory_for(ram, vcpus, disk, MiB, on_tmpfs=on_tmpfs) == limit
    assert limit % 4096 == 0


def test_what_connections_may_hold() -> None:
    """Written twice, since a caller does not load the core."""
    small = (lib.VM_VSOCK_CONNS - lib.VM_VSOCK_LARGE) * lib.VM_VSOCK_SMALL_BUFFER
    assert footprint.vsock_for(MiB) == lib.VM_VSOCK_LARGE * MiB + small
    assert footprint.vsock_for(64 * MiB) == lib.VM_VSOCK_LARGE * 64 * MiB + small


def test_pids() -> None:
    assert [footprint.pids_for(vcpus) for vcpus in (1, 8, 64)] == [4, 11, 67]


def test_tmpfs(tmp_path: Path) -> None:
    fd = os.memfd_create("file of tmpfs", os.MFD_ALLOW_SEALING)
    assert footprint.is_on_tmpfs(fd)
    os.close(fd)
    fd = os.open("/proc/self/stat", os.O_RDONLY)
    assert not footprint.is_on_tmpfs(fd)
    os.close(fd)
