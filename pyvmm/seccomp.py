"""Compiles what a thread may ask of the kernel into a seccomp filter: classic BPF (Linux,
Documentation/userspace-api/seccomp_filter.rst).

A policy has one system call a line, and after ``#`` what needs it:

    read                                        # with any arguments
    ioctl: arg1 == KVM_RUN                      # arg0 to arg5, all 64 bits of them
    mmap: arg2 in PROT_READ|PROT_WRITE && arg3 == 0x22 || arg3 == 0x4022
    openat: return ENOENT                       # refused, and the caller goes on

``in``: no bit outside of the mask. ``&&`` binds closer than ``||``. Whatever else is called, or
with other arguments, kills the process. The order is the filter's: calls whose arguments are looked
at and that come often belong first. The others cost nothing: Linux (5.11) has a bitmap of them.
"""

from __future__ import annotations

import errno
import os
import struct

POLICIES = os.path.join(os.path.dirname(__file__), "policies")

# asm/unistd_64.h: what the policies name
CALLS = {
    "read": 0, "write": 1, "close": 3, "stat": 4, "poll": 7, "mmap": 9, "mprotect": 10,
    "munmap": 11, "brk": 12, "rt_sigprocmask": 14, "rt_sigreturn": 15, "ioctl": 16, "pread64": 17,
    "writev": 20, "mremap": 25, "madvise": 28, "getpid": 39, "sendto": 44, "sendmsg": 46,
    "recvmsg": 47, "shutdown": 48, "exit": 60, "futex": 202, "sched_getaffinity": 204,
    "restart_syscall": 219, "clock_gettime": 228, "exit_group": 231, "epoll_wait": 232,
    "epoll_ctl": 233, "tgkill": 234, "openat": 257, "newfstatat": 262, "fallocate": 285,
    "preadv": 295, "pwritev": 296, "getrandom": 318,
}  # fmt: skip
CONSTANTS = {
    "PROT_READ": 1, "PROT_WRITE": 2,
    "MAP_PRIVATE": 2, "MAP_DROPPABLE": 8, "MAP_ANONYMOUS": 0x20, "MAP_NORESERVE": 0x4000,
    "MREMAP_MAYMOVE": 1, "MADV_DONTNEED": 4,
    "FUTEX_WAIT": 0, "FUTEX_WAKE": 1, "FUTEX_WAIT_BITSET": 9, "FUTEX_PRIVATE": 128,
    "FUTEX_CLOCK_REALTIME": 256,
    "FALLOC_FL_KEEP_SIZE": 1, "FALLOC_FL_PUNCH_HOLE": 2,
    "SIGUSR1": 10,
    "KVM_RUN": 0xAE80, "KVM_GET_REGS": 0x8090AE81, "KVM_GET_SREGS": 0x8138AE83,
    "KVM_TRANSLATE": 0xC018AE85,
}  # fmt: skip
ALL_BITS = (1 << 64) - 1

# linux/audit.h, seccomp.h, bpf_common.h
AUDIT_ARCH_X86_64 = 0xC000003E
RET_KILL_PROCESS, RET_ERRNO, RET_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
LOAD, JUMP_EQUAL, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
NR_AT, ARCH_AT, ARGS_AT = 0, 4, 16  # struct seccomp_data
MAX_JUMP = 255


def policy(kind: str) -> bytes:
    """The filter of a thread of this kind: "main", "io" or "vcpu". Reads a file of the package."""
    with open(f"{POLICIES}/{kind}.policy", "rb") as file:
        return compile(file.read().decode())


def compile(text: str) -> bytes:
    """An array of struct sock_filter. Raises ValueError with the line that cannot be meant."""
    program = [
        _instruction(LOAD, ARCH_AT),
        _instruction(JUMP_EQUAL, AUDIT_ARCH_X86_64, 1, 0),
        _instruction(RETURN, RET_KILL_PROCESS),
        # A call by the x32 ABI has bit 30 set in its number, and so is none of the list.
        _instruction(LOAD, NR_AT),
    ]
    known = set()
    for number, line in enumerate(text.splitlines(), 1):
        rule = line.partition("#")[0].strip()
        if not rule:
            continue
        name, colon, what = (part.strip() for part in rule.partition(":"))
        try:
            if name not in CALLS:
                raise ValueError(f"unknown system call {name!r}")
            if name in known:
                raise ValueError(f"system call {name!r} has a line already")
            block = _block(what) if colon else [_instruction(RETURN, RET_ALLOW)]
        except ValueError as e:
            raise ValueError(f"policy line {number}: {e}") from None
        known.add(name)
        program.append(_instruction(JUMP_EQUAL, CALLS[name], 0, len(block)))
        program += block
    program.append(_instruction(RETURN, RET_KILL_PROCESS))
    return struct.pack(f"<{len(program)}Q", *program)


def _instruction(code: int, k: int, if_true: int = 0, if_false: int = 0) -> int:
    """struct sock_filter as one number; jumps count the instructions that they pass over."""
    return code | if_true << 16 | if_false << 24 | k << 32


def _block(what: str) -> list[int]:
    """What becomes of a call, after the colon in its line."""
    words = what.split()
    if len(words) == 2 and words[0] == "return":
        number = getattr(errno, words[1], None)
        if number is None:
            raise ValueError(f"unknown error {words[1]!r}")
        return [_instruction(RETURN, RET_ERRNO | number)]
    block = []
    for alternative in what.split("||"):
        block += _alternative(alternative)
    if len(block) >= MAX_JUMP:
        raise ValueError("too many conditions")
    return [*block, _instruction(RETURN, RET_KILL_PROCESS)]


def _alternative(text: str) -> list[int]:
    """Allow the call if all conditions hold, else go on behind."""
    tests = [test for condition in text.split("&&") for test in _tests(condition)]
    block = []
    for index, (offset, jump, k) in enumerate(tests):
        # Behind this jump: what is left of two instructions a test, and the return.
        behind = 2 * (len(tests) - index - 1) + 1
        block.append(_instruction(LOAD, offset))
        if jump == JUMP_EQUAL:
            block.append(_instruction(jump, k, 0, behind))
        else:
            block.append(_instruction(jump, k, behind, 0))
    return [*block, _instruction(RETURN, RET_ALLOW)]


def _tests(condition: str) -> list[tuple[int, int, int]]:
    """A condition is two tests, since BPF looks at 32 bits: offset, kind of jump, operand."""
    words = condition.split()
    if len(words) != 3 or words[0] not in ("arg0", "arg1", "arg2", "arg3", "arg4", "arg5"):
        raise ValueError(f"not a condition: {condition.strip()!r}")
    argument, relation, value = words
    operand = _value(value)
    if relation == "==":
        jump = JUMP_EQUAL
    elif relation == "in":
        jump, operand = JUMP_ANY_BIT, operand ^ ALL_BITS
    else:
        raise ValueError(f"unknown relation {relation!r}")
    at = ARGS_AT + 8 * int(argument[3:])
    return [(at + 4, jump, operand >> 32), (at, jump, operand & 0xFFFFFFFF)]


def _value(text: str) -> int:
    bits = 0
    for word in text.removeprefix("~").split("|"):
        try:
            bits |= CONSTANTS[word] if word in CONSTANTS else int(word, 0)
        except ValueError:
            raise ValueError(f"unknown value {word!r}") from None
    if not 0 <= bits <= ALL_BITS:
        raise ValueError(f"no argument of 64 bits: {text!r}")
    return bits ^ ALL_BITS if text.startswith("~") else bits
