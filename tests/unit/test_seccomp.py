"""seccomp filters: what becomes of a policy, and what the worker's policies let through."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import select
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from pyvmm._core import ffi, lib

from pyvmm import kvm, seccomp

from .virtq import Machine

KILL, ALLOW = 0x80000000, 0x7FFF0000  # linux/seccomp.h
X86_64, I386 = 0xC000003E, 0x40000003  # linux/audit.h
SIGSEGV, SIGSYS = 11, 31
ALL = (1 << 64) - 1
GETPID, GETPPID, WRITEV = 39, 110, 20
MMAP, MPROTECT, IOCTL, FUTEX, TGKILL, SENDTO = 9, 10, 16, 202, 234, 44


def verdicts(code: bytes, nr: int, *args: int, arch: int = X86_64) -> set[int]:
    """What a filter may say of a call: classic BPF (Linux, Documentation/networking/filter.rst).

    Without ``args``, everything that it says with any.
    """
    program = list(struct.iter_unpack("<HBBI", code))
    known = 64 if args else 16
    data = struct.pack("<IIQ6Q", nr, arch, 0, *args, *(0,) * (6 - len(args)))
    ways: list[tuple[int, int | None]] = [(0, 0)]
    found = set()
    while ways:
        at, accumulator = ways.pop()
        operation, if_true, if_false, k = program[at]
        if operation == 0x06:
            found.add(k)
            continue
        at += 1
        if operation == 0x20:
            assert k % 4 == 0
            ways.append((at, struct.unpack_from("<I", data, k)[0] if k < known else None))
            continue
        assert operation in (0x15, 0x45)
        if accumulator is None:
            ways += [(at + if_true, None), (at + if_false, None)]
        else:
            holds = accumulator == k if operation == 0x15 else accumulator & k != 0
            ways.append((at + (if_true if holds else if_false), accumulator))
    return found


def status_of(body: Callable[[], object], code: bytes = b"") -> int:
    """How a process ends that does ``body``, behind a filter if there is one, and exits with 0."""
    libc = ctypes.CDLL(None)
    instructions = ctypes.create_string_buffer(code, len(code))
    address = ctypes.addressof(instructions)
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(code) // 8, address))
    pid = os.fork()
    if pid == 0:
        try:
            libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: a core dump would show in the status
            libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
            if code:
                assert libc.syscall(317, 1, 0, program) == 0  # seccomp, SECCOMP_SET_MODE_FILTER
            body()
            os._exit(0)
        except BaseException as e:
            os.write(2, f"{e!r}\n".encode())
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def call(nr: int, *args: int) -> Callable[[], int]:
    """That call, with no other before it."""
    syscall = ctypes.CDLL(None).syscall
    numbers = [ctypes.c_ulong(number) for number in (nr, *args)]
    return lambda: syscall(*numbers)


def compiled(*rules: str) -> bytes:
    """With what the end of a child needs, and Python's memory on the way there."""
    return seccomp.compile("\n".join(["exit_group", "brk", "mmap", "munmap", *rules]))


class TestKernel:
    """getpid does the same with whatever arguments."""

    def test_a_call_that_is_allowed(self) -> None:
        assert status_of(call(GETPID), compiled("getpid")) == 0

    def test_a_call_that_is_not(self) -> None:
        assert status_of(call(GETPPID), compiled("getpid")) == SIGSYS

    def test_an_empty_policy(self) -> None:
        assert status_of(call(GETPID), seccomp.compile("")) == SIGSYS

    @pytest.mark.parametrize(
        ("rules", "args", "status"),
        [
            (["getpid: arg0 == 0x100000002"], (0x100000002,), 0),
            (["getpid: arg0 == 0x100000002"], (2,), SIGSYS),
            (["getpid: arg0 == 0x100000002"], (0x100000003,), SIGSYS),
            (["getpid: arg5 in 6"], (0, 0, 0, 0, 0, 2), 0),
            (["getpid: arg5 in 6"], (0, 0, 0, 0, 0, 1 << 32 | 2), SIGSYS),
            (["getpid: arg5 in ~4"], (0, 0, 0, 0, 0, ALL ^ 4), 0),
            (["getpid: arg5 in ~4"], (0, 0, 0, 0, 0, 4), SIGSYS),
            (["getpid: arg0 == 1 && arg1 == 2", "getpid: arg1 == 3"], (1, 2), 0),
            (["getpid: arg0 == 1 && arg1 == 2", "getpid: arg1 == 3"], (1, 3), 0),
            (["getpid: arg0 == 1 && arg1 == 2", "getpid: arg1 == 3"], (2, 2), SIGSYS),
        ],
    )
    def test_arguments(self, rules: list[str], args: tuple[int, ...], status: int) -> None:
        code = compiled(*rules)
        assert status_of(call(GETPID, *args), code) == status
        assert verdicts(code, GETPID, *args) == {KILL if status else ALLOW}

    def test_x32(self) -> None:
        """Its numbers are the same ones with bit 30 set."""
        number = 1 << 30 | GETPID
        assert status_of(call(number), compiled("getpid")) == SIGSYS
        assert verdicts(compiled("getpid"), number) == {KILL}

    def test_32_bit_call_with_a_number_that_is_allowed(self) -> None:
        """i386's 20 is getpid, ours is writev."""
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
        address = ctypes.addressof(ctypes.c_char.from_buffer(code))
        enter = ctypes.CFUNCTYPE(ctypes.c_int)(address)
        if status_of(enter) == SIGSEGV:
            pytest.skip("this kernel has no 32-bit system calls")
        assert status_of(call(WRITEV), compiled("writev")) == 0
        assert status_of(enter, compiled("writev")) == SIGSYS


class TestCompiler:
    @pytest.mark.parametrize("arch", [I386, 0, X86_64 & ~(1 << 30), ALL & 0xFFFFFFFF])
    def test_other_architectures(self, arch: int) -> None:
        assert verdicts(compiled("getpid"), GETPID, arch=arch) == {KILL}

    @pytest.mark.parametrize("argument", range(6))
    def test_every_bit_of_every_argument_counts(self, argument: int) -> None:
        wanted = 0x8000_0001_0000_0010
        equal = seccomp.compile(f"getpid: arg{argument} == {wanted:#x}")
        within = seccomp.compile(f"getpid: arg{argument} in {wanted:#x}")
        for bit in range(64):
            args = [0] * 6
            args[argument] = wanted ^ 1 << bit
            assert verdicts(equal, GETPID, *args) == {KILL}
            assert verdicts(within, GETPID, *args) == {ALLOW if wanted >> bit & 1 else KILL}

    def test_code(self) -> None:
        text = "# nothing\n\nread # why\nioctl: arg1 == 0xae80 # why"
        assert list(struct.iter_unpack("<HBBI", seccomp.compile(text))) == [
            (0x20, 0, 0, 4), (0x15, 1, 0, X86_64), (0x06, 0, 0, KILL),
            (0x20, 0, 0, 0), (0x15, 0, 1, 0), (0x06, 0, 0, ALLOW),
            (0x20, 0, 0, 0), (0x15, 0, 5, 16),
            (0x20, 0, 0, 28), (0x15, 0, 3, 0), (0x20, 0, 0, 24), (0x15, 0, 1, 0xAE80),
            (0x06, 0, 0, ALLOW), (0x06, 0, 0, KILL),
        ]  # fmt: skip

    def test_values(self) -> None:
        for value, number in [
            ("PROT_READ|PROT_WRITE", 3), ("SIGUSR1", 10), ("0x10|1", 17), ("~0", ALL),
            ("~PROT_READ|2", ALL ^ 3), ("18446744073709551615", ALL),
        ]:  # fmt: skip
            code = seccomp.compile(f"getpid: arg0 == {value}")
            assert verdicts(code, GETPID, number) == {ALLOW}
            assert verdicts(code, GETPID, number ^ 1) == {KILL}

    def test_as_many_conditions_as_a_jump_can_pass_over(self) -> None:
        code = seccomp.compile("getpid: " + " && ".join(["arg0 == 1"] * 63))
        assert verdicts(code, GETPID, 1) == {ALLOW}
        assert verdicts(code, GETPID, 2) == {KILL}

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("openat", "unknown system call 'openat'"),
            ("read write", "unknown system call 'read write'"),
            (": arg0 == 1", "unknown system call ''"),
            ("read:", "not a condition: ''"),
            ("read: arg6 == 1", "not a condition: 'arg6 == 1'"),
            ("read: arg0 ==", "not a condition: 'arg0 =='"),
            ("read: arg0 == 1 2", "not a condition: 'arg0 == 1 2'"),
            ("read: arg0 == 1 &&", "not a condition: ''"),
            ("read: arg0 == 1 || arg0 == 2", "not a condition: 'arg0 == 1 || arg0 == 2'"),
            ("read: arg0 != 1", "unknown relation '!='"),
            ("read: arg0 == O_RDONLY", "unknown value 'O_RDONLY'"),
            ("read: arg0 in ~", "unknown value ''"),
            ("read: arg0 == 1|", "unknown value ''"),
            ("read: arg0 == -1", "not of 64 bits: '-1'"),
            ("read: arg0 == 0x10000000000000000", "not of 64 bits: '0x10000000000000000'"),
            ("read: " + " && ".join(["arg0 == 1"] * 64), "too many conditions"),
        ],
    )
    def test_what_cannot_be_meant(self, line: str, message: str) -> None:
        with pytest.raises(ValueError) as error:  # noqa: PT011 - compared below
            seccomp.compile(f"write\n\n{line}  # why\nread")
        assert str(error.value) == f"policy line 3: {message}"

    def test_numbers_are_the_kernel_headers(self) -> None:
        compiler = shutil.which("cc")
        if not compiler:
            pytest.skip("no cc: apt-get install gcc")
        headers = ("asm/unistd.h", "linux/falloc.h", "linux/futex.h", "linux/kvm.h", "linux/mman.h",
                   "signal.h", "sys/mman.h")  # fmt: skip
        lines = [f"#include <{header}>" for header in headers]
        numbers = {f"__NR_{name}": number for name, number in seccomp.CALLS.items()}
        for name, number in (numbers | seccomp.CONSTANTS).items():
            # Newer than some headers: Linux 6.11
            guard = ("#ifdef MAP_DROPPABLE", "#endif") if name == "MAP_DROPPABLE" else ("", "")
            lines += [guard[0], f'_Static_assert({name} == {number}u, "{name}");', guard[1]]
        line = [compiler, "-D_GNU_SOURCE", "-fsyntax-only", "-xc", "-"]
        done = subprocess.run(line, input="\n".join(lines), text=True, capture_output=True)
        assert (done.returncode, done.stderr) == (0, "")


# ---- the worker's policies ----

# asm/unistd_64.h: opening, connecting, starting, tracing, mounting and all that a broken worker
# would be broken for.
DENIED = {
    "open": 2, "shmget": 29, "shmat": 30, "dup": 32, "dup2": 33, "sendfile": 40, "socket": 41,
    "connect": 42, "accept": 43, "bind": 49, "listen": 50, "socketpair": 53, "setsockopt": 54,
    "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "fcntl": 72, "ftruncate": 77,
    "chdir": 80, "rename": 82, "mkdir": 83, "creat": 85, "link": 86, "unlink": 87, "symlink": 88,
    "chmod": 90, "fchmod": 91, "chown": 92, "ptrace": 101, "syslog": 103, "setuid": 105,
    "setgid": 106, "setresuid": 117, "capset": 126, "rt_sigqueueinfo": 129, "mknod": 133,
    "personality": 135, "modify_ldt": 154, "pivot_root": 155, "prctl": 157, "arch_prctl": 158,
    "setrlimit": 160, "chroot": 161, "acct": 163, "mount": 165, "umount2": 166, "swapon": 167,
    "reboot": 169, "iopl": 172, "ioperm": 173, "init_module": 175, "quotactl": 179,
    "setxattr": 188, "tkill": 200, "sched_setaffinity": 203, "io_setup": 206, "io_submit": 209,
    "remap_file_pages": 216, "getdents64": 217, "timer_create": 222, "mbind": 237, "mq_open": 240,
    "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "inotify_init": 253,
    "openat": 257, "unshare": 272, "splice": 275, "tee": 276, "vmsplice": 278, "move_pages": 279,
    "timerfd_create": 283, "accept4": 288, "signalfd4": 289, "eventfd2": 290, "dup3": 292,
    "pipe2": 293, "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "recvmmsg": 299,
    "fanotify_init": 300, "prlimit64": 302, "open_by_handle_at": 304, "sendmmsg": 307,
    "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
    "finit_module": 313, "seccomp": 317, "memfd_create": 319, "kexec_file_load": 320, "bpf": 321,
    "execveat": 322, "userfaultfd": 323, "copy_file_range": 326, "pkey_mprotect": 329,
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426,
    "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431,
    "fsmount": 432, "pidfd_open": 434, "clone3": 435, "openat2": 437, "pidfd_getfd": 438,
    "process_madvise": 440, "mount_setattr": 442, "landlock_create_ruleset": 444,
    "memfd_secret": 447, "process_mrelease": 448,
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", seccomp.KINDS)


def policy_of(kind: str) -> str:
    return (Path(seccomp.__file__).with_name("policies") / f"{kind}.policy").read_text()


@every_kind
def test_the_build_has_compiled_the_policies(kind: str) -> None:
    assert seccomp.policy(kind) == seccomp.compile(policy_of(kind))


def rules(kind: str) -> list[str]:
    lines = policy_of(kind).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def allowed(kind: str, nr: int, arguments: Iterable[tuple[int, ...]]) -> set[tuple[int, ...]]:
    code = seccomp.policy(kind)
    return {args for args in arguments if verdicts(code, nr, *args) == {ALLOW}}


class TestPolicies:
    @every_kind
    def test_size(self, kind: str) -> None:
        code = seccomp.policy(kind)
        assert len(code) % 8 == 0
        assert len(code) // 8 <= 4096  # BPF_MAXINSNS

    @every_kind
    def test_every_line_says_why(self, kind: str) -> None:
        """Also why no test need use it (tests/guest/test_policies.py)."""
        silent = [line for line in rules(kind) if not re.search(r"# *(rare: )?(?!rare:)\w", line)]
        assert silent == []

    @every_kind
    def test_what_is_named_and_nothing_else(self, kind: str) -> None:
        named = {seccomp.CALLS[line.partition("#")[0].partition(":")[0].strip()]
                 for line in rules(kind)}  # fmt: skip
        code = seccomp.policy(kind)
        assert {nr for nr in range(1024) if ALLOW in verdicts(code, nr)} == named
        assert {name for name, nr in DENIED.items() if nr in named} == set()
        assert {verdict for nr in range(1024) for verdict in verdicts(code, nr)} == {KILL, ALLOW}

    def test_every_number_is_used(self) -> None:
        text = " ".join(line.partition("#")[0] for kind in seccomp.KINDS for line in rules(kind))
        assert seccomp.CALLS.keys() | seccomp.CONSTANTS == {
            word
            for word in re.findall(r"[A-Za-z_]\w*", text)
            if not re.match("arg[0-5]$|in$", word)
        }

    @every_kind
    @pytest.mark.parametrize("nr", [MMAP, MPROTECT])
    def test_no_memory_becomes_executable(self, kind: str, nr: int) -> None:
        """Nor is a file mapped, or anything at an address of the caller's choice."""
        private, fixed, anonymous, noreserve, droppable = 2, 0x10, 0x20, 0x4000, 8
        every = {(0, 1 << 20, prot, flags) for prot in range(16) for flags in (
            *range(64), noreserve | anonymous | private, noreserve | fixed | anonymous | private,
        )}  # fmt: skip
        found = {args[2:] for args in allowed(kind, nr, every)}
        mapped = {
            "main": {(3, anonymous | private)},
            "io": {(3, anonymous | droppable)},
            "vcpu": set(),
        }
        assert found == (mapped[kind] if nr == MMAP else set())

    @pytest.mark.parametrize(
        ("kind", "requests"),
        [
            ("main", {kvm.GET_REGS, kvm.GET_SREGS, kvm.TRANSLATE}),
            ("io", set()),
            ("vcpu", {seccomp.CONSTANTS["KVM_RUN"]}),
        ],
    )
    def test_ioctls(self, kind: str, requests: set[int]) -> None:
        """Of KVM's without a structure, those that pyvmm uses, and a terminal's TIOCSTI."""
        ours = {value for value in vars(kvm).values() if isinstance(value, int)}
        some = ours | {*range(0xAE00, 0xAF00), 0x5412} | {1 << 32 | r for r in requests}
        assert allowed(kind, IOCTL, {(5, request) for request in some}) == {
            (5, request) for request in requests
        }

    @pytest.mark.parametrize(
        ("kind", "found"), [("main", {(1, 7, 10)}), ("io", set()), ("vcpu", set())]
    )
    def test_signals(self, kind: str, found: set[tuple[int, ...]]) -> None:
        every = {(group, 7, signal) for group in (0, 1, 2, ALL) for signal in range(65)}
        assert allowed(kind, TGKILL, every) == found

    @every_kind
    def test_futex_knows_no_priorities_and_requeues_nothing(self, kind: str) -> None:
        wait, wake, wait_bitset = 0, 1, 9
        found = allowed(kind, FUTEX, {(0, operation) for operation in range(512)})
        assert {operation & 127 for _, operation in found} == {wait, wake, wait_bitset}

    @pytest.mark.parametrize("kind", ["main", "io"])
    def test_sending_names_no_receiver(self, kind: str) -> None:
        every = {(3, 0, 0, 0, address, 0) for address in (0, 1, 1 << 32)}
        assert allowed(kind, SENDTO, every) == {(3, 0, 0, 0, 0, 0)}


class TestThreads:
    """The io thread of the core and the one that waits for it, each behind its filter."""

    @staticmethod
    def serve(io: bytes) -> None:
        """Have the io thread fill a buffer with random numbers."""
        with Machine() as machine:
            device = machine.rng()
            queue = device.start()[0]
            for kind, code in enumerate((seccomp.policy("main"), io)):
                filter = ffi.from_buffer(code)
                assert lib.vm_confine(machine.core, kind, filter, len(code) // 8) == 0
            assert lib.vm_spawn(machine.core) == 0
            assert lib.vm_start(machine.core) == 0
            head = queue.add(into=[machine.room(16)])
            queue.kick()
            poll = select.poll()
            poll.register(device.irq, select.POLLIN)
            poll.poll(60_000)
            lib.vm_stop(machine.core)
            assert queue.take_all() == [(head, 16)]
            os._exit(0)

    def test_serves(self) -> None:
        assert status_of(lambda: self.serve(seccomp.policy("io"))) == 0

    def test_one_thread_s_fault_ends_the_process(self) -> None:
        io = seccomp.compile("\n".join(r for r in rules("io") if not r.startswith("getrandom")))
        assert status_of(lambda: self.serve(io)) == SIGSYS
