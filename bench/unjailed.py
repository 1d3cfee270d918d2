"""pyvmm without the walls around its monitor, as one to be measured beside."""

from __future__ import annotations

import ours
from subject import Run, Subject

NAME = "pyvmm --jail=off"


def run(subject: Subject) -> Run:
    return ours.run(subject, "--jail", "off")
