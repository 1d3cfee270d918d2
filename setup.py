"""Builds what is not Python: two C extensions (cffi), the guest's static init, seccomp filters."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildPy(build_py):
    """Adds what pyvmm carries as data: init, the kernel configuration, the threads' filters."""

    def run(self) -> None:
        data = HERE / "pyvmm" / "_data"
        data.mkdir(exist_ok=True)
        guest = ["make", "-C", str(HERE / "init"), f"OUT={data / 'init'}", f"WORK={data / 'work'}"]
        subprocess.run([*guest, str(data / "init"), str(data / "work")], check=True)
        shutil.copy(HERE / "rootfs" / "kernel.config", data / "kernel.config")
        seccomp = _module("seccomp")
        for kind in seccomp.KINDS:
            policy = (HERE / "pyvmm" / "policies" / f"{kind}.policy").read_text()
            (data / f"{kind}.bpf").write_bytes(seccomp.compile(policy))
        super().run()


def _module(name: str) -> Any:
    """A file of pyvmm by itself: the package needs what is yet to be built."""
    spec = importlib.util.spec_from_file_location(name, HERE / "pyvmm" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup(
    cffi_modules=["csrc/build.py:ffi", "rootfs/build.py:ffi"],
    cmdclass={"build_py": BuildPy},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
