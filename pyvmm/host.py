"""What the caller opens on the host for a VM. Each returns a descriptor; errors say the mend."""

from __future__ import annotations

import os

from .errors import DiskError, HostError


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
