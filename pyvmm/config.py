"""What a run is made of, checked once, where it is made."""

from __future__ import annotations

import os

from .errors import ImageError, UsageError
from .record import Record, field

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .oci import ImageConfig
    from .oci.limits import Limits
    from .oci.platform import Platform
    from .options import Entry, JailMode, Pages, Pull, Sink
    from .publish import Published

MiB = 1 << 20
MAX_VCPUS = 64
TERMINAL = 24, 80  # rows and columns of one that nobody has given a size
PULLS = "missing", "always", "never"


class Config(Record):
    """A checked configuration. Raises UsageError for what cannot be meant."""

    image: str | os.PathLike[str]
    """A registry's image by its name, as ``"busybox:1.36"``; the path of an OCI layout, an OCI
    archive or a ``docker save`` archive; or that with a transport, as ``"oci:DIR"``."""
    command: Sequence[str] | None = None
    """Replaces the image's command (its entry point stays, as with Docker)."""
    entrypoint: Sequence[str] | None = None
    """Replaces the image's entry point, and drops the image's command."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the image's environment."""
    platform: str = "linux/amd64"
    """Which image of several: ``linux/amd64`` or a variant of it, as ``linux/amd64/v3``."""
    pull: Pull = "missing"
    """When to get a registry's image: if it is not in the store, always, or never."""
    image_limits: Mapping[str, int | str] = field(default_factory=dict)
    """How much an image may ask of this host, by the names in oci/limits.py: ``{"size": "4G"}``."""
    workdir: str | None = None
    """Working directory; made if absent."""
    user: str | None = None
    """``user[:group]``, by name or number, from the image's own /etc/passwd."""
    hostname: str = "pyvmm"
    vcpus: int = 1
    memory: int | str = 512 * MiB
    """Guest RAM: bytes, or ``"512M"``, ``"2G"``."""
    hugepages: Pages | None = None
    """Guest RAM in huge pages that the host has reserved, ``"2M"`` or ``"1G"`` each."""
    numa_node: int | None = None
    """Guest RAM from this NUMA node; the VM's threads on its CPUs, unless ``cpus`` says where."""
    cpus: str | None = None
    """Host CPUs, as ``"0,2-3"``: vCPU i on the i-th, cyclically; the rest of the worker on those
    left over, or on all if none are."""
    prefault: bool = False
    """All guest RAM is there before the guest's first instruction."""
    disk: int | str = 1024 * MiB
    """Size of the root disk: bytes, or ``"1G"``."""
    timeout: float | None = 300
    """Seconds that the program may run, counted from its start; None: no limit."""
    boot_timeout: float = 120
    """Seconds from the VM's start until the program must have started."""
    outputs: Sequence[str] = ()
    """Absolute guest paths of files to bring back."""
    stdin: bytes | int | None = None
    """The program's standard input, or a descriptor that it is read from; None: /dev/null."""
    tty: bool | tuple[int, int] = False
    """The program gets a terminal, of this many rows and columns; all it prints is its stdout."""
    hold: bool = False
    """Start no program: the machine is there for exec(), until it is stopped. No timeout."""
    on_stdout: Sink | None = None
    """Called with the program's output as it comes; then Result.stdout stays empty."""
    on_stderr: Sink | None = None
    max_output: int | str = 256 * MiB
    """How much to keep of each stream and each output file; Result.truncated names what is cut."""
    privileged: bool = False
    """Keep all capabilities and no seccomp filter, inside the guest."""
    jail: JailMode = "on"
    """``"off"``: no walls around the monitor (jail.py). A guest that breaks it has your rights."""
    cgroup: str | None = None
    """Where to make the VM's cgroup, below the mount of cgroup2; None: where it is possible."""
    disk_rate: int | str | None = None
    """Bytes a second that the run may read from disk, and write to it; None: no limit."""
    vsock_buffer: int | str = 1 * MiB
    """How much a vsock connection holds of what the guest sent and the host has not read, 64K to
    64M; all but the first 64 connections at a time have 64K."""
    name: str | None = None
    """What other processes reach the machine by: a name, or a socket's path (names.py)."""
    publish: Sequence[str] = ()
    """TCP ports that lead to the guest's, ``"[HOST_IP:]HOST_PORT:GUEST_PORT"`` each (publish.py).
    The host's port listens once the guest's does; 0 is any that is free."""
    wait_for: Sequence[str] = ()
    """When the machine is ready, and start() returns: all of ``"log=REGEX"``, ``"port=N"``,
    ``"exec=COMMAND"`` that are named (ready.py)."""
    counters: bool = False
    """Count what the guest executes, by the CPU's counters (Result.counters)."""
    kernel: str | None = None
    """``"minimal"``, ``"stock"`` or a path; None: minimal if it is there, else stock."""
    entry: Entry = "linux64"
    """How the kernel is entered: Linux's 64-bit protocol, or PVH."""
    cmdline_extra: str = ""
    """Appended to the kernel's command line."""
    console: int | None = None
    """A descriptor that the guest's console is copied to, live."""

    def check(self) -> None:
        for name in ("memory", "disk", "max_output", "vsock_buffer"):
            setattr(self, name, parse_size(getattr(self, name), name))
        if not 64 << 10 <= self.vsock_buffer_bytes <= 64 * MiB:
            raise UsageError(f"vsock_buffer of {self.vsock_buffer} bytes: must be 64K to 64M")
        if self.disk_rate is not None:
            self.disk_rate = parse_size(self.disk_rate, "disk_rate")
        if self.jail == "off" and (self.cgroup, self.disk_rate) != (None, None):
            raise UsageError("a cgroup and a disk rate need the jail: leave out --jail=off")
        if not 1 <= self.vcpus <= MAX_VCPUS:
            raise UsageError(f"vcpus {self.vcpus}: must be 1 to {MAX_VCPUS}")
        if self.timeout is not None and self.timeout <= 0:
            raise UsageError(f"timeout {self.timeout}: must be more than 0 seconds")
        if self.boot_timeout <= 0:
            raise UsageError(f"boot_timeout {self.boot_timeout}: must be more than 0 seconds")
        if self.jail not in ("on", "off"):
            raise UsageError(f"jail {self.jail!r}: must be on or off")
        if self.pull not in PULLS:
            raise UsageError(f"pull {self.pull!r}: must be {', '.join(PULLS)}")
        if (self.image_platform.os, self.image_platform.architecture) != ("linux", "amd64"):
            raise UsageError(f"platform {self.platform!r}: guests are linux/amd64")
        _ = self.limits  # checked there
        for path in self.outputs:
            if not path.startswith("/"):
                raise UsageError(f"output {path!r}: must be an absolute path in the guest")
        if self.workdir is not None and not self.workdir.startswith("/"):
            raise UsageError(f"workdir {self.workdir!r}: must be an absolute path in the guest")
        _ = self.terminal  # checked there
        if self.hold and (self.command is not None or self.entrypoint is not None):
            raise UsageError("hold starts no program: leave out the command")
        if self.hold and (self.stdin is not None or self.tty or self.outputs):
            raise UsageError("hold starts no program: leave out stdin, tty and outputs")
        for key in self.env:
            if not key or "=" in key or "\0" in key + self.env[key]:
                raise UsageError(f"environment variable {key!r}: not a usable name or value")
        if isinstance(self.wait_for, str):
            self.wait_for = (self.wait_for,)
        if self.wait_for:
            from . import ready

            ready.parse(self.wait_for)
        if self.publish:
            _ = self.published
        if self.placed:
            from . import placement

            placement.check(self)

    @property
    def placed(self) -> bool:
        """Whether anything is said of where on the host (placement.py)."""
        asked = (self.hugepages, self.numa_node, self.cpus, self.prefault)
        return asked != (None, None, None, False)

    @property
    def published(self) -> list[Published]:
        """``publish``, read."""
        from .publish import parse

        return parse(self.publish)

    @property
    def terminal(self) -> tuple[int, int] | None:
        """The rows and columns of the program's terminal, if it has one."""
        return terminal(self.tty)

    @property
    def guest_ports(self) -> list[int]:
        """The guest's ports that are published."""
        return sorted({port.guest_port for port in self.published}) if self.publish else []

    @property
    def image_platform(self) -> Platform:
        """``platform``, read."""
        from .oci.platform import parse_platform

        return parse_platform(self.platform)

    @property
    def limits(self) -> Limits:
        """``image_limits``, read."""
        from .oci.limits import parse_limits

        return parse_limits(self.image_limits)

    @property
    def memory_bytes(self) -> int:
        assert isinstance(self.memory, int)
        return self.memory

    @property
    def max_output_bytes(self) -> int:
        assert isinstance(self.max_output, int)
        return self.max_output

    @property
    def disk_bytes(self) -> int:
        assert isinstance(self.disk, int)
        return self.disk

    @property
    def vsock_buffer_bytes(self) -> int:
        assert isinstance(self.vsock_buffer, int)
        return self.vsock_buffer


def parse_size(value: int | str, name: str) -> int:
    """Bytes from ``4096``, ``"64M"``, ``"1.5G"``; a positive multiple of 4096, or UsageError."""
    if isinstance(value, str):
        text = value.strip().upper()
        text = text.removesuffix("IB") if text.endswith("IB") else text.removesuffix("B")
        shift = "KMGT".find(text[-1:]) * 10 + 10 if text[-1:] in tuple("KMGT") else 0
        number = text[:-1] if shift else text
        whole, dot, part = number.partition(".")
        if not (number.isascii() and whole.isdecimal() and part.isdecimal() == bool(dot)):
            raise UsageError(f"{name} {value!r}: write a size as 512M or 2G")
        value = int(float(number) * (1 << shift))
    if value <= 0 or value % 4096:
        raise UsageError(f"{name} of {value} bytes: must be a positive multiple of 4096")
    if value > 1 << 46:
        raise UsageError(f"{name} of {value} bytes: at most 64T")
    return value


def terminal(tty: bool | tuple[int, int]) -> tuple[int, int] | None:
    """The rows and columns that are meant, if a terminal is. Raises UsageError."""
    if not tty:
        return None
    rows, columns = TERMINAL if isinstance(tty, bool) else tty
    if not (0 < rows < 65536 and 0 < columns < 65536):
        raise UsageError(f"tty {rows} x {columns}: rows and columns must be 1 to 65535")
    return rows, columns


def program(config: Config, image: ImageConfig) -> list[str]:
    """The argument vector, by Docker's rules (OCI image-spec config.md, Entrypoint and Cmd)."""
    if config.hold:
        return []
    if config.entrypoint is not None:
        argv = [*config.entrypoint, *(config.command or ())]
    else:
        cmd = image.cmd if config.command is None else config.command
        argv = [*image.entrypoint, *cmd]
    if not argv:
        raise ImageError(f"image {config.image} has no command: give one after --")
    return argv


def environment(config: Config, image: ImageConfig) -> list[str]:
    """``KEY=VALUE`` of the image, then of the caller; the guest keeps the last of a key."""
    return [*(e for e in image.env if "=" in e), *(f"{k}={v}" for k, v in config.env.items())]
