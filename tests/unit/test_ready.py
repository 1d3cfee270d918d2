"""When a machine is ready: conditions as they are written, and the program's output."""

from __future__ import annotations

import pytest

from pyvmm.errors import UsageError
from pyvmm.ready import Log, parse
from pyvmm.results import STDERR, STDOUT


def test_parse():
    words = ["log=^up$", "port=80", "exec=test -e '/a b'", "log=a=b"]
    conditions = parse(words)
    assert [str(each) for each in conditions] == words
    assert [each.kind for each in conditions] == ["log", "port", "exec", "log"]
    assert parse("port=1") == parse(["port=1"])


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("", "write log=REGEX, port=N or exec=COMMAND"),
        ("port", "write log=REGEX, port=N or exec=COMMAND"),
        ("port=", "write log=REGEX, port=N or exec=COMMAND"),
        ("port=x", "write log=REGEX, port=N or exec=COMMAND"),
        ("port=²", "write log=REGEX, port=N or exec=COMMAND"),
        ("port=0", "ports are 1 to 65535"),
        ("port=65536", "ports are 1 to 65535"),
        ("time=5", "write log=REGEX, port=N or exec=COMMAND"),
        ("exec= ", "write log=REGEX, port=N or exec=COMMAND"),
        ("exec='a", "no closing quotation"),
        ("log=(", "not a regular expression: missing ), unterminated subpattern at position 0"),
    ],
)
def test_wrong(word, why):
    with pytest.raises(UsageError) as caught:
        parse([word])
    assert str(caught.value) == f"wait_for {word!r}: {why}"


@pytest.mark.parametrize(
    ("pattern", "parts", "found"),
    [
        ("ready", [b"is ready\n"], True),
        ("ready", [b"is rea", b"dy"], True),
        ("^ready$", [b"is it?\nrea", b"dy\r\nyes"], True),
        ("^ready$", [b"ready no"], False),
        ("a.b", [b"a\nb"], False),
        ("grün", ["gr\u00fc".encode()[:3], "\u00fcn".encode()[1:]], True),
        ("x", [b"\xff\xfex"], True),
        ("z", [b"y" * 100_000, b"z"], False),  # of a line without end only so much is looked at
        ("z", [b"y" * 100_000, b"\nz"], True),
    ],
)
def test_log(pattern, parts, found):
    log = Log(pattern)
    for part in parts:
        log.feed(STDOUT, part)
    assert log.found == found


def test_streams_have_lines_of_their_own():
    log = Log("ready")
    assert not log.feed(STDOUT, b"rea")
    assert not log.feed(STDERR, b"dy")
    assert not log.feed(STDERR, b" rea")
    assert log.feed(STDOUT, b"dy")
    assert log.feed(STDOUT, b"whatever")
