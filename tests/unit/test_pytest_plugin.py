"""The pytest plugin's option; its fixtures are tested with real guests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_file_that_cannot_be_written_is_refused_before_any_test(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "--benchmark-vm-json=none/x"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (
        4, "ERROR: --benchmark-vm-json none/x: cannot be written",
    )  # fmt: skip
