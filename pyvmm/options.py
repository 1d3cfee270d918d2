"""The keyword arguments of run() and Machine(), for type checkers and editors: no run imports it.

Config (config.py) has the same fields, with what they mean and their defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypedDict

Entry = Literal["pvh", "linux64"]
JailMode = Literal["on", "off"]
Pages = Literal["2M", "1G"]
Pull = Literal["missing", "always", "never"]
Sink = Callable[[bytes], object]


class Options(TypedDict, total=False):
    """Config's fields but the first two."""

    entrypoint: Sequence[str] | None
    env: Mapping[str, str]
    platform: str
    pull: Pull
    image_limits: Mapping[str, int | str]
    workdir: str | None
    user: str | None
    hostname: str
    vcpus: int
    memory: int | str
    hugepages: Pages | None
    numa_node: int | None
    cpus: str | None
    prefault: bool
    disk: int | str
    timeout: float | None
    boot_timeout: float
    outputs: Sequence[str]
    stdin: bytes | int | None
    tty: bool | tuple[int, int]
    hold: bool
    on_stdout: Sink | None
    on_stderr: Sink | None
    max_output: int | str
    privileged: bool
    jail: JailMode
    cgroup: str | None
    disk_rate: int | str | None
    vsock_buffer: int | str
    publish: Sequence[str]
    wait_for: Sequence[str]
    counters: bool
    kernel: str | None
    entry: Entry
    cmdline_extra: str
    console: int | None


class How(TypedDict, total=False):
    """How Machine.exec() and its like run a program; what is not there is as for the machine's."""

    env: Mapping[str, str] | None
    """added to the machine's"""
    user: str | None
    """``user[:group]``, by name or number, from the image's own /etc/passwd"""
    workdir: str | None
    """made if absent"""
    tty: bool | tuple[int, int]
    """the program gets a terminal, of this many rows and columns; all it prints is its stdout"""
