"""The command line's grammar."""

from __future__ import annotations

import pytest

from pyvmm.arguments import Command, Help, Option, Values, parse
from pyvmm.errors import UsageError

COMMANDS = (
    Command(
        "run",
        "Runs.",
        lambda _: 0,
        (
            Option("--image", "PATH", "what", required=True),
            Option("--cpu-count", "N", "how many", 1, int),
            Option("--env", "K=V", many=True, short="-e"),
            Option("--how", "HOW", "the way", "a", choices=("a", "b")),
            Option("--loud", "", "a flag", False, short="-l"),
            Option("--tall", "", "another", False, short="-t"),
        ),
        words="[program …]",
        rest=True,
    ),
    Command("kernel list", "Lists.", lambda _: 1),
    Command("kernel path", "Shows.", lambda _: 2, words="[NAME]"),
)


def read(*words: str) -> Values:
    return parse("prog", COMMANDS, list(words))[1]


def test_defaults() -> None:
    found = read("run", "--image", "i")
    assert vars(found) == {
        "image": "i", "cpu_count": 1, "env": [], "how": "a", "loud": False, "tall": False,
        "words": [], "tail": [],
    }  # fmt: skip


def test_all_given() -> None:
    found = read(
        "run", "--env=A=1", "--image=a=b", "--cpu-count", "4", "--env", "B", "--loud", "--how", "b"
    )
    assert vars(found) == {
        "image": "a=b", "cpu_count": 4, "env": ["A=1", "B"], "how": "b", "loud": True,
        "tall": False, "words": [], "tail": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "rest"),
    [
        (["ls", "--loud", "-l"], ["ls", "--loud", "-l"]),
        (["--", "ls", "--", "-l"], ["ls", "--", "-l"]),
        (["--", "--loud"], ["--loud"]),
        (["-", "x"], ["-", "x"]),
        (["--"], []),
    ],
)
def test_the_program_keeps_its_own_options(words: list[str], rest: list[str]) -> None:
    found = read("run", "--image", "i", *words)
    assert (found.words, found.loud) == (rest, False)


def test_the_last_of_an_option_counts() -> None:
    assert read("run", "--image", "a", "--image", "b").image == "b"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["-l"], (True, False, [])),
        (["-lt"], (True, True, [])),
        (["-tl", "-l", "ls", "-t"], (True, True, ["ls", "-t"])),
        (["-t", "--", "-l"], (False, True, ["-l"])),
    ],
)
def test_short_flags(words: list[str], found: tuple[bool, bool, list[str]]) -> None:
    values = read("run", "--image", "i", *words)
    assert (values.loud, values.tall, values.words) == found


@pytest.mark.parametrize(
    ("words", "env"),
    [
        (["-e", "A=l"], ["A=l"]),
        (["-eA=l"], ["A=l"]),
        (["-e=A=l"], ["A=l"]),
        (["-elt"], ["lt"]),
        (["-e-l"], ["-l"]),
        (["-le", "A", "-eB", "--env", "C"], ["A", "B", "C"]),
        (["-leA"], ["A"]),
    ],
)
def test_short_options(words: list[str], env: list[str]) -> None:
    values = read("run", "--image", "i", *words, "ls", "-e")
    assert (values.env, values.tall, values.words) == (env, False, ["ls", "-e"])
    assert values.loud == words[0].startswith("-l")


def test_commands_of_two_words() -> None:
    command, values = parse("prog", COMMANDS, ["kernel", "path", "stock"])
    assert (command.function(values), values.words) == (2, ["stock"])


def test_what_comes_after_dashes() -> None:
    values = parse("prog", COMMANDS, ["kernel", "path", "stock", "--", "ls", "--", "-l"])[1]
    assert (values.words, values.tail) == (["stock", "ls", "--", "-l"], ["ls", "--", "-l"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which command? See prog --help"),
        (["ron"], "no command 'ron': see prog --help"),
        (["kernel"], "kernel: which command? See prog kernel --help"),
        (["kernel", "lits"], "kernel: which command? See prog kernel --help"),
        (["kernel", "list", "x"], "'x' is too much: see prog kernel list --help"),
        (["run"], "--image PATH is missing: see prog run --help"),
        (["run", "--image"], "--image needs a value: PATH"),
        (["run", "--nonsense"], "no option --nonsense: see prog run --help"),
        (["run", "--imag", "x"], "no option --imag: see prog run --help"),
        (["run", "-x"], "no option -x: see prog run --help"),
        (["run", "-lx"], "no option -x: see prog run --help"),
        (["run", "-le"], "--env needs a value: K=V"),
        (["run", "-l=1"], "--loud takes no value"),
        (["run", "--loud=1"], "--loud takes no value"),
        (["run", "--cpu-count", "x"], "--cpu-count 'x': not a number"),
        (["run", "--how", "c"], "--how 'c': choose a or b"),
    ],
)
def test_usage(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(*words)
    assert str(caught.value) == message


def test_help() -> None:
    with pytest.raises(Help) as caught:
        read("run", "--image", "x", "--help")
    assert str(caught.value).splitlines() == [
        "usage: prog run --image PATH [options] [program …]",
        "",
        "Runs.",
        "",
        "  --image PATH               what",
        "  --cpu-count N              how many",
        "  -e, --env K=V               (may be given again)",
        "  --how HOW                  the way",
        "  -l, --loud                 a flag",
        "  -t, --tall                 another",
    ]
    for words, lines in ((["--help"], 3), (["kernel", "-h"], 2)):
        with pytest.raises(Help) as caught:
            read(*words)
        assert sum(line.startswith("  ") for line in str(caught.value).splitlines()) == lines
