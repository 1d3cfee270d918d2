"""Can this host run pyvmm? Each check by trying, each failure with its mend."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
from collections.abc import Iterator
from fcntl import ioctl

from . import boot, cpu, layout, walls
from .arguments import Command, Option, Values
from .cli import say
from .errors import HostError, PyvmmError
from .host import open_kvm
from .kvm import Kvm
from .memory import GuestMemory
from .record import Record

WALL_MENDS = {
    "landlock": "a kernel with CONFIG_SECURITY_LANDLOCK, and lsm=…,landlock on its command line",
    "cgroup": "run as root, or in a delegated cgroup: "
    "systemd-run --user --scope -p Delegate=yes, and from a leaf of it",
}
KVM_RUN = 0xAE80
KVM_EXIT_IO = 2

CODE_AT, AREA_AT = 0x100000, 0x101000
CODE = bytes.fromhex(
    "0f20e0"  # mov rax, cr4
    "0d00060400"  # or eax, OSFXSR | OSXMMEXCPT | OSXSAVE
    "0f22e0"  # mov cr4, rax
    "0f57c0"  # xorps xmm0, xmm0
    "31c9"  # xor ecx, ecx
    "0f01d0"  # xgetbv
    "0fae2b"  # xrstor [rbx]
    "66ba0406"  # mov dx, PORT_RESET
    "ee"  # out dx, al
)


def why_not_linux() -> str:
    """Why this host's KVM cannot run Linux; empty if it can. Takes about a millisecond.

    A guest of nine instructions does what every Linux does early, and what a KVM without VT-x or
    SVM (its instruction emulator) cannot: SSE, XGETBV, XRSTOR.
    """
    fd = open_kvm()
    try:
        kvm = Kvm(fd)
        kvm.check()
        vm = kvm.create_vm()
        vm.set_tss(layout.IDENTITY_MAP, layout.TSS)
        vm.create_irqchip()
        memory = GuestMemory(2 << 20)
        memory.map_into(vm)
        memory.write(CODE_AT, CODE)
        boot.write_page_tables(memory)
        vcpu = vm.create_vcpu(0)
        cpu.set_up(kvm, vcpu, 0, 1, kvm.supported_cpuid())
        vcpu.set_sregs(cpu.long_mode(vcpu.get_sregs()))
        vcpu.set_regs(cpu.regs(rip=CODE_AT, rbx=AREA_AT))
        with mmap.mmap(vcpu.fd, kvm.vcpu_mmap_size()) as run:
            ioctl(vcpu.fd, KVM_RUN, 0)
            reason, detail = struct.unpack_from("<I20xI", run, 8)
        os.close(vcpu.fd)
        os.close(vm.fd)
    finally:
        os.close(fd)
    if reason == KVM_EXIT_IO:
        return ""
    return (
        "this host's KVM cannot run Linux: it emulates instructions, and fails at SSE or XRSTOR "
        f"(exit {reason}, suberror {detail}); use a host with VT-x or SVM, or nested virtualisation"
    )


class Check(Record):
    """One line of the doctor's."""

    name: str
    fact: str = ""
    """what there is"""
    trouble: str = ""
    """what there is not, and why"""
    mend: str = ""
    needed: bool = True


def checks() -> Iterator[Check]:
    """All checks, in the order in which their failures matter."""
    try:
        reason = why_not_linux()
        yield Check("KVM", trouble=reason)
    except PyvmmError as e:
        yield Check("KVM", trouble=str(e))
    yield from _walls()
    yield _extensions()
    yield _kernels()
    yield _directory(os.environ.get("TMPDIR") or "/var/tmp")
    tools = [t for t in ("flex", "bison", "bc", "make", "gcc") if not shutil.which(t)]
    yield Check(
        "kernel build",
        trouble=f"missing: {', '.join(tools)} (only for `pyvmm kernel build`)" if tools else "",
        mend=f"sudo apt-get install {' '.join(tools)} libelf-dev",
        needed=False,
    )


def _walls() -> Iterator[Check]:
    try:
        found = walls.found()
    except HostError as e:
        yield Check("jail", trouble=str(e))
        return
    for name, fact in found.items():
        if fact.startswith("none: "):
            yield Check(f"wall: {name}", trouble=fact, mend=WALL_MENDS[name], needed=False)
        else:
            yield Check(f"wall: {name}", fact)


def _extensions() -> Check:
    try:
        from . import _ext4  # noqa: F401
    except ImportError as e:
        return Check("ext4 writer", trouble=str(e), mend="sudo apt-get install libext2fs2")
    return Check("ext4 writer")


def _kernels() -> Check:
    from . import kernel

    if kernel.installed():
        return Check("guest kernel")
    return Check(
        "guest kernel", trouble="none in the cache yet", mend="pyvmm kernel fetch", needed=False
    )


def _directory(path: str) -> Check:
    try:
        os.close(os.open(path, os.O_TMPFILE | os.O_RDWR, 0o600))
    except OSError as e:
        why = f"{path}: {e.strerror}"
        return Check("temporary files", trouble=why, mend="set TMPDIR to another directory")
    return Check("temporary files", path)


def _doctor(a: Values) -> int:
    if a.kvm_linux:
        reason = why_not_linux()
        if reason:
            say(reason)
        return 1 if reason else 0
    failed = False
    for check in checks():
        failed |= bool(check.trouble) and check.needed
        fact = f": {check.trouble or check.fact}" if check.trouble or check.fact else ""
        print(f"{'✗' if check.trouble else '✓'} {check.name}{fact}")
        if check.trouble and check.mend:
            print(f"    mend: {check.mend}")
    return 1 if failed else 0


COMMANDS = (
    Command(
        "doctor",
        "Say what this host lacks, and the mend.",
        _doctor,
        (Option("--kvm-linux", "", "only: exit 0 if KVM here can run Linux, else 1", False),),
    ),
)  # fmt: skip
