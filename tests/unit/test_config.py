"""A run's configuration: sizes, what cannot be meant, and Docker's entry-point rules."""

from __future__ import annotations

import pytest

from pyvmm.config import Config, environment, parse_size, program
from pyvmm.errors import ImageError, UsageError
from pyvmm.oci.image import ImageConfig
from pyvmm.oci.limits import Limits
from pyvmm.oci.platform import Platform


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("4K", 4096),
        ("64M", 64 << 20),
        ("64m", 64 << 20),
        ("64MB", 64 << 20),
        ("64MiB", 64 << 20),
        (" 2G ", 2 << 30),
        ("1.5G", 3 << 29),
        ("1T", 1 << 40),
        ("64T", 1 << 46),
    ],
)
def test_sizes(text, size):
    assert parse_size(text, "memory") == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1X", "1 M", "1e9", "0x1000", "1MM"])
def test_what_is_not_a_size(text):
    with pytest.raises(UsageError, match="write a size as 512M or 2G"):
        parse_size(text, "memory")


@pytest.mark.parametrize("size", [0, -4096, 1, 4095, 4097, "0", "1K", "0.1M"])
def test_sizes_that_cannot_be(size):
    with pytest.raises(UsageError, match=r"disk of -?[0-9]+ bytes: must be a positive multiple"):
        parse_size(size, "disk")


@pytest.mark.parametrize("size", ["65T", (1 << 46) + 4096])
def test_sizes_beyond_every_machine(size):
    assert parse_size("64T", "memory") == 1 << 46
    with pytest.raises(UsageError, match=r"^disk of \d+ bytes: at most 64T$"):
        parse_size(size, "disk")


def test_defaults():
    config = Config("image")
    assert (config.vcpus, config.memory_bytes, config.disk_bytes) == (1, 512 << 20, 1 << 30)
    assert config.timeout == 300
    assert config.privileged is False


def test_sizes_are_numbers_after_the_check():
    config = Config("image", memory="1G", disk="2G")
    assert (config.memory_bytes, config.disk_bytes) == (1 << 30, 2 << 30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vcpus": 0}, "vcpus 0: must be 1 to 64"),
        ({"vcpus": 65}, "vcpus 65: must be 1 to 64"),
        ({"timeout": 0}, "timeout 0: must be more than 0"),
        ({"timeout": -1}, "timeout -1: must be more than 0"),
        ({"memory": "lots"}, "memory 'lots'"),
        ({"disk": 1000}, "disk of 1000 bytes"),
        ({"vsock_buffer": "60K"}, "vsock_buffer of 61440 bytes: must be 64K to 64M"),
        ({"vsock_buffer": "65M"}, "vsock_buffer of 68157440 bytes: must be 64K to 64M"),
        ({"outputs": ["/ok", "not"]}, "output 'not': must be an absolute path"),
        ({"workdir": "relative"}, "workdir 'relative': must be an absolute path"),
        ({"hold": True, "command": ["p"]}, "hold starts no program: leave out the command"),
        ({"hold": True, "entrypoint": ["p"]}, "hold starts no program: leave out the command"),
        ({"hold": True, "stdin": b""}, "hold starts no program: leave out stdin, tty and outputs"),
        ({"hold": True, "tty": True}, "hold starts no program: leave out stdin, tty and outputs"),
        (
            {"hold": True, "outputs": ["/x"]},
            "hold starts no program: leave out stdin, tty and outputs",
        ),
        ({"tty": (0, 80)}, "tty 0 x 80: rows and columns must be 1 to 65535"),
        ({"tty": (24, 65536)}, "tty 24 x 65536: rows and columns must be 1 to 65535"),
        ({"env": {"": "x"}}, "environment variable ''"),
        ({"env": {"A=B": "x"}}, "environment variable 'A=B'"),
        ({"env": {"A": "x\0y"}}, "environment variable 'A'"),
    ],
)
def test_what_cannot_be_meant(options, message):
    with pytest.raises(UsageError, match=message):
        Config("image", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"vcpus": 64},
        {"timeout": None},
        {"timeout": 0.001},
        {"workdir": "/"},
        {"env": {"A": "B=C", "EMPTY": ""}},
    ],
)
def test_what_can_be_meant(options):
    Config("image", **options)


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "given_entrypoint", "given_command", "argv"),
    [
        # Docker's table: no entry point, exec form
        ((), ("cmd", "a"), None, None, ["cmd", "a"]),
        (("entry", "e"), (), None, None, ["entry", "e"]),
        (("entry", "e"), ("cmd", "a"), None, None, ["entry", "e", "cmd", "a"]),
        # docker run IMAGE COMMAND: replaces Cmd, not the entry point
        ((), ("cmd",), None, ["x", "y"], ["x", "y"]),
        (("entry",), ("cmd",), None, ["x"], ["entry", "x"]),
        (("entry",), ("cmd",), None, [], ["entry"]),
        # docker run --entrypoint: replaces the entry point and drops Cmd
        (("entry",), ("cmd",), ["new"], None, ["new"]),
        (("entry",), ("cmd",), ["new"], ["x"], ["new", "x"]),
        (("entry",), ("cmd",), [], ["x"], ["x"]),
    ],
)
def test_entry_point_rules(entrypoint, cmd, given_entrypoint, given_command, argv):
    config = Config("image", given_command, entrypoint=given_entrypoint)
    assert program(config, ImageConfig(entrypoint=entrypoint, cmd=cmd)) == argv


def test_terminals():
    assert [Config("image", tty=tty).terminal for tty in (False, True, (5, 6))] == [
        None, (24, 80), (5, 6),
    ]  # fmt: skip


def test_no_program_to_start():
    config = Config("image", hold=True)
    assert program(config, ImageConfig(entrypoint=("entry",), cmd=("cmd",))) == []


@pytest.mark.parametrize("options", [{}, {"command": []}, {"entrypoint": []}])
def test_no_command_at_all(options):
    with pytest.raises(ImageError, match="image busybox has no command"):
        program(Config("busybox", **options), ImageConfig())


def test_environment_of_the_caller_comes_after_the_image_s():
    config = Config("image", env={"A": "2", "C": "x=y"})
    image = ImageConfig(env=("A=1", "B=1", "broken"))
    assert environment(config, image) == ["A=1", "B=1", "A=2", "C=x=y"]


def test_which_image():
    config = Config("busybox")
    assert (config.pull, config.image_platform, config.limits) == ("missing", Platform(), Limits())
    config = Config("x", pull="never", platform="linux/amd64/v3", image_limits={"size": "4G"})
    assert config.image_platform == Platform("linux", "amd64", "v3")
    assert config.limits == Limits(size=4 << 30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pull": "newer"}, "pull 'newer': must be missing, always, never"),
        ({"platform": "linux/arm64"}, "platform 'linux/arm64': guests are linux/amd64"),
        ({"platform": "amd64"}, "platform 'amd64': write it as linux/amd64 or linux/amd64/v3"),
        ({"image_limits": {"layers": 0}}, "image limit layers=0: must be more than 0"),
        ({"image_limits": {"config": "9M"}}, "image limit config=9437184: at most 8388608"),
    ],
)
def test_what_cannot_be_meant_of_an_image(options, message):
    with pytest.raises(UsageError) as caught:
        Config("x", **options)
    assert str(caught.value) == message
