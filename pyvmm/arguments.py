"""Reads command lines by tables of options, in the GNU way.

argparse would do, but imports re, enum, gettext and locale, and every run would wait for them: a
fifth of what starting a VM costs us.
"""

from __future__ import annotations

from .errors import UsageError
from .record import Record

TYPE_CHECKING = False  # see record.py
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

WIDTH = 26  # of help's left column


class Option(Record):
    """``--name VALUE``, or a flag if it has no ``metavar``."""

    name: str
    metavar: str = ""
    help: str = ""
    default: Any = None
    kind: Callable[[str], Any] = str
    choices: Sequence[str] = ()
    many: bool = False
    """may be given again; the value is a list"""
    required: bool = False
    short: str = ""
    """its other name, one dash and a letter; such may be written together, as -it, -eK=V"""


class Command(Record):
    """``pyvmm NAME``. ``function`` gets the Values and returns the exit code."""

    name: str
    help: str
    function: Callable[[Values], int]
    options: Sequence[Option] = ()
    words: str = ""
    """what follows the options, for help; "" if nothing may"""
    rest: bool = False
    """the first such word ends the options, and all others belong to it"""


class Values:
    """Options' values by their names, with ``_`` for ``-``; ``words`` has the rest.

    ``tail`` are those of the words that came after what ended the options.
    """

    words: list[str]
    tail: list[str]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class Help(Exception):
    """Help was asked for: the text."""


def parse(program: str, commands: Sequence[Command], words: list[str]) -> tuple[Command, Values]:
    """Find the command and read its options. Raises Help, or UsageError in one line."""
    if not words:
        raise UsageError(f"which command? See {program} --help")
    if words[0] in ("-h", "--help"):
        raise Help(_overview(program, commands))
    # Names may have two words: the longest first.
    for length in (2, 1):
        name = " ".join(words[:length])
        for command in commands:
            if command.name == name:
                return command, _read(program, command, words[length:])
    if any(command.name.startswith(f"{words[0]} ") for command in commands):
        if words[1:] in (["-h"], ["--help"]):
            group = [c for c in commands if c.name.startswith(f"{words[0]} ")]
            raise Help(_overview(program, group))
        raise UsageError(f"{words[0]}: which command? See {program} {words[0]} --help")
    raise UsageError(f"no command {words[0]!r}: see {program} --help")


def _read(program: str, command: Command, words: list[str]) -> Values:
    known = {name: o for o in command.options for name in (o.name, o.short) if name}
    see = f"see {program} {command.name} --help"
    found: dict[str, Any] = {o.name: [] if o.many else o.default for o in command.options}
    left = words[::-1]
    rest: list[str] = []
    tail: list[str] = []
    given = set()
    while left:
        word = left.pop()
        if word == "--" or (command.rest and not _is_option(word)):
            if word != "--":
                rest.append(word)
            tail = left[::-1]
            rest += tail
            break
        if not _is_option(word):
            rest.append(word)
            continue
        if word[2:3] not in ("", "=") and (first := known.get(word[:2])):
            left += [word[2:] if first.metavar else f"-{word[2:]}", word[:2]]
            continue
        name, equals, value = word.partition("=")
        if name in ("-h", "--help"):
            raise Help(_help(program, command))
        option = known.get(name)
        if option is None:
            raise UsageError(f"no option {name}: {see}")
        name = option.name
        given.add(name)
        if not option.metavar:
            if equals:
                raise UsageError(f"{name} takes no value")
            found[name] = True
            continue
        if not equals:
            if not left:
                raise UsageError(f"{name} needs a value: {option.metavar}")
            value = left.pop()
        if option.many:
            found[name].append(_value(option, value))
        else:
            found[name] = _value(option, value)
    for option in command.options:
        if option.required and option.name not in given:
            raise UsageError(f"{option.name} {option.metavar} is missing: {see}")
    if rest and not command.words:
        raise UsageError(f"{rest[0]!r} is too much: {see}")
    values = Values()
    for name, value in found.items():
        setattr(values, name[2:].replace("-", "_"), value)
    values.words, values.tail = rest, tail
    return values


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-"


def _value(option: Option, text: str) -> Any:
    if option.choices and text not in option.choices:
        raise UsageError(f"{option.name} {text!r}: choose {' or '.join(option.choices)}")
    try:
        return option.kind(text)
    except ValueError:
        raise UsageError(f"{option.name} {text!r}: not a number") from None


def _overview(program: str, commands: Sequence[Command]) -> str:
    lines = [f"usage: {program} COMMAND [options]", ""]
    lines += [f"  {command.name:{WIDTH}} {command.help}" for command in commands]
    return "\n".join([*lines, "", f"{program} COMMAND --help tells a command's options."])


def _help(program: str, command: Command) -> str:
    usage = f"usage: {program} {command.name}"
    required = [f"{o.name} {o.metavar}" for o in command.options if o.required]
    if len(command.options) > len(required):
        required.append("[options]")
    lines = [" ".join([usage, *required, command.words]).rstrip(), "", command.help]
    if command.options:
        lines.append("")
    for option in command.options:
        names = f"{option.short}, {option.name}" if option.short else option.name
        left = f"{names} {option.metavar}".rstrip()
        text = f"  {left:{WIDTH}} {option.help}"
        if len(left) > WIDTH:
            text = f"  {left}\n  {'':{WIDTH}} {option.help}"
        lines.append(text + " (may be given again)" * option.many)
    return "\n".join(lines)
