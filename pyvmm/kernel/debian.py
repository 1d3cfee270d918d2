"""Debian packages without root: apt-get downloads them, dpkg-deb unpacks them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from pyvmm.errors import KernelError


def archive_name(package: str) -> str:
    """Return the file name of a package's current version, ``name_version_arch.deb``.

    Raises KernelError where apt is absent or does not know the package.
    """
    # Each line: 'address' name size digest
    return _run("apt-get", "--print-uris", "download", package).split()[1]


def dependency(package: str, prefix: str) -> str:
    """Return the package that a metapackage stands for: its dependency of that prefix."""
    for line in _run("apt-cache", "depends", package).splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith(prefix):
            return name
    raise KernelError(f"package {package} names no {prefix}*; is `apt-get update` needed?")


def unpack(package: str, into: Path) -> None:
    """Download a package and put its files below ``into``, as they would lie below /."""
    # The sandbox user could not write into the cache; without root the option does nothing.
    _run("apt-get", "-o", "APT::Sandbox::User=root", "download", package, cwd=into)
    (deb,) = into.glob("*.deb")
    _run("dpkg-deb", "--extract", str(deb), str(into))
    deb.unlink()


def _run(*command: str, cwd: Path | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise KernelError(f"no {command[0]} here: not a Debian host; name a kernel file instead")
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"LC_ALL": "C"},  # what is read here is translated elsewhere
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise KernelError(f"{' '.join(command[:2])}: {why} (is `apt-get update` needed?)")
    return done.stdout
