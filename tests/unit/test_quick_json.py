"""quick_json is json, sooner."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pyvmm import quick_json

SLOW = (
    "json re enum pathlib typing argparse dataclasses contextlib functools signal socket hashlib"
    " threading collections"
)
TEXTS = [
    b"{}", b"[]", b" \r\n\t1 ", b"-1.5e3", b'"\\u00e4\\n"', '"ä€😀"'.encode(), b"true", b"null",
    b'{"a": [1, {"b": null}], "a": 2}', b"1" * 50, '"utf-16"'.encode("utf-16"), b"\xef\xbb\xbf[]",
    b"[NaN, Infinity]",
]  # fmt: skip
BAD = [b"", b" ", b"{", b"[1,]", b"{'a': 1}", b"1 2", b'"a\nb"', b'"\xff"', b"nul", b"\xa01"]


@pytest.mark.parametrize("text", TEXTS)
def test_same_values(text: bytes) -> None:
    assert repr(quick_json.loads(text)) == repr(json.loads(text))


@pytest.mark.parametrize("text", BAD)
def test_same_errors(text: bytes) -> None:
    with pytest.raises(ValueError) as theirs:  # noqa: PT011 - compared with ours
        json.loads(text)
    with pytest.raises(ValueError) as ours:  # noqa: PT011
        quick_json.loads(text)
    assert (type(ours.value), str(ours.value)) == (type(theirs.value), str(theirs.value))


def test_nesting_without_end() -> None:
    with pytest.raises(RecursionError):
        quick_json.loads(b"[" * 100_000)


@pytest.mark.parametrize("value", [{}, {"a": [1, -2, 'ä\n"', None, True, {"b": 1.5}]}, [], "x", 0])
def test_dumps(value: object) -> None:
    assert quick_json.dumps(value) == json.dumps(value)


def test_what_json_has_no_word_for() -> None:
    with pytest.raises(TypeError, match="has no place in JSON"):
        quick_json.dumps({"a": b"bytes"})


def test_a_run_imports_neither_json_nor_re() -> None:
    """What `pyvmm run` loads before it has anything to complain of."""
    script = (
        "import sys; from pyvmm import cli, machine, worker; "
        f"print([m for m in {SLOW.split()} if m in sys.modules])"
    )
    environment = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    line = [sys.executable, "-S", "-c", script]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
