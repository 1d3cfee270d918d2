"""``pyvmm cp``: files between this host and a machine that was started with ``--name``."""

from __future__ import annotations

import os
import stat
import sys

from ..arguments import Command, Option, Values
from ..cli import say
from ..errors import PyvmmError, UsageError, printable
from .files import Files
from .named import connect


def _cp(a: Values) -> int:
    if len(a.words) != 2:
        raise UsageError(f"give a source and a destination, not {len(a.words)} words")
    (source, guest), (destination, other) = map(_place, a.words)
    if bool(source) == bool(destination):
        raise UsageError("one of both is a machine's: give it as NAME:PATH")
    try:
        if source:
            warnings = _pull(Files(lambda: connect(source)), guest, other, a)
        else:
            warnings = _push(Files(lambda: connect(destination)), guest, other, a)
    except BrokenPipeError:  # our stdout's
        raise
    except OSError as e:
        path = f"{os.fsdecode(e.filename)}: " if e.filename else ""
        raise PyvmmError(f"{path}{e.strerror}") from None
    for warning in warnings:
        say(f"warning: {printable(warning)}")
    return 0


def _pull(files: Files, guest: str, host: str, a: Values) -> list[str]:
    if host != "-":
        return files.pull(guest, host, archive=a.archive, follow=a.follow_link)
    if not sys.stdout or sys.stdout.isatty():
        raise UsageError("an archive is nothing for a terminal: give a path, or redirect")
    with open(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as out:
        return files.pull_tar(guest, out, follow=a.follow_link)


def _push(files: Files, host: str, guest: str, a: Values) -> list[str]:
    if host != "-":
        return files.push(host, guest, archive=a.archive, follow=a.follow_link)
    if not sys.stdin or sys.stdin.isatty():
        raise UsageError("give a path, or redirect an archive to stdin")
    files.push_tar(sys.stdin.buffer, guest)
    return []


def _place(word: str) -> tuple[str, str]:
    """A machine's name and the path in it; the name is empty for a path of this host.

    As in docker cp and scp, ``./a:b`` is a path, unless ``./a`` is a machine's socket.
    """
    name, _, path = word.partition(":")
    if path and name and ("/" not in name or _is_socket(name)):
        return name, path
    return "", word


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


COMMANDS = (
    Command(
        "cp",
        "Copy files between this host and a machine; - is a tar archive.",
        _cp,
        (
            Option("--archive", "", "keep owners, and set-user-ID bits", False, short="-a"),
            Option("--follow-link", "", "copy what a link SOURCE leads to", False, short="-L"),
        ),
        words="NAME:SOURCE DESTINATION | SOURCE NAME:DESTINATION",
    ),
)
