"""What the caller opens on the host for a VM. Each returns a descriptor; errors say the mend."""

from __future__ import annotations

import os
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, fcntl

from .errors import DiskError, HostError

LOG_SIZE = 1 << 16  # bytes


def open_file(path: str) -> int:
    """Open a file to read."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise HostError(f"cannot open {path}: {e.strerror}") from None


def open_kvm() -> int:
    """Open /dev/kvm, or say in HostError how to get it."""
    try:
        return os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        raise HostError(
            "no permission for /dev/kvm: join its group "
            "(sudo usermod -aG kvm $USER, then log in again)"
        ) from None
    except FileNotFoundError:
        raise HostError(
            "no /dev/kvm: load the module (sudo modprobe kvm_intel or kvm_amd), "
            "or enable virtualisation in the firmware"
        ) from None
    except OSError as e:
        raise HostError(f"cannot open /dev/kvm: {e.strerror}") from None


def memory_file(name: str, size: int) -> int:
    """A file in memory to share with a process that may be hostile: its size stays."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW)
    return fd


def log(name: str) -> int:
    """A file for what a process says on stderr."""
    return memory_file(name, LOG_SIZE)


def logged(fd: int) -> str:
    """What was said to log()."""
    return os.pread(fd, LOG_SIZE, 0).rstrip(b"\0").decode("utf-8", "replace").strip()


def open_overlay(size: int) -> int:
    """An unnamed sparse file for the run's writes: gone with its last descriptor."""
    directory = os.environ.get("TMPDIR") or "/var/tmp"
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, size)
    except OSError as e:
        raise DiskError(
            f"cannot make the run's disk in {directory}: {e.strerror} (set TMPDIR)"
        ) from None
    return fd
