"""The command line. The program's output goes to stdout and stderr untouched; our words to stderr.

Exit codes: the program's own; 124 timed out, 125 pyvmm failed, 126 cannot execute, 127 not found,
128 + n killed by signal n, 2 usage.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from . import __version__
from .errors import GuestError, PyvmmError, UsageError

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from typing import NoReturn

    from .options import Options
    from .results import Result

CONSOLE_LINES = 40  # of it after a crash: a panic and its call trace


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``pyvmm``."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_args(words)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = arguments.function(arguments)
        sys.stdout.flush()
    except PyvmmError as e:
        say(str(e))
        if isinstance(e, GuestError):
            _show_crash(e)
        code = e.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # Whoever read our output has gone; a flush at exit would only complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _terminated(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def say(text: str) -> None:
    print(f"pyvmm: {text}", file=sys.stderr, flush=True)


def _show_crash(e: GuestError) -> None:
    if e.console:
        print("--- the guest's console ends with:", file=sys.stderr)
        print("\n".join(e.console.rstrip().splitlines()[-CONSOLE_LINES:]), file=sys.stderr)
    if e.registers:
        print(f"--- registers: {e.registers}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """argparse asks the terminal for its width at every argument, and imports shutil for that."""

    def _get_formatter(self) -> argparse.HelpFormatter:
        return argparse.HelpFormatter(self.prog, width=96)


def parser() -> argparse.ArgumentParser:
    """The whole grammar."""
    top = Parser(prog="pyvmm", description="Run an OCI image as a microVM.")
    top.add_argument("--version", action="version", version=f"pyvmm {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _run_parser(commands.add_parser("run", help="run a program from an image"))
    _kernel_parser(commands.add_parser("kernel", help="guest kernels: fetch, build, list, path"))
    doctor = commands.add_parser("doctor", help="say what this host lacks, and the mend")
    doctor.add_argument(
        "--kvm-linux", action="store_true", help="only: exit 0 if KVM here can run Linux, else 1"
    )
    doctor.set_defaults(function=_doctor)
    return top


def _run_parser(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("--image", required=True, metavar="PATH", help="OCI layout, OCI or `docker save` archive")
    add("--vcpus", type=int, default=1, metavar="N", help="virtual CPUs (default 1)")
    add("--memory", default="512M", metavar="SIZE", help="guest RAM (default 512M)")
    add("--disk", default="1G", metavar="SIZE", help="root disk (default 1G)")
    add("--timeout", type=float, default=300, metavar="SECONDS",
        help="for the program, from its start; 0: none (default 300)")  # fmt: skip
    add("--env", action="append", default=[], metavar="K=V", help="K alone takes the host's value")
    add("--workdir", metavar="DIR")
    add("--user", metavar="USER[:GROUP]")
    add("--hostname", default="pyvmm", metavar="NAME")
    add("--entrypoint", metavar="PROGRAM", help="replaces the image's entry point and command")
    add("--output", action="append", default=[], metavar="GUEST_PATH[:HOST_PATH]",
        help="file to bring back (default: to its name, here)")  # fmt: skip
    add("--max-output", default="256M", metavar="SIZE",
        help="keep at most that of each output file, and with --json of each stream")  # fmt: skip
    add("--json", metavar="FILE", help="write the whole Result; - is stdout")
    add("--privileged", action="store_true", help="leave the program its rights in the guest")
    add("--kernel", metavar="PATH|stock|minimal")
    add("--entry", choices=("linux64", "pvh"), default="linux64", help="how the kernel is entered")
    add("--console", action="store_true", help="show the guest's console on stderr, live")
    add("--cmdline-extra", default="", metavar="WORDS", help="for the kernel's command line")
    add("--phases", action="store_true", help="show where the time went, on stderr")
    add("--dry-run", action="store_true", help="show what would run, without /dev/kvm")
    add("command", nargs=argparse.REMAINDER, metavar="-- command …")
    p.set_defaults(function=_run)


def _run(a: argparse.Namespace) -> int:
    command = a.command[1:] if a.command[:1] == ["--"] else a.command
    outputs = dict(_output(word) for word in a.output)
    options: Options = {
        "entrypoint": [a.entrypoint] if a.entrypoint else None,
        "env": dict(_variable(word) for word in a.env),
        "workdir": a.workdir,
        "user": a.user,
        "hostname": a.hostname,
        "vcpus": a.vcpus,
        "memory": a.memory,
        "disk": a.disk,
        "timeout": a.timeout or None,
        "outputs": list(outputs),
        "max_output": a.max_output,
        "privileged": a.privileged,
        "kernel": a.kernel,
        "entry": a.entry,
        "cmdline_extra": a.cmdline_extra,
        "console": sys.stderr.fileno() if a.console else None,
    }
    if a.dry_run:
        return _dry_run(a.image, command or None, options)
    if not a.json:
        options["on_stdout"] = _writer(1)
        options["on_stderr"] = _writer(2)
    from .machine import Machine

    with Machine(a.image, command or None, progress=say, **options) as machine:
        result = machine.wait()
    return _deliver(result, outputs, a)


def _deliver(result: Result, outputs: dict[str, str], a: argparse.Namespace) -> int:
    for path, data in result.files.items():
        try:
            with open(outputs[path], "wb") as file:
                file.write(data)
        except OSError as e:
            raise PyvmmError(f"cannot write output {outputs[path]}: {e.strerror}") from None
    for path, reason in result.missing.items():
        say(f"output {path}: {reason}")
    for name in result.truncated:
        say(f"{name}: longer than --max-output {a.max_output}, cut there")
    for warning in result.warnings:
        say(f"warning: {warning}")
    if result.failure:
        say(result.failure)
    if result.timed_out:
        say(f"timed out after {a.timeout:g} s")
    elif result.out_of_memory:
        say(f"the guest ran out of memory and killed a process (--memory {a.memory})")
    if a.phases:
        from .phases import table

        print(table(result), file=sys.stderr)
    if a.json:
        text = result.to_json() + "\n"
        if a.json == "-":
            sys.stdout.write(text)
        else:
            _writer(1)(result.stdout)
            _writer(2)(result.stderr)
            with open(a.json, "w") as out:
                out.write(text)
    return result.exit_code


def _dry_run(image: str, command: list[str] | None, options: Options) -> int:
    from .config import Config
    from .oci import open_image
    from .plan import make

    with open_image(image) as opened:
        print(make(Config(image, command, **options), opened, say).describe())
    return 0


def _writer(fd: int):  # type: ignore[no-untyped-def]
    """A sink that puts every byte on ``fd``, also where that is a slow pipe."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    return write


def _variable(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    return key, value if equals else os.environ.get(key, "")


def _output(word: str) -> tuple[str, str]:
    guest, colon, host = word.partition(":")
    host = host if colon and host else os.path.basename(guest)
    if not host:
        raise UsageError(f"output {word!r}: names a directory, not a file")
    return guest, host


def _kernel_parser(p: argparse.ArgumentParser) -> None:
    commands = p.add_subparsers(required=True, metavar="COMMAND")
    for name, text in (
        ("fetch", "get Debian's cloud kernel (no root needed)"),
        ("build", "build pyvmm's minimal kernel (about ten minutes on two cores)"),
        ("list", "what is in the cache"),
        ("path", "where a kernel's vmlinux is"),
    ):
        command = commands.add_parser(name, help=text)
        if name == "path":
            command.add_argument("name", nargs="?", metavar="stock|minimal|PATH")
        command.set_defaults(function=_kernel, verb=name)


def _kernel(a: argparse.Namespace) -> int:
    from . import kernel

    if a.verb == "list":
        for found in kernel.installed():
            print(f"{found.name}\t{found.version}\t{found.path}")
        return 0
    if a.verb == "path":
        print(kernel.find(a.name, progress=say).path)
        return 0
    made = kernel.fetch(progress=say) if a.verb == "fetch" else kernel.build(progress=say)
    say(f"kernel {made.name} {made.version} is ready")
    return 0


def _doctor(a: argparse.Namespace) -> int:
    from . import doctor

    if a.kvm_linux:
        reason = doctor.why_not_linux()
        if reason:
            say(reason)
        return 1 if reason else 0
    failed = False
    for check in doctor.checks():
        failed |= bool(check.trouble) and check.needed
        print(f"✗ {check.name}: {check.trouble}" if check.trouble else f"✓ {check.name}")
        if check.trouble and check.mend:
            print(f"    mend: {check.mend}")
    return 1 if failed else 0
