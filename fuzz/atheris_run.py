"""Fuzzes one of images.py's feeds: ``python atheris_run.py FEED [libFuzzer's arguments]``."""

from __future__ import annotations

import sys

import atheris

sys.modules.pop("tarfile", None)  # Atheris has imported it, but not with its instrumentation
with atheris.instrument_imports(include=["pyvmm", "tarfile"]):
    import tarfile  # noqa: F401

    from images import FEEDS

feed = FEEDS[sys.argv.pop(1)]
atheris.Setup(sys.argv, feed)
atheris.Fuzz()
