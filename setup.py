"""Builds what is not Python: the two C extensions (cffi) and the guest's static init."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildPy(build_py):
    """Adds the files that pyvmm carries as data: the init binary and the kernel configuration."""

    def run(self) -> None:
        data = HERE / "pyvmm" / "_data"
        data.mkdir(exist_ok=True)
        subprocess.run(["make", "-C", str(HERE / "init"), f"OUT={data / 'init'}"], check=True)
        shutil.copy(HERE / "rootfs" / "kernel.config", data / "kernel.config")
        super().run()


setup(
    cffi_modules=["csrc/build.py:ffi", "rootfs/build.py:ffi"],
    cmdclass={"build_py": BuildPy},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
