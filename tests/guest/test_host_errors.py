"""Hosts that cannot: no /dev/kvm, no permission, a KVM that cannot run Linux. No guest needed.

tests/run.sh runs these on the host itself, and in the box with the rest.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from harness import IMAGES, RUN_LIMIT, Done, command

RUN = ["run", "--image", str(IMAGES / "shell"), "--kernel", "minimal", "--", "true"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a mount namespace")


def reason() -> str:
    """Why this host's KVM cannot run Linux, by the doctor."""
    done = subprocess.run(
        [command(), "doctor", "--kvm-linux"],
        check=False,
        capture_output=True,
        timeout=RUN_LIMIT,
        text=True,
    )
    assert done.returncode == (1 if done.stderr else 0)
    return done.stderr


def run(script: str, **environment: str) -> Done:
    """Run pyvmm at the end of a script in a mount namespace of its own."""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, "sh", command(), *RUN],
        check=False, capture_output=True, timeout=RUN_LIMIT, env=os.environ | environment,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines(True) if not line.startswith(PROGRESS)]
    return Done(done.returncode, done.stdout, b"".join(lines))


PROGRESS = (b"pyvmm: layer ", b"pyvmm: writing the filesystem")


def test_no_kvm() -> None:
    """A /dev of its own, with little in it."""
    script = (
        "mount -t tmpfs none /mnt; for f in null urandom; do touch /mnt/$f; "
        "mount --bind /dev/$f /mnt/$f; "
        'done; mkdir /mnt/shm; mount --move /mnt /dev; exec "$@"'
    )
    run(script).check(
        125, b"",
        b"pyvmm: no /dev/kvm: load the module (sudo modprobe kvm_intel or kvm_amd), "
        b"or enable virtualisation in the firmware\n",
    )  # fmt: skip


def test_no_permission(tmp_path: Path) -> None:
    if os.stat("/dev/kvm").st_mode & 0o006:
        pytest.skip("here everybody may use /dev/kvm")
    os.chmod(tmp_path, 0o777)
    for above in tmp_path.parents:
        if above.is_relative_to("/tmp") and above != Path("/tmp"):
            os.chmod(above, 0o755)
    script = 'exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"'
    run(script, XDG_CACHE_HOME=str(tmp_path), HOME=str(tmp_path)).check(
        125, b"",
        b"pyvmm: no permission for /dev/kvm: join its group "
        b"(sudo usermod -aG kvm $USER, then log in again)\n",
    )  # fmt: skip


def test_kvm_that_cannot_run_linux_says_why() -> None:
    why = reason()
    if not why:
        pytest.skip("this KVM runs Linux")
    assert why.startswith("pyvmm: this host's KVM cannot run Linux: ")
    assert why.endswith("use a host with VT-x or SVM, or nested virtualisation\n")
    run('exec "$@"').check(125, b"", why.encode())
