"""``pyvmm exec``: one more program in a machine that was started with ``--name``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from signal import SIGHUP, SIGINT, SIGQUIT, SIGTERM

from ..arguments import Command, Option, Values
from ..cli import say, writer
from ..errors import UsageError
from ..exchange import Source
from ..vm_options import PROGRAM_OPTIONS, TERMINAL_OPTIONS, variable
from . import program, terminal
from .named import dial
from .process import exec_
from .sources import Piped, Signals

FORWARDED = SIGINT, SIGTERM, SIGHUP, SIGQUIT


def _exec(a: Values) -> int:
    name, *argv = a.words or [""]
    if argv[:1] == ["--"]:
        del argv[0]
    if not argv:
        raise UsageError("give a machine's name and a program: see pyvmm exec --help")
    if a.timeout is not None and a.timeout < 0:
        raise UsageError(f"--timeout {a.timeout:g}: must be seconds, or 0 for none")
    command = program.Command(
        argv,
        env=dict(variable(word) for word in a.env),
        user=a.user,
        workdir=a.workdir,
        tty=terminal.size(keys=a.interactive) if a.tty else False,
        stdin=a.interactive,
    )
    sock = dial(name)
    signals: AbstractContextManager[Signals] = Signals(FORWARDED)
    if a.tty:
        signals = terminal.lent(keys=a.interactive, signals=FORWARDED)
    with signals as told:
        sources: list[Source] = [told, *([Piped(0)] if a.interactive else [])]
        result = exec_(
            sock,
            command,
            sources=sources,
            limit=0,
            timeout=a.timeout or None,
            on_stdout=writer(1),
            on_stderr=writer(2),
        )
    if result.failure:
        say(result.failure)
    if result.timed_out:
        say(f"timed out after {a.timeout:g} s")
    return result.exit_code


COMMANDS = (
    Command(
        "exec",
        "Run one more program in a machine that runs.",
        _exec,
        (
            *TERMINAL_OPTIONS,
            *PROGRAM_OPTIONS,
            Option("--timeout", "SECONDS", "for the program (default: none)", kind=float),
        ),
        words="NAME [--] program …",
        rest=True,
    ),
)
