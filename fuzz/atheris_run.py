#!/usr/bin/env python3
"""Fuzzes a feed of images.py or agent.py: ``FEED=name ./atheris_run.py [for libFuzzer]``."""

from __future__ import annotations

import os
import sys

import atheris

sys.modules.pop("tarfile", None)  # Atheris has imported it, but not with its instrumentation
with atheris.instrument_imports(include=["pyvmm", "tarfile"]):
    import tarfile  # noqa: F401

    import agent
    import images

# By the environment: libFuzzer's -merge starts this again with its own arguments only.
atheris.Setup(sys.argv, (images.FEEDS | agent.FEEDS)[os.environ["FEED"]])
atheris.Fuzz()
