"""``pyvmm compare``: what changed between two reports, for people, pull requests and CI."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..arguments import Command, Option, Values
from ..cli import say
from ..errors import BenchmarkError, PyvmmError, UsageError
from ..whole_file import write_text
from . import github
from .compare import CONFIDENCE, THRESHOLD, Thresholds, compare, duet
from .comparison import Comparison
from .model import Report
from .statistics import least_runs


def _compare(a: Values) -> int:
    thresholds = _thresholds(a.threshold)
    if len(a.words) not in (1, 2):
        raise UsageError(f"give two reports, or one of a duet, not {len(a.words)}")
    if [a.json, a.markdown].count("-") == 2:
        raise UsageError("--json - and --markdown -: stdout takes one of them")
    reports = [Report.load(path) for path in a.words]
    if len(reports) == 2:
        found = compare(reports[0], reports[1], thresholds, a.metric, (a.words[0], a.words[1]))
    elif not reports[0].duet:
        raise UsageError(f"{a.words[0]}: not a duet's report: give the new report, too")
    else:
        found = duet(reports[0], thresholds, a.metric)
    _deliver(found, a, os.environ)
    if found.regressed(a.strict):
        return 1
    if not found.judged():
        raise BenchmarkError(
            f"too few runs for an interval, so nothing was judged: make {least_runs(CONFIDENCE)}"
            " or more, by --runs"
        )
    return 0


def _deliver(found: Comparison, a: Values, environment: Mapping[str, str]) -> None:
    in_actions = environment.get("GITHUB_ACTIONS") == "true"
    for path, text in ((a.json, found.to_json()), (a.markdown, github.markdown(found))):
        if path and path != "-":
            write_text(path, text)
    with _no_commands(in_actions):
        if a.json == "-":
            sys.stdout.write(found.to_json())
        elif a.markdown == "-":
            sys.stdout.write(github.markdown(found))
        else:
            print(found.table())
    if not in_actions:
        for note in found.notes():
            say(f"warning: {note}")
        return
    for line in github.annotate(found):
        print(line)
    if summary := environment.get("GITHUB_STEP_SUMMARY"):
        _append(summary, github.markdown(found))


@contextmanager
def _no_commands(in_actions: bool) -> Iterator[None]:
    """In GitHub Actions a line of a hostile name could be a workflow command: none is obeyed here.

    GitHub's documentation, "Stopping and starting workflow commands": by a word nobody can guess.
    """
    token = secrets.token_hex(16)
    if in_actions:
        print(f"::stop-commands::{token}")
    try:
        yield
    finally:
        if in_actions:
            print(f"::{token}::")


def _thresholds(words: list[str]) -> Thresholds:
    default, metrics = THRESHOLD, {}
    for word in words:
        metric, equals, share = word.rpartition("=")
        try:
            if not share.endswith("%"):
                raise ValueError
            threshold = float(share[:-1]) / 100
            if not 0 <= threshold < float("inf"):
                raise ValueError
        except ValueError:
            raise UsageError(f"--threshold {word!r}: write it as 5%, or as time=2%") from None
        if equals:
            metrics[metric] = threshold
        else:
            default = threshold
    return Thresholds(default, metrics)


def _append(path: str, text: str) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as e:
        raise PyvmmError(f"{path}: cannot be written: {e.strerror}") from None


COMMANDS = (
    Command(
        "compare",
        "Say what changed between two reports; exit 1 on a regression.",
        _compare,
        (
            Option("--threshold", "[METRIC=]N%",
                   "a change up to it is none (default 5%); METRIC may be a pattern", many=True),
            Option("--metric", "NAME", "compare these only; a name or a pattern, as */time",
                   many=True),
            Option("--strict", "", "exit 1 also where noise may hide a regression", False),
            Option("--markdown", "FILE", "write it for a pull request; - is stdout"),
            Option("--json", "FILE", "write all of it; - is stdout"),
        ),
        words="OLD.json NEW.json | DUET.json",
    ),
)  # fmt: skip
