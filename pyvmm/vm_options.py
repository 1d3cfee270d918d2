"""The options of a VM, which run and bench have in common, and what they mean."""

from __future__ import annotations

import os

from .arguments import Option

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from .arguments import Values
    from .options import Options

IMAGE_LIMIT = Option(
    "--image-limit", "NAME=VALUE", "size, ratio, layers, entries, path or config; as size=4G",
    many=True,
)  # fmt: skip

# Of a program, the machine's or one of exec's.
PROGRAM_OPTIONS = (
    Option("--env", "K=V", "added to those there; K alone takes the host's", many=True, short="-e"),
    Option("--workdir", "DIR", "where the program starts; made if absent", short="-w"),
    Option("--user", "USER[:GROUP]", "of the image's own /etc/passwd, or numbers", short="-u"),
)
TERMINAL_OPTIONS = (
    Option("--interactive", "", "our stdin is the program's", False, short="-i"),
    Option("--tty", "", "the program gets a terminal", False, short="-t"),
)

VM_OPTIONS = (
    Option("--platform", "PLATFORM", "linux/amd64, or a variant as linux/amd64/v3",
           "linux/amd64"),
    Option("--pull", "WHEN", "from a registry: missing (default), always or never",
           "missing", choices=("missing", "always", "never")),
    IMAGE_LIMIT,
    Option("--vcpus", "N", "virtual CPUs (default 1)", 1, int),
    Option("--memory", "SIZE", "guest RAM (default 512M)", "512M"),
    Option("--hugepages", "2M|1G", "guest RAM in reserved huge pages of the host",
           choices=("2M", "1G")),
    Option("--numa-node", "N", "guest RAM from, and all threads on, this node of the host",
           kind=int),
    Option("--cpu-list", "LIST", "host CPUs, as 0,2-3: one for each vCPU, then the rest"),
    Option("--prefault", "", "have all guest RAM there before the guest starts", False),
    Option("--disk", "SIZE", "root disk (default 1G)", "1G"),
    Option("--timeout", "SECONDS", "for the program, from its start; 0: none (default 300)",
           300.0, float),
    Option("--boot-timeout", "SECONDS", "until the program has started (default 120)",
           120.0, float),
    *PROGRAM_OPTIONS,
    Option("--hostname", "NAME", "the guest's name (default pyvmm)", "pyvmm"),
    Option("--entrypoint", "PROGRAM", "replaces the image's entry point and command"),
    Option("--max-output", "SIZE",
           "of each output file, and with --json of each stream (default 256M)", "256M"),
    Option("--vsock-buffer", "SIZE", "of each connection to the host, 64K to 64M (default 1M)",
           "1M"),
    Option("--privileged", "", "leave the program its rights in the guest", False),
    Option("--jail", "on|off", "off: no walls around the monitor, it has all your rights",
           "on", choices=("on", "off")),
    Option("--cgroup", "PATH", "where to make the VM's cgroup, below the mount of cgroup2"),
    Option("--disk-rate", "SIZE", "bytes a second to read, and to write, at most"),
    Option("--kernel", "KERNEL", "minimal, stock or a file (default: minimal if built)"),
    Option("--entry", "HOW", "linux64 (default) or pvh: how the kernel is entered",
           "linux64", choices=("linux64", "pvh")),
    Option("--cmdline-extra", "WORDS", "for the kernel's command line", ""),
)  # fmt: skip


def vm_options(a: Values) -> Options:
    """What VM_OPTIONS say, as run() and bench() take it."""
    return {
        "entrypoint": [a.entrypoint] if a.entrypoint else None,
        "env": dict(variable(word) for word in a.env),
        "platform": a.platform,
        "pull": a.pull,
        "image_limits": dict(limit(word) for word in a.image_limit),
        "workdir": a.workdir,
        "user": a.user,
        "hostname": a.hostname,
        "vcpus": a.vcpus,
        "memory": a.memory,
        "hugepages": a.hugepages,
        "numa_node": a.numa_node,
        "cpus": a.cpu_list,
        "prefault": a.prefault,
        "disk": a.disk,
        "timeout": a.timeout or None,
        "boot_timeout": a.boot_timeout,
        "max_output": a.max_output,
        "vsock_buffer": a.vsock_buffer,
        "privileged": a.privileged,
        "jail": a.jail,
        "cgroup": a.cgroup,
        "disk_rate": a.disk_rate,
        "kernel": a.kernel,
        "entry": a.entry,
        "cmdline_extra": a.cmdline_extra,
    }


def variable(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    return key, value if equals else os.environ.get(key, "")


def limit(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value
