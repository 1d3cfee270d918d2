"""Run an OCI image as a microVM, and bring back what its program printed, wrote and measured.

>>> result = pyvmm.run("image/", ["echo", "hello"])
>>> result.exit_code, result.stdout
(0, b'hello\\n')
"""

from __future__ import annotations

from .errors import (
    BenchmarkError,
    DiskError,
    GuestError,
    HostError,
    ImageError,
    KernelError,
    PyvmmError,
    UsageError,
)

TYPE_CHECKING = False  # importing typing costs a run more than it tells
if TYPE_CHECKING:
    from .agent.aio import AsyncProcess
    from .agent.process import Process
    from .agent.program import ExecResult
    from .benchmark.api import bench, duet
    from .benchmark.compare import compare
    from .benchmark.model import Report
    from .machine import Machine, run
    from .results import Result, Usage

__version__ = "0.1.0"

__all__ = [
    "AsyncProcess",
    "BenchmarkError",
    "DiskError",
    "ExecResult",
    "GuestError",
    "HostError",
    "ImageError",
    "KernelError",
    "Machine",
    "Process",
    "PyvmmError",
    "Report",
    "Result",
    "Usage",
    "UsageError",
    "__version__",
    "bench",
    "compare",
    "duet",
    "run",
]

_LAZY = {
    "AsyncProcess": "agent.aio",
    "ExecResult": "agent.program",
    "Machine": "machine",
    "Process": "agent.process",
    "Report": "benchmark.model",
    "Result": "results",
    "Usage": "results",
    "bench": "benchmark.api",
    "compare": "benchmark.compare",
    "duet": "benchmark.api",
    "run": "machine",
}


def __getattr__(name: str) -> object:
    """Import the machinery when it is first used: the worker and the command line need little."""
    if name not in _LAZY:
        raise AttributeError(f"module 'pyvmm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"pyvmm.{_LAZY[name]}"), name)
