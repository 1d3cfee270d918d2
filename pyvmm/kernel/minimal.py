"""The minimal kernel: Debian's kernel source, configured to nothing but what a guest here needs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from pyvmm.cache import cache_dir
from pyvmm.errors import KernelError
from pyvmm.kernel import debian, elf, making, store

_PACKAGE = "linux-source-6.12"
_TARBALL = f"usr/src/{_PACKAGE}.tar.xz"
# What no configuration can ask for: a call for each spin_unlock(). Inlined with PARAVIRT_SPINLOCKS
# it is 5,200 places that every boot decodes and patches, a quarter of its instructions.
_KCFLAGS = "-DCONFIG_UNINLINE_SPIN_UNLOCK=1"
_TOOLS = {  # command: package
    "gcc": "gcc",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "strip": "binutils",
    "tar": "tar",
    "xz": "xz-utils",
}


def build(progress: Callable[[str], None], jobs: int | None = None) -> store.Kernel:
    """Build the kernel (some 7 minutes on 2 cores, 2 GB of disk), unless the cache has it already.

    ``jobs`` is how many compilers run at once, by default one for each CPU that may be used.
    Raises KernelError: missing tools, no source, an option that the source refuses, a compiler's
    error.
    """
    _require_tools()
    fragment = _fragment()
    digest = hashlib.sha256((fragment + _KCFLAGS).encode()).hexdigest()
    key = f"minimal-{_source_version()}-{digest[:16]}"
    if store.load(os.path.join(cache_dir("kernels"), key), "minimal") is None:
        _make(key, fragment, progress, jobs or len(os.sched_getaffinity(0)))
    return making.select("minimal", key)


def _make(key: str, fragment: str, progress: Callable[[str], None], jobs: int) -> None:
    with making.staging() as work, making.staging() as made:
        source, objects = work / "source", work / "objects"
        source.mkdir()
        objects.mkdir()
        progress(f"unpacking {_PACKAGE}")
        tarball = Path("/", _TARBALL)
        if not tarball.exists():
            debian.unpack(_PACKAGE, work)
            tarball = work / _TARBALL
        _run("tar", "-xf", tarball, "--strip-components=1", "-C", source)
        (work / "fragment").write_text(fragment)
        make = ("make", "-s", "-C", source, f"O={objects}", f"-j{jobs}", f"KCFLAGS={_KCFLAGS}")
        _run(*make, "tinyconfig")
        merge = source / "scripts/kconfig/merge_config.sh"
        _run(merge, "-m", "-O", objects, objects / ".config", work / "fragment", cwd=objects)
        _run(*make, "olddefconfig")
        check_options(fragment, (objects / ".config").read_text())
        progress(f"compiling with {jobs} jobs (some 12 minutes of CPU time)")
        _run(*make, "vmlinux")
        vmlinux = made / "vmlinux"
        _run("strip", "--strip-debug", "-o", vmlinux, objects / "vmlinux")
        shutil.copy(objects / ".config", made / "config")
        making.save(made, elf.inspect(vmlinux.read_bytes()), "vmlinux")
        making.publish(made, key)


def check_options(fragment: str, config: str) -> None:
    """Raise KernelError naming each line of the fragment that ``config`` does not have.

    An option that is to be off may also be missing: what it depends on is off.
    """
    have = set(config.splitlines())
    named = {line.partition("=")[0] for line in have if line.startswith("CONFIG_")}
    lost = []
    for line in fragment.splitlines():
        if line.startswith("CONFIG_") and line not in have:
            lost.append(line)
        elif line.startswith("# CONFIG_") and line.split()[1] in named:
            lost.append(line.removeprefix("# "))
    if lost:
        raise KernelError(f"the kernel's configuration refuses: {', '.join(lost)}")


def _fragment() -> str:
    """Return the configuration: shipped with the package, in a checkout from rootfs/."""
    package = Path(__file__).parents[1]
    checkout = package.parent / "rootfs" / "kernel.config"
    return (checkout if checkout.exists() else package / "_data" / "kernel.config").read_text()


def _source_version() -> str:
    """Return the Debian version of the source that :func:`_make` would unpack."""
    if Path("/", _TARBALL).exists():
        return _run("dpkg-query", "-W", "-f", "${Version}", _PACKAGE)
    return debian.archive_name(_PACKAGE).split("_")[1]


def _require_tools() -> None:
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if not Path("/usr/include/gelf.h").exists():  # objtool
        missing.append("libelf-dev")
    if missing:
        raise KernelError(
            f"building a kernel needs {', '.join(missing)}: apt-get install {' '.join(missing)}"
        )


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command; what it says ends up in kernels/build.log, and in the error its last line."""
    # A make that calls us hands down its own flags and job server; the build names no machine.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "KBUILD"))}
    env |= {
        "LC_ALL": "C",
        "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
        "KBUILD_BUILD_USER": "pyvmm",
        "KBUILD_BUILD_HOST": "pyvmm",
    }
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        log = Path(cache_dir("kernels"), "build.log")
        log.write_text(done.stdout)
        errors = [line for line in done.stdout.splitlines() if "rror" in line]
        why = errors[0] if errors else f"exit code {done.returncode}"
        raise KernelError(f"{Path(command[0]).name} failed: {why} (all of it in {log})")
    return done.stdout
