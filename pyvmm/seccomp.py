"""Compiles what a thread may ask of the kernel into a seccomp filter: classic BPF (Linux,
Documentation/userspace-api/seccomp_filter.rst).

A policy's line allows a system call, and says after ``#`` what needs it:

    read                                                    # with any arguments
    ioctl: arg1 == KVM_RUN                                  # all 64 bits of arg0 to arg5
    mmap: arg2 in PROT_READ|PROT_WRITE && arg3 == 0x22      # in: no bit outside of these
    mmap: arg2 == 0                                         # or that

Whatever no line allows kills the process. The tests use every line but those that say why they are
``rare: `` (tests/guest/test_policies.py). The filter asks line by line, so that calls that come
often belong first; those that are allowed with any arguments Linux knows without asking (5.11).

The build compiles the policies (setup.py): a run has no time for it.
"""

from __future__ import annotations

import os
import struct

KINDS = ("main", "io", "vcpu")  # VM_THREAD_*
FILTERS = os.path.join(os.path.dirname(__file__), "_data")

# asm/unistd_64.h: what the policies name
CALLS = {
    "read": 0, "write": 1, "close": 3, "poll": 7, "mmap": 9, "munmap": 11,
    "brk": 12, "rt_sigprocmask": 14, "rt_sigreturn": 15, "ioctl": 16, "pread64": 17, "writev": 20,
    "madvise": 28, "getpid": 39, "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47,
    "shutdown": 48, "exit": 60, "futex": 202, "restart_syscall": 219,
    "clock_gettime": 228, "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "tgkill": 234,
    "fallocate": 285, "preadv": 295, "pwritev": 296, "getrandom": 318,
}  # fmt: skip
CONSTANTS = {
    "PROT_READ": 1, "PROT_WRITE": 2,
    "MAP_PRIVATE": 2, "MAP_DROPPABLE": 8, "MAP_ANONYMOUS": 0x20,
    "MADV_DONTNEED": 4,
    "FUTEX_WAIT": 0, "FUTEX_WAKE": 1, "FUTEX_WAIT_BITSET": 9, "FUTEX_PRIVATE_FLAG": 128,
    "FUTEX_CLOCK_REALTIME": 256,
    "FALLOC_FL_KEEP_SIZE": 1, "FALLOC_FL_PUNCH_HOLE": 2,
    "SIGUSR1": 10,
    "KVM_RUN": 0xAE80, "KVM_GET_REGS": 0x8090AE81, "KVM_GET_SREGS": 0x8138AE83,
    "KVM_TRANSLATE": 0xC018AE85,
}  # fmt: skip
ARGUMENTS = {f"arg{i}": 16 + 8 * i for i in range(6)}  # in struct seccomp_data
NR, ARCH = 0, 4  # there as well
ALL_BITS = (1 << 64) - 1
MAX_JUMP = 255
MAX_LENGTH = 4096  # BPF_MAXINSNS

# struct sock_filter as one number: the code in its lowest bits, k in its highest, and between them
# how many instructions a jump passes over.
LOAD, JUMP_EQUAL, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # linux/bpf_common.h
IF_TRUE, IF_FALSE, K = 16, 24, 32
KILL_PROCESS = RETURN | 0x80000000 << K
ALLOW = RETURN | 0x7FFF0000 << K
AUDIT_ARCH_X86_64 = 0xC000003E


def policy(kind: str) -> bytes:
    """The filter of a thread of this kind, one of KINDS. Reads a file of the package."""
    fd = os.open(f"{FILTERS}/{kind}.bpf", os.O_RDONLY | os.O_CLOEXEC)
    code = os.read(fd, 8 * MAX_LENGTH)
    os.close(fd)
    return code


def compile(text: str) -> bytes:
    """An array of struct sock_filter. Raises ValueError with the line that cannot be meant."""
    # The number of a call by the x32 ABI has bit 30 set: no line's is equal to it.
    program = [LOAD | ARCH << K, JUMP_EQUAL | 1 << IF_TRUE | AUDIT_ARCH_X86_64 << K, KILL_PROCESS]
    for number, line in enumerate(text.split("\n"), 1):
        rule = line.partition("#")[0].strip()
        if rule:
            try:
                program += _rule(rule)
            except ValueError as e:
                raise ValueError(f"policy line {number}: {e}") from None
    program.append(KILL_PROCESS)
    return struct.pack(f"<{len(program)}Q", *program)


def _rule(rule: str) -> list[int]:
    """Allow if all tests hold, else go on behind."""
    name, colon, conditions = rule.partition(":")
    if name not in CALLS:
        raise ValueError(f"unknown system call {name!r}")
    tests = [(NR, JUMP_EQUAL, CALLS[name])]
    if colon:
        for condition in conditions.split("&&"):
            tests += _tests(condition)
    behind = 2 * len(tests)
    if behind > MAX_JUMP:
        raise ValueError("too many conditions")
    block: list[int] = []
    for offset, jump, operand in tests:
        behind -= 2
        failed = IF_FALSE if jump == JUMP_EQUAL else IF_TRUE
        block += (LOAD | offset << K, jump | behind + 1 << failed | operand << K)
    block.append(ALLOW)
    return block


def _tests(condition: str) -> tuple[tuple[int, int, int], ...]:
    """Offset, jump and operand; twice, for BPF looks at 32 bits."""
    try:
        argument, relation, value = condition.split()
        at = ARGUMENTS[argument]
    except (ValueError, KeyError):
        raise ValueError(f"not a condition: {condition.strip()!r}") from None
    operand = _value(value)
    if relation == "==":
        jump = JUMP_EQUAL
    elif relation == "in":
        jump, operand = JUMP_ANY_BIT, operand ^ ALL_BITS
    else:
        raise ValueError(f"unknown relation {relation!r}")
    return (at + 4, jump, operand >> 32), (at, jump, operand & 0xFFFFFFFF)


def _value(text: str) -> int:
    """``~`` for all but these bits."""
    bits = 0
    for word in text.removeprefix("~").split("|"):
        try:
            bits |= CONSTANTS[word] if word in CONSTANTS else int(word, 0)
        except ValueError:
            raise ValueError(f"unknown value {word!r}") from None
    if not 0 <= bits <= ALL_BITS:
        raise ValueError(f"not of 64 bits: {text!r}")
    return bits ^ ALL_BITS if text[0] == "~" else bits
