"""Fixtures of the guest tests: real Linux guests, in both kernels.

They need a KVM that can run Linux (natively, or in the kvmbox: tests/run.sh chooses), and the
images that make_images.py makes in build/guest-images.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.append(os.path.dirname(__file__))
sys.path.append(os.path.join(os.path.dirname(__file__), "../unit"))

import policy_calls
from harness import IMAGES, Host

CALLS = pytest.StashKey[policy_calls.Calls]()


def pytest_configure(config: pytest.Config) -> None:
    if not (IMAGES / "stamp").exists():
        raise pytest.UsageError("no images yet: run tests/guest/make_images.py build/guest-images")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=of_policies)  # to the end


def of_policies(item: pytest.Item) -> bool:
    return item.path.name == "test_policies.py"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Iterator[None]:
    """Count what workers call, if that will be looked at."""
    wanted = any(map(of_policies, session.items)) and not session.config.option.collectonly
    with ExitStack() as end:
        if wanted and not policy_calls.obstacle():
            session.stash[CALLS] = end.enter_context(policy_calls.counted())
        yield


@pytest.fixture
def counted_calls(request: pytest.FixtureRequest) -> policy_calls.Calls:
    """What this session's workers have called so far."""
    if CALLS not in request.session.stash:
        pytest.skip(policy_calls.obstacle())
    return request.session.stash[CALLS]


@pytest.fixture(scope="session", params=["minimal", "stock"])
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """No test may wait for ever, whatever it calls."""

    def fail(_number: int, _frame: object) -> None:
        pytest.fail("half an hour is over")

    signal.signal(signal.SIGALRM, fail)
    signal.alarm(1800)
    yield
    signal.alarm(0)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Runs pyvmm, and looks afterwards that nothing is left behind."""
    made = Host(tmp_path)
    yield made
    made.check_clean()


@pytest.fixture(scope="session")
def session_host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """The same for runs that several tests look at."""
    return Host(tmp_path_factory.mktemp("session"))
