"""A comparison as GitHub shows it: Markdown, and the annotations of a workflow's run.

GitHub's documentation, "Workflow commands for GitHub Actions"; GitHub Flavored Markdown Spec,
4.10 (tables) and 6.3 (code spans).
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence

from .comparison import Comparison, Row, shown

COMMENT_MAX = 60_000
"""characters: a comment may have 65,536"""
ERRORS_MAX = 10
"""that GitHub shows of one step"""

_ENTITIES = {ord(c): f"&#{ord(c)};" for c in string.punctuation}
_LISTED_MAX = 20


def markdown(comparison: Comparison) -> str:
    """For a pull request: what changed, then what else differs and all rows, folded."""
    changed = [row for row in comparison.rows if row.verdict != "same"]
    parts = [f"### Benchmarks: {comparison.summary()}\n\n"]
    if changed:
        parts.append(_table(comparison, changed, COMMENT_MAX // 2) + "\n")
    if notes := comparison.notes():
        lines = _bounded((f"- {code(note)}" for note in notes), COMMENT_MAX // 8)
        parts.append(_folded("What else differs", lines))
    room = COMMENT_MAX - sum(map(len, parts)) - 500  # for the fold itself and its table's head
    rows = _table(comparison, comparison.rows, room)
    parts.append(_folded(f"All metrics ({len(comparison.rows)})", rows))
    return "".join(parts)


def annotate(comparison: Comparison) -> list[str]:
    """Workflow commands: each regression an error, all else a line for each kind."""
    worse = comparison.having("regression")
    fit = len(worse) if len(worse) <= ERRORS_MAX else ERRORS_MAX - 1
    lines = [command("error", _short(row), "Regression") for row in worse[:fit]]
    if worse[fit:]:
        lines.append(command("error", _list(map(_short, worse[fit:])), "More regressions"))
    if unsure := [row for row in comparison.having("unsure") if row.ratio]:
        lines.append(command("warning", _list(map(_short, unsure)), "Too much noise, too few runs"))
    if notes := comparison.notes():
        lines.append(command("warning", _list(map(shown, notes)), "What else differs"))
    if better := comparison.having("improvement"):
        lines.append(command("notice", _list(map(_short, better)), "Improvement"))
    return lines


def command(name: str, message: str, title: str) -> str:
    """One workflow command: the runner decodes what is escaped here, and nothing else."""
    data = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    escaped = title.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    escaped = escaped.replace(":", "%3A").replace(",", "%2C")
    return f"::{name} title={escaped}::{data}"


def code(name: str) -> str:
    """A name of any origin as a code span, in which it means nothing: no link, no mention.

    In a cell neither a code span nor a backslash keeps a ``|`` in all renderers, so that such names
    are written with character references, which are never structure (CommonMark, 2.5).
    """
    text = shown(name)
    if text.strip() and not set(text) & set("`|\\"):
        return f"`{text}`"
    return f"<code>{text.translate(_ENTITIES)}</code>"


def _table(comparison: Comparison, rows: Sequence[Row], room: int) -> str:
    benchmark, metric, old, new, change, verdict = comparison.head()
    head = (benchmark, metric, code(old), code(new), change, verdict)
    return "\n".join([_line(head), _line(("---",) * len(head)), _bounded(map(_cells, rows), room)])


def _cells(row: Row) -> str:
    benchmark, metric, old, new, change, verdict = row.cells()
    strong = f"**{verdict}**" if row.verdict == "regression" else verdict
    return _line((code(benchmark), code(metric), _quantity(old), _quantity(new), change, strong))


def _quantity(text: str) -> str:
    """As it is, unless its unit may mean something: that is the program's word, too."""
    unit = text.partition(" ")[2]
    return text if all(c.isalnum() or c in " /%" for c in unit) else code(text)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _bounded(lines: Iterable[str], room: int) -> str:
    """As many lines as there is room for, and how many were left out."""
    kept: list[str] = []
    left = 0
    for line in lines:
        room -= len(line) + 1
        if room < 0:
            left += 1
        else:
            kept.append(line)
    text = "\n".join(kept) + "\n"
    return f"{text}\n{left} more are left out here: see the file of `--json`.\n" if left else text


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


def _short(row: Row) -> str:
    benchmark, metric, old, new, change, verdict = map(shown, row.cells())
    detail = verdict if row.verdict == "unsure" else change
    return f"{benchmark}: {metric}: {old} to {new}: {detail}"


def _list(lines: Iterable[str]) -> str:
    """On lines of their own, as far as somebody reads."""
    found = list(lines)
    more = [f"and {len(found) - _LISTED_MAX} more"] if len(found) > _LISTED_MAX else []
    return "\n".join([*found[:_LISTED_MAX], *more])
