"""Image in, Result out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .machine import Machine
from .results import Result

if TYPE_CHECKING:
    from typing import Unpack

    from .config import Options


def run(
    image: str | Path, command: Sequence[str] | None = None, **options: Unpack[Options]
) -> Result:
    """Run a program from an OCI image in a microVM of its own and return what it brought back.

    ``command`` replaces the image's command; `Options` (config.py) lists the rest. A program that
    fails or times out is a Result; PyvmmError means that there was no run to speak of.
    """
    with Machine(image, command, **options) as machine:
        return machine.wait()
