"""pyvmm with gcc's address and undefined-behaviour sanitizers, and a Python that can load it.

The package is built as any other, with CFLAGS in $PYVMM_CFLAGS. finish() adds what they need: the
interpreter, which is Debian's Python, as in the kvmbox, and system calls in the seccomp filters.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = ("interpreter.c", "package.py", "sanitizers.policy")
PYTHON = "/usr/bin/python3"
SANITIZERS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-fno-wrapv",  # Python's own flags have it, and it hides overflows
    "-U_FORTIFY_SOURCE",  # its functions are not the ones that the sanitizers watch
)
CFLAGS = " ".join(("-g", *SANITIZERS))

# How a program that embeds Python is linked, as Python itself says it.
LINKING = """
from sysconfig import get_config_var as var, get_path
print("-I" + get_path("include"), "-L" + var("LIBPL"), var("LINKFORSHARED"))
print("-Wl,--whole-archive -l:" + var("LIBRARY"), "-Wl,--no-whole-archive")
print(var("LIBS"), var("SYSLIBS"), var("MODLIBS"))
"""
RUNTIME = ("-static-libasan", "-static-libubsan", "-static-libgcc", "-no-pie")

# What sanitizers.policy names and pyvmm's own policies do not.
CALLS = {
    "open": 2, "mprotect": 10, "rt_sigaction": 13, "sched_yield": 24, "readlink": 89,
    "sigaltstack": 131, "prctl": 157, "gettid": 186, "openat": 257, "newfstatat": 262,
}  # fmt: skip
CONSTANTS = {"TCGETS": 0x5401}


def finish(target: Path) -> None:
    """Complete an installed package."""
    told = subprocess.run((PYTHON, "-c", LINKING), check=True, capture_output=True, text=True)
    flags = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-g", *SANITIZERS, *RUNTIME)
    files = (str(HERE / "interpreter.c"), "-o", str(target / "python3"))
    subprocess.run(("gcc", *flags, *files, *shlex.split(told.stdout)), check=True)

    spec = importlib.util.spec_from_file_location("seccomp", ROOT / "pyvmm/seccomp.py")
    assert spec
    assert spec.loader
    seccomp = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seccomp)
    seccomp.CALLS.update(CALLS)
    seccomp.CONSTANTS.update(CONSTANTS)
    more = (HERE / "sanitizers.policy").read_text()
    for kind in seccomp.KINDS:
        policy = (ROOT / f"pyvmm/policies/{kind}.policy").read_text()
        (target / f"pyvmm/_data/{kind}.bpf").write_bytes(seccomp.compile(policy + more))


def main() -> None:
    """Put one into the directory that is named."""
    sys.path[:0] = [str(ROOT / "tests/kvmbox"), str(ROOT)]
    import payload

    shutil.rmtree(sys.argv[1], ignore_errors=True)
    with payload.alone():
        shutil.copytree(payload.install(sanitized=True), sys.argv[1])


if __name__ == "__main__":
    main()
