"""Every test here needs /dev/kvm, and nothing else: its guests are a few instructions."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def kvm_fd():
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        pytest.skip(f"/dev/kvm: {e.strerror}")
    yield fd
    os.close(fd)
