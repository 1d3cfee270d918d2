"""What a person types, and what comes back: items 1 to 14 and 17 of the acceptance list."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time

import pytest
from harness import EVENT_LIMIT, IMAGES, Done, Host, sections, sharing

MIB = 1 << 20
LEAST = {"minimal": "64M", "stock": "72M"}  # the stock kernel's least: measured, see below


@pytest.fixture(scope="session")
def facts(session_host: Host, kernel: str) -> dict[str, list[str]]:
    """One boot that tells most: ENV, WORKDIR, USER 1000:1000 of the image, 4 CPUs of ours."""
    began = time.time()
    told = session_host.run(image="numbers", kernel=kernel, vcpus="4", entry="pvh", timeout="150")
    session_host.check_clean()
    assert (told.code, told.err) == (0, sharing(4))
    return sections(told.out) | {"when": [str(began), str(time.time())]}


def test_01_echo(host: Host, kernel: str) -> None:
    host.run("echo", "hello from vm", kernel=kernel).check(0, b"hello from vm\n")


def test_02_environment(facts: dict[str, list[str]]) -> None:
    assert facts["env"] == ["test_value"]


def test_03_working_directory_that_the_image_lacks(facts: dict[str, list[str]]) -> None:
    assert facts["workdir"] == ["/app", "0:0 755"]


@pytest.fixture(scope="session")
def files(session_host: Host, kernel: str) -> tuple[Done, Host]:
    """One boot as root that writes on the disk and has files brought back."""
    script = (
        r"""printf '{"result": 42}\n' >/tmp/output.json && """
        "mkdir /made && head -c 20971520 /dev/urandom >/made/big && : >/made/empty && "
        "cp /made/big /copy && cmp /made/big /copy && sha256sum </copy && df -k / | wc -l && "
        "echo text >/bin/new && cat /bin/new && echo to stderr >&2"
    )
    place = session_host.place / kernel
    place.mkdir()
    line = ["--output", f"/tmp/output.json:{place}/result", "--output", f"/made/big:{place}/big"]
    line += ["--output", f"/made/empty:{place}/empty", "--output", f"/no/such:{place}/none"]
    line += ["--output", f"/made:{place}/none"]
    done = session_host.pyvmm(
        "run", "--image", IMAGES / "shell", "--kernel", kernel, *line, "--", "sh", "-c", script
    ).finish()
    session_host.check_clean()
    return done, session_host


def test_04_outputs(files: tuple[Done, Host], kernel: str) -> None:
    done, host = files
    place = host.place / kernel
    assert done.code == 0
    assert (place / "result").read_bytes() == b'{"result": 42}\n'
    digest = hashlib.sha256((place / "big").read_bytes()).hexdigest()
    assert done.out.split()[0].decode() == digest
    assert (place / "empty").read_bytes() == b""
    assert not (place / "none").exists()
    assert done.err.endswith(
        b"pyvmm: output /no/such: No such file or directory\npyvmm: output /made: Is a directory\n"
    )


@pytest.mark.parametrize(
    ("program", "code", "message"),
    [
        (["sh", "-c", "exit 42"], 42, ""),
        (["sh", "-c", "kill -9 $$"], 137, ""),
        (["/etc/data"], 126, 'pyvmm: exec: "/etc/data": permission denied\n'),
        (["nothere"], 127, 'pyvmm: exec: "nothere": executable file not found in $PATH\n'),
    ],
    ids=["exit", "killed", "not executable", "not found"],
)
def test_05_exit_codes(
    host: Host, kernel: str, program: list[str], code: int, message: str
) -> None:
    host.run(*program, kernel=kernel).check(code, b"", message.encode())


@pytest.mark.parametrize("trap", ["", "trap '' TERM INT HUP; "], ids=["plain", "trapping"])
def test_06_timeout(host: Host, kernel: str, trap: str) -> None:
    script = f"{trap}echo before; sleep 3600; echo after"
    running = host.start("sh", "-c", script, kernel=kernel, timeout="10", json="result")
    running.finish().check(124, b"before\n", b"pyvmm: timed out after 10 s\n")
    result = json.loads((running.paths["out"].parent / "result").read_text())
    assert 9 < result["timings"]["program"] < 10 + EVENT_LIMIT


def test_07_base64_of_10_mib(host: Host, kernel: str) -> None:
    script = "head -c 10485760 /dev/urandom >/data && sha256sum </data && base64 /data"
    done = host.run("sh", "-c", script, kernel=kernel)
    assert (done.code, done.err) == (0, b"")
    first, _, rest = done.out.partition(b"\n")
    assert len(rest) > 14_000_000
    data = base64.b64decode(rest)
    assert len(data) == 10 * MIB
    assert first.decode() == hashlib.sha256(data).hexdigest() + "  -"


def test_07_64_mib_on_both_outputs(host: Host, kernel: str) -> None:
    done = host.run("probe", "flood", "64", kernel=kernel, timeout="150")
    assert (done.code, len(done.out), len(done.err)) == (0, 64 * MIB, 64 * MIB)
    found = {
        "stdout": hashlib.sha256(done.out).hexdigest(),
        "stderr": hashlib.sha256(done.err).hexdigest(),
    }
    assert found == json.loads((IMAGES / "flood.json").read_text())


def test_08_writable_root(files: tuple[Done, Host]) -> None:
    lines = files[0].out.decode().splitlines()
    assert len(lines) == 3
    assert lines[1:] == ["2", "text"]


def test_09_outputs_apart(files: tuple[Done, Host]) -> None:
    assert files[0].err.startswith(b"to stderr\npyvmm: output ")
    assert b"stderr" not in files[0].out


def test_10_four_cpus(facts: dict[str, list[str]]) -> None:
    assert facts["nproc"] == ["4", "4"]


@pytest.mark.parametrize("vcpus", [1, 2, 8])
def test_10_cpus(host: Host, kernel: str, vcpus: int) -> None:
    done = host.run("nproc", kernel=kernel, vcpus=str(vcpus), entry="linux64")
    done.check(0, b"%d\n" % vcpus, sharing(vcpus))


def test_11_no_reboot(facts: dict[str, list[str]]) -> None:
    assert facts["reboot"] == [
        "reboot: (null): Operation not permitted", "code 1",
        "poweroff: (null): Operation not permitted", "code 1",
    ]  # fmt: skip
    assert facts["ports"] == ["outb: SIGSEGV", "iopl: refused"]
    assert facts["init"] == [
        "init",
        "closed",
        "sh: can't kill pid 1: Operation not permitted",
        "code 1",
    ]


def test_12_no_rights(facts: dict[str, list[str]]) -> None:
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    assert facts["capabilities"] == [
        *(f"{name}:\t0000000000000000" for name in names), "NoNewPrivs:\t1", "Seccomp:\t2",
    ]  # fmt: skip


def test_12_no_rights_for_root(host: Host, kernel: str) -> None:
    script = (
        "id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs):' /proc/self/status; "
        "reboot -f 2>&1; mount -t tmpfs none /tmp 2>&1; chroot / true 2>&1; "
        "echo 1 >/proc/sysrq-trigger; "
        "hostname other 2>&1; echo still here"
    )
    done = host.run("sh", "-c", f"{{ {script}; }} 2>&1", kernel=kernel)
    assert (done.code, done.err) == (0, b"")
    lines = done.out.decode().splitlines()
    assert lines[:5] == [
        "0", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1",
        "reboot: (null): Operation not permitted",
    ]  # fmt: skip
    assert lines[5] in (
        "mount: permission denied (are you root?)",
        "mount: mounting none on /tmp failed: Operation not permitted",
    )
    assert lines[6] == "chroot: can't change root directory to '/': Operation not permitted"
    assert re.fullmatch(r"sh: can't create /proc/sysrq-trigger: .*", lines[7])
    assert lines[8:] == ["hostname: sethostname: Operation not permitted", "still here"]


def test_13_no_network(facts: dict[str, list[str]]) -> None:
    assert facts["network"] == ["lo", "lo:", "1"]
    assert facts["ping"] == [
        "PING 192.0.2.1 (192.0.2.1): 56 data bytes",
        "ping: permission denied (are you root?)", "code 1", "at once",
    ]  # fmt: skip


def test_14_user_by_number(facts: dict[str, list[str]]) -> None:
    assert facts["id"] == ["1000", "1000", "1000", "/home/app"]


def test_14_user_by_name(host: Host, kernel: str) -> None:
    script = (
        'id -u; id -g; id -G; echo "$HOME"; id -un; touch ~/mine && stat -c %U:%G ~/mine; touch /no'
    )
    done = host.run("sh", "-c", script, image="names", kernel=kernel)
    done.check(
        1,
        b"1000\n1000\n1000 29 44\n/home/app\napp\napp:app\n",
        b"touch: /no: Permission denied\n",
    )


def test_17_least_memory_and_disk(host: Host, kernel: str) -> None:
    """The stock kernel with its modules needs twice what the minimal one does; see LEAST."""
    memory = int(LEAST[kernel][:-1]) * 1024
    done = host.run("facts", kernel=kernel, memory=LEAST[kernel], disk="64M")
    assert (done.code, done.err) == (0, b"")
    found = sections(done.out)
    (total,) = found["memory"]
    assert memory * 0.5 < int(total) < memory
    sectors, blocks, *disks = found["disk"]
    assert (sectors, disks) == ("131072", ["vda"])
    assert 48 * 1024 < int(blocks) < 64 * 1024


def test_the_rest_of_the_facts(facts: dict[str, list[str]]) -> None:
    assert facts["hostname"] == ["pyvmm", "pyvmm"]
    began, ended = map(float, facts["when"])
    assert began - 2 < int(facts["clock"][0]) < ended + 1
    devices = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert facts["devices"] == [f"{devices} ", "null", " 00 00 00"]
    types = dict(line.split() for line in facts["mounts"])
    assert types["/"] == "ext4"
    assert {"/proc", "/sys", "/dev", "/dev/pts", "/dev/shm"} < set(types)
    assert facts["disk"][0] == str((1 << 30) // 512)
    assert 440_000 < int(facts["memory"][0]) < 512 * 1024
    assert int(facts["processes"][0]) < 100
