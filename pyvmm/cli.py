"""The command line. The program's output goes to stdout and stderr untouched; our words to stderr.

Exit codes: the program's own; 124 timed out, 125 pyvmm failed, 126 cannot execute, 127 not found,
128 + n killed by signal n, 2 usage.
"""

from __future__ import annotations

import os
import sys
import time
from _signal import SIGPIPE, SIGTERM, signal

from . import __version__
from .arguments import Command, Help, Option, parse
from .errors import GuestError, PyvmmError, UsageError, printable
from .vm_options import TERMINAL_OPTIONS, VM_OPTIONS, vm_options

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from .arguments import Values
    from .machine import Machine
    from .options import Options
    from .results import Result

# Commands by their first word, and the module that has them.
MORE = {
    "doctor": "doctor",
    "image": "image_commands",
    "kernel": "kernel_commands",
    "cp": "agent.copy_commands",
    "exec": "agent.commands",
    "ps": "ps",
    "bench": "benchmark.commands",
    "duet": "benchmark.commands",
    "compare": "benchmark.compare_commands",
    "tune": "tune.commands",
}
UNDONE = "/run/pyvmm/tune.journal"  # as tune/recover.py has it, which a run need not import
CONSOLE_LINES = 40  # of it after a crash: a panic and its call trace


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``pyvmm``."""
    signal(SIGTERM, _terminated)
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a closed standard stream: nothing of ours may get its number
    os.close(fd)
    try:
        if os.access(UNDONE, os.W_OK):
            from .tune.recover import recover

            for line in recover():
                say(line)
        code = _command(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout:
            sys.stdout.flush()
    except PyvmmError as e:
        say(str(e))
        if isinstance(e, GuestError):
            _show_crash(e)
        code = e.exit_code
    except SystemExit as e:  # SIGTERM's
        code = e.code if isinstance(e.code, int) else 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 128 + SIGPIPE
    except OSError as e:  # a full disk under our output
        say(str(e))
        code = PyvmmError.exit_code
    # All is closed and flushed: taking the interpreter down would cost as much as it did to start.
    os._exit(code)


def _command(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        print(f"pyvmm {__version__}")
        return 0
    commands: Sequence[Command] = COMMANDS
    if words[:1] != ["run"]:  # which needs none of it
        from importlib import import_module

        asked = MORE.get(words[0]) if words else None
        for module in [asked] if asked else dict.fromkeys(MORE.values()):
            commands = (*commands, *import_module(f"pyvmm.{module}").COMMANDS)
    try:
        command, values = parse("pyvmm", commands, words)
    except Help as text:
        print(text)
        return 0
    return command.function(values)


def _terminated(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def say(text: str) -> None:
    # In one write: a line is whole or is not there, whoever else writes or ends us.
    print(f"pyvmm: {printable(text)}\n", end="", file=sys.stderr, flush=True)


def _show_crash(e: GuestError) -> None:
    if e.console:
        print("--- the guest's console ends with:", file=sys.stderr)
        tail = "\n".join(e.console.rstrip().splitlines()[-CONSOLE_LINES:])
        print(printable(tail, keep="\n\t"), file=sys.stderr)
    if e.registers:
        print(f"--- registers: {printable(e.registers)}", file=sys.stderr)


def _run(a: Values) -> int:
    began = time.monotonic() - time.process_time()
    command = a.words
    outputs = dict(_output(word) for word in a.output)
    options = vm_options(a)
    options["outputs"] = list(outputs)
    options["console"] = sys.stderr.fileno() if a.console else None
    options["counters"] = a.counters
    options["publish"], options["wait_for"] = a.publish, a.wait_for
    options["hold"], options["stdin"] = a.hold, 0 if a.interactive else None
    if a.tty:
        if a.wait_for:
            raise UsageError("--wait-for needs a program without a terminal: leave out --tty")
        from .agent import terminal

        options["tty"] = terminal.size(keys=a.interactive)
    if a.dry_run:
        return _dry_run(a.image, command or None, options)
    from .launch import WorkerProcess, server

    server.fork()
    worker = WorkerProcess(jail=a.jail == "on", cgroup=a.cgroup, counters=a.counters)
    if a.jail == "off":
        say("warning: --jail=off: a guest that breaks out of the monitor has all your rights")
    if not a.json:
        options["on_stdout"] = writer(1)
        options["on_stderr"] = writer(2)
    from .machine import Machine  # while the worker makes a VM

    machine = Machine(a.image, command or None, progress=say, name=a.name, **options)
    machine.began = began
    machine.bars = True
    machine.use(worker)
    try:
        machine.start()
        for port in machine.published:
            if port.chosen:
                say(f"{port} is the guest's port {port.guest_port}")
        if machine.ready_after is not None:
            say(f"ready after {machine.ready_after:.2f} s")
        code = _deliver(_wait(machine, a), outputs, a)
        if a.hugepages:
            machine.kill()  # which waits until they are back: the next run looks for them
        return code
    except BaseException:
        machine.kill()
        raise


def _wait(machine: Machine, a: Values) -> Result:
    if not a.tty:
        return machine.wait()
    from .agent import terminal

    with terminal.lent(keys=a.interactive) as signals:
        machine.sources.append(signals)
        return machine.wait()


def _deliver(result: Result, outputs: dict[str, str], a: Values) -> int:
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
    if a.counters:
        from .counters import lines

        for line in lines(result):
            say(line)
    if a.timeline:
        from .timeline import picture

        unicode = (sys.stderr.encoding or "").lower().startswith("utf")
        print(picture(result, ascii_only=not unicode), file=sys.stderr)
    if a.json:
        text = result.to_json() + "\n"
        if a.json == "-":
            sys.stdout.write(text)
        else:
            writer(1)(result.stdout)
            writer(2)(result.stderr)
            with open(a.json, "w") as out:
                out.write(text)
    return result.exit_code


def _dry_run(image: str, command: list[str] | None, options: Options) -> int:
    from .config import Config
    from .oci import open_image
    from .plan import make, place

    config = Config(image, command, **options)
    with open_image(
        image,
        platform=config.image_platform,
        pull=config.pull,
        limits=config.limits,
        progress=say,
        bars=True,
    ) as opened:
        print(make(config, place(config), opened, say).describe())
    return 0


def writer(fd: int):  # type: ignore[no-untyped-def]
    """A sink that puts every byte on ``fd``, also where that is a slow pipe."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(fd, view) :]
        except BrokenPipeError:
            raise  # nobody wants more: no error of ours
        except OSError as e:  # a full disk
            name = "stdout" if fd == 1 else "stderr"
            raise PyvmmError(f"cannot write to {name}: {e.strerror}") from None

    return write


def _output(word: str) -> tuple[str, str]:
    guest, colon, host = word.partition(":")
    host = host if colon and host else os.path.basename(guest)
    if not host:
        raise UsageError(f"output {word!r}: names a directory, not a file")
    return guest, host


COMMANDS = (
    Command(
        "run",
        "Run a program from an image.",
        _run,
        (
            Option("--image", "REF", "of a registry, or a layout's or an archive's path",
                   required=True),
            *VM_OPTIONS,
            *TERMINAL_OPTIONS,
            Option("--hold", "", "start no program: the machine is there for pyvmm exec", False),
            Option("--output", "GUEST[:HOST]", "file to bring back (default: to its name, here)",
                   many=True),
            Option("--name", "NAME", "for pyvmm exec, cp and ps; or a socket's path: it serves"
                   " CONNECT PORT"),
            Option("--publish", "[IP:]PORT:GUEST",
                   "TCP port here that leads to the guest's; 0: any", many=True, short="-p"),
            Option("--wait-for", "WHAT", "is ready when: log=REGEX, port=N or exec=COMMAND",
                   many=True),
            Option("--json", "FILE", "write the whole Result; - is stdout"),
            Option("--console", "", "show the guest's console on stderr, live", False),
            Option("--counters", "", "count what the guest executes, by the CPU's counters", False),
            Option("--timeline", "", "show where the time went, on stderr", False),
            Option("--dry-run", "", "show what would run, without /dev/kvm", False),
        ),
        words="[--] [program …]",
        rest=True,
    ),
)  # fmt: skip
