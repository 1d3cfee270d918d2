"""tests/kvm/test_escape.py once more, on the box's older kernel: each wall alone, and from outside.

All walls at once are not: some four hundred runs take minutes here.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "kvm"))

from test_escape import (  # noqa: F401
    proc,
    runner,
    test_descriptors,
    test_each_wall_alone,
    test_every_thread_has_no_rights,
    test_it_cannot_be_dumped,
    test_it_dies_with_the_server,
    test_limits,
    test_namespaces,
    test_no_environment,
    test_no_memory_is_for_writing_and_executing,
    test_nobody_else_in_its_namespaces,
    test_root_directory,
    who,
    without_seccomp,
)
