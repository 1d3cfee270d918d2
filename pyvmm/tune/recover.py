"""Puts back what a killed pyvmm left changed on this host. Every command looks for that.

No imports but os: ``pyvmm run`` asks pending(), one access(2), and imports journal.py only if there
is something to do.
"""

from __future__ import annotations

import os

JOURNAL = "run/pyvmm/tune.journal"


def pending(root: str = "/") -> bool:
    """Whether there is a journal that this user may undo; its owner may still live."""
    return os.access(os.path.join(root, JOURNAL), os.W_OK)


def recover(root: str = "/") -> list[str]:
    """Undo the journal, unless its owner lives. Returns lines to tell the user; raises nothing."""
    from ..errors import HostError
    from .journal import Busy, Journal

    try:
        with Journal(root, wait=0) as journal:  # which undoes what it finds
            count = len(journal.restored)
            settings = f"{count} setting{'s' * (count > 1)}"
            back = f"put back what a killed pyvmm had changed on this host: {settings}"
            return [back] * bool(count) + journal.lines()
    except Busy:
        return []
    except (HostError, OSError) as e:
        return [str(e)]
