#!/usr/bin/env python3
"""Fuzzes one of images.py's feeds: ``FEED=name ./atheris_run.py [libFuzzer's arguments]``."""

from __future__ import annotations

import os
import sys

import atheris

sys.modules.pop("tarfile", None)  # Atheris has imported it, but not with its instrumentation
with atheris.instrument_imports(include=["pyvmm", "tarfile"]):
    import tarfile  # noqa: F401

    from images import FEEDS

# By the environment: libFuzzer's -merge starts this again with its own arguments only.
atheris.Setup(sys.argv, FEEDS[os.environ["FEED"]])
atheris.Fuzz()
