"""What a VMM's process holds beside its guest's RAM (Documentation/filesystems/proc.rst)."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PAGE = 4096
PR_SET_THP_DISABLE = 41


@dataclass(frozen=True)
class Memory:
    beyond: int
    """bytes of PSS that are not guest RAM"""
    touched: int
    """pages of guest RAM that are there"""


def read(pid: int, guest: int) -> Memory:
    """Measure a process whose guest has ``guest`` bytes of RAM in one mapping."""
    best = (0, 0)  # Rss, Pss of the guest's RAM: the mapping of at least its size that is used most
    total = size = rss = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            size = int(match[2], 16) - int(match[1], 16)
        elif line.startswith("Rss:"):
            rss = int(line.split()[1]) << 10
        elif line.startswith("Pss:"):
            pss = int(line.split()[1]) << 10
            total += pss
            if size >= guest:
                best = max(best, (rss, pss))
    return Memory(total - best[1], best[0] // PAGE)


@contextmanager
def no_huge_pages(wanted: bool) -> Iterator[None]:
    """What is started inside gets 4 KiB pages, so that its Rss tells the pages it touched."""
    _set_thp_disable(wanted)
    try:
        yield
    finally:
        _set_thp_disable(False)


def _set_thp_disable(value: bool) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_THP_DISABLE, int(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_THP_DISABLE)")
