"""Files into a guest and out of it: Machine.files and pyvmm cp."""

from __future__ import annotations

import errno
import io
import os
import random
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import IMAGES, RUN_LIMIT, Done, Host, command
from tree_guest import refused

import pyvmm
from pyvmm.names import running

DATA = random.Random(7).randbytes(1_000_000)
MIB = 1 << 20
PART = 256 << 10


@pytest.fixture(scope="module")
def machine() -> Iterator[pyvmm.Machine]:
    image = IMAGES / "shell"
    with pyvmm.Machine(image, hold=True, kernel="minimal", memory="256M", disk="64M") as made:
        yield made


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "empty").mkdir(parents=True)
    (top / "below").mkdir()
    (top / "below/data").write_bytes(DATA)
    (top / "below/program").write_bytes(b"#!/bin/sh\necho from the host\n")
    (top / "below/program").chmod(0o750)
    os.link(top / "below/program", top / "same")
    (top / "link").symlink_to("below/program")
    (top / "dangling").symlink_to("/no/such")
    Path(os.fsdecode(os.fsencode(top) + b"/\xff\n")).write_bytes(b"odd")
    os.mkfifo(top / "fifo", 0o640)
    for path in [*top.rglob("*"), top]:
        os.utime(path, ns=(0, 1_234_567_890_123_456_789), follow_symlinks=False)
    return top


def look(top: Path) -> dict[str, tuple[int, int, object]]:
    found: dict[str, tuple[int, int, object]] = {}
    for path in [top, *top.rglob("*")]:
        status = path.lstat()
        contents: object = None
        if path.is_symlink():
            contents = os.readlink(path)
        elif path.is_file():
            contents = path.read_bytes()
        found[str(path.relative_to(top))] = status.st_mode, status.st_mtime_ns, contents
    return found


def sh(machine: pyvmm.Machine, script: str) -> bytes:
    result = machine.exec(["sh", "-c", script])
    assert (result.exit_code, result.stderr) == (0, b"")
    return result.stdout


def test_read_and_write(machine: pyvmm.Machine) -> None:
    files = machine.files
    files.write("/root.txt", DATA, 0o600)
    assert sh(machine, "stat -c '%a %u %g %s' /root.txt") == b"600 0 0 1000000\n"
    assert files.read("/root.txt") == DATA
    assert files.read("root.txt") == DATA
    files.write("/root.txt", io.BytesIO(b"short"))
    assert sh(machine, "stat -c %a /root.txt; cat /root.txt") == b"600\nshort"
    assert files.read("/proc/sys/kernel/ostype") == b"Linux\n"


def test_a_tree_there_and_back(machine: pyvmm.Machine, tree: Path, tmp_path: Path) -> None:
    assert machine.files.push(tree, "/there") == []
    script = "cd /there; ./link; stat -c '%a %u %g %Y' below/program; stat -c %h same; ls -A empty"
    assert sh(machine, script) == b"from the host\n750 0 0 1234567890\n2\n"
    assert machine.files.pull("/there", tmp_path / "back") == []
    assert look(tmp_path / "back") == look(tree)
    machine.files.push(tree, "/there")
    assert sh(machine, "ls -d /there/tree/below") == b"/there/tree/below\n"


def test_owners(machine: pyvmm.Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.chown(tmp_path / "file", 1234, 4321)
    machine.files.push(tmp_path / "file", "/ours")
    machine.files.push(tmp_path / "file", "/theirs", archive=True)
    assert sh(machine, "stat -c '%u %g' /ours /theirs") == b"0 0\n1234 4321\n"
    machine.files.pull("/theirs", tmp_path / "ours")
    machine.files.pull("/theirs", tmp_path / "theirs", archive=True)
    assert (tmp_path / "ours").stat().st_uid == os.geteuid()
    assert (tmp_path / "theirs").stat().st_uid == 1234


def test_sparse(machine: pyvmm.Machine, tmp_path: Path) -> None:
    """A file that has more holes than the guest has disk and memory, both ways."""
    with (tmp_path / "sparse").open("wb") as file:
        for at in range(3):
            file.seek(at * 300 * MIB)
            file.write(DATA[:PART])
        file.truncate(1 << 30)
    machine.files.push(tmp_path / "sparse", "/sparse")
    size, blocks = map(int, sh(machine, "stat -c '%s %b' /sparse; ").split())
    assert size == 1 << 30
    assert blocks * 512 < MIB
    machine.files.pull("/sparse", tmp_path / "back")
    assert (tmp_path / "back").stat().st_size == 1 << 30
    with (tmp_path / "back").open("rb") as back:
        end = 0
        for at in range(3):
            end = os.lseek(back.fileno(), end, os.SEEK_DATA)
            assert end == at * 300 * MIB
            assert os.pread(back.fileno(), PART, end) == DATA[:PART]
            end = os.lseek(back.fileno(), end, os.SEEK_HOLE)
            assert end == at * 300 * MIB + PART
    sh(machine, "rm /sparse")


def test_what_cannot_be(machine: pyvmm.Machine, tmp_path: Path) -> None:
    files = machine.files
    cases = [
        (refused(files.read, "/none"), errno.ENOENT, "/none: no such file or directory"),
        (refused(files.read, "/bin/."), errno.EISDIR, "is a directory"),
        (refused(files.pull, "/none", tmp_path), errno.ENOENT, "/none: no such file or directory"),
        (refused(files.write, "/no/x", b""), errno.ENOENT, "/no: no such file or directory"),
        (
            refused(files.write, "/proc/sys/kernel/domainname", b""),
            errno.EROFS,
            "/proc/sys/kernel/domainname: read-only file system",
        ),
        (
            refused(files.push, __file__, "/sys/kernel/"),
            errno.EROFS,
            "/sys/kernel/test_files.py: read-only file system",
        ),
    ]
    for error, number, text in cases:
        assert (error.errno, error.strerror) == (number, text)
    assert os.listdir(tmp_path) == []


def test_no_space(machine: pyvmm.Machine, tmp_path: Path) -> None:
    """It is said while there is more to send, and the machine goes on."""
    sh(machine, "fallocate -l $(($(stat -f -c '%a * %S' /) - 4000000)) /most")
    with open("/dev/zero", "rb") as endless:
        error = refused(machine.files.write, "/full", endless)
    assert (error.errno, error.strerror) == (errno.ENOSPC, "/full: no space left on device")
    sh(machine, "rm /full /most")
    machine.files.write("/small", b"x")
    assert machine.files.read("/small") == b"x"


def test_tar_streams(machine: pyvmm.Machine, tree: Path, tmp_path: Path) -> None:
    packed, back = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.add(tree, "packed")
    packed.seek(0)
    machine.files.push_tar(packed, "/")
    assert sh(machine, "cd /packed; sh ./link; stat -c %h same") == b"from the host\n2\n"
    assert machine.files.pull_tar("/packed", back) == []
    back.seek(0)
    with tarfile.open(fileobj=back) as tar:
        tar.extractall(tmp_path / "unpacked")
    exact = look(tree)
    found = look(tmp_path / "unpacked/packed")
    assert {n: (m, c) for n, (m, _, c) in found.items()} == {
        n: (m, c) for n, (m, _, c) in exact.items()
    }


def cp(*words: str | Path, stdin: bytes = b"") -> Done:
    line = [command(), "cp", *map(str, words)]
    done = subprocess.run(line, input=stdin, capture_output=True, timeout=RUN_LIMIT, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def test_cp(host: Host, tree: Path, tmp_path: Path) -> None:
    """By other processes, both ways, files and archives."""
    box = host.start(hold="", name="cp-test", kernel="minimal", memory="256M")
    while "cp-test" not in running():
        assert box.process.poll() is None, box.text()
        time.sleep(0.05)
    cp(tree, "cp-test:/tree").check(0, b"")
    cp("cp-test:tree", tmp_path / "back").check(0, b"")
    assert look(tmp_path / "back") == look(tree)
    packed = cp("cp-test:/tree/below", "-")
    assert (packed.code, packed.err) == (0, b"")
    with tarfile.open(fileobj=io.BytesIO(packed.out)) as tar:
        assert sorted(tar.getnames()) == ["below", "below/data", "below/program"]
    cp("-", "cp-test:/mnt", stdin=packed.out).check(
        125, b"", b"pyvmm: /mnt: no such file or directory\n"
    )
    cp("-", "cp-test:/tmp", stdin=packed.out).check(0, b"")
    cp("cp-test:/tmp/below/data", tmp_path).check(0, b"")
    assert (tmp_path / "data").read_bytes() == DATA
    box.process.terminate()
    box.finish()
