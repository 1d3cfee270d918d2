"""Everything pyvmm raises. Messages are one line: what is wrong, with its name, and the mend."""

from __future__ import annotations

_MESSAGE_MAX = 2000  # characters, before some are escaped


def printable(text: str, keep: str = "") -> str:
    """Text that neither adds lines nor steers a terminal: it may be an image's or a guest's."""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


class PyvmmError(Exception):
    """Base of all errors pyvmm raises on purpose; the command line exits with ``exit_code``."""

    exit_code = 125

    def __init__(self, message: str) -> None:
        text = printable(message[:_MESSAGE_MAX])
        super().__init__(text if len(message) <= _MESSAGE_MAX else f"{text}…")


class UsageError(PyvmmError):
    """An option or argument that cannot be meant (exit code 2, as argparse)."""

    exit_code = 2


class ImageError(PyvmmError):
    """The image is missing, damaged, of a foreign architecture or of an unknown kind."""


class DiskError(PyvmmError):
    """The root disk cannot be made: too small for the image, or the host's disk is full."""


class KernelError(PyvmmError):
    """No usable guest kernel: not one, without the needed drivers, or not to be had."""


class HostError(PyvmmError):
    """This host cannot run the guest: no /dev/kvm, no permission, a KVM that cannot run Linux."""


class BenchmarkError(PyvmmError):
    """A benchmark's numbers cannot be had, judged or compared (exit code 3)."""

    exit_code = 3


class GuestError(PyvmmError):
    """The guest or its worker ended before the program's results were complete.

    ``console`` is the tail of the guest's console, as it came; ``registers`` the vCPU's at the end,
    if known.
    """

    def __init__(self, message: str, *, console: str = "", registers: str = "") -> None:
        super().__init__(message)
        self.console = console
        self.registers = registers
