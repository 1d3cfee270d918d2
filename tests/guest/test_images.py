"""Every kind of image boots, and what is in it is in the guest."""

from __future__ import annotations

import pytest
from harness import IMAGES, Host, sections

LAYERS = """
cd /data; stat -c '%n %a %u:%g %F' . kept suid capable; stat -c %h kept
find . ../opaque -type f -o -type l | sort
cat changed linked pointer; readlink pointer; cat ünï
probe xattr capable user.note; probe xattr capable security.capability
"""
SEEN = """\
. 750 7:8 directory
kept 640 1000:44 regular file
suid 4755 0:0 regular file
capable 644 0:0 regular file
2
../opaque/above
./capable
./changed
./kept
./linked
./pointer
./suid
./ünï
second
kept
kept
kept
unicode
00ff6e6f7465
0100000200040000000000000000000000000000
"""


@pytest.mark.parametrize("image", ["layers", "layers.tar"])
def test_plain_gzip_and_zstd_layers_with_whiteouts_and_xattrs(host: Host, image: str) -> None:
    """As 7:44: without capabilities not even root may enter what is another's."""
    done = host.run("sh", "-c", LAYERS, image=image, kernel="minimal", user="7:44")
    assert (done.code, done.err, done.out.decode()) == (0, b"", SEEN)


def test_made_by_umoci(host: Host) -> None:
    host.run(image="umoci", kernel="minimal").check(0, b"made by umoci\n")


def test_name_in_the_layout(host: Host) -> None:
    host.run(image="umoci:latest", kernel="minimal").check(0, b"made by umoci\n")


def test_docker_archive(host: Host) -> None:
    host.run(image="docker.tar", kernel="minimal").check(0, b"made by umoci\n")


@pytest.mark.parametrize(
    ("options", "words", "expected"),
    [
        ({}, [], b"from the image\n"),
        ({}, ["me"], b"from me\n"),
        ({"entrypoint": "pwd"}, [], b"/\n"),
        ({"entrypoint": "expr"}, ["6", "*", "7"], b"42\n"),
    ],
    ids=["image's", "command", "entry point", "both"],
)
def test_docker_rules(
    host: Host, options: dict[str, str], words: list[str], expected: bytes
) -> None:
    host.run(*words, image="docker-rules", kernel="minimal", **options).check(0, expected)


def test_options_replace_what_the_image_says(host: Host) -> None:
    running = host.pyvmm(
        "run", "--image", IMAGES / "numbers", "--kernel", "minimal", "--env", "MY_VAR=a b=c",
        "--env", "OTHER", "--workdir", "/home/app", "--user", "7:app", "--hostname", "bench",
        "--", "sh", "-c",
        'echo "$MY_VAR"; echo "$OTHER"; pwd; id -u; id -g; hostname; echo "$TERM $PATH"',
        environment={"OTHER": "host's"},
    )  # fmt: skip
    done = running.finish()
    assert (done.code, done.out.decode().splitlines()) == (
        0,
        ["a b=c", "host's", "/home/app", "7", "1000", "bench",
         "xterm /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    )  # fmt: skip


def test_privileged_keeps_its_rights(host: Host) -> None:
    script = (
        "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; "
        "mount -t tmpfs none /tmp && echo ok"
    )
    done = host.run("sh", "-c", script, kernel="minimal", privileged="")
    assert done.code == 0
    caps, *rest = done.out.decode().splitlines()
    assert int(caps.split()[1], 16) > 0xFFFFFFFF
    assert rest == ["NoNewPrivs:\t0", "Seccomp:\t0", "ok"]


def test_five_gib_guest(host: Host) -> None:
    """RAM on both sides of the hole below 4 GiB. Untouched, it need not be there on the host."""
    for kernel in ("minimal", "stock"):
        done = host.run("facts", kernel=kernel, memory="5G")
        assert (done.code, done.err) == (0, b"")
        assert 4.7 * (1 << 20) < int(sections(done.out)["memory"][0]) < 5 << 20
