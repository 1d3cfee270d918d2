"""Fixtures of the pull's tests: a real registry on loopback, and a store for each test."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path += [os.path.dirname(__file__), os.path.join(os.path.dirname(__file__), "..", "unit")]

from servers import Certificates, Front, Registry

from pyvmm.oci import retry
from pyvmm.oci.store import Store


def pytest_configure(config: pytest.Config) -> None:
    for program in "docker-registry", "skopeo", "openssl":
        if not shutil.which(program):
            raise pytest.UsageError(f"{program} is missing: `make setup` installs it")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No login, proxy or certificate of who runs the tests; no long waits, and none for ever."""
    for name in "REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME":
        monkeypatch.delenv(name, raising=False)
    for name in "http", "https", "all", "no":
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.01)

    def fail(_number: int, _frame: object) -> None:
        pytest.fail("five minutes are over")

    # Of whoever started us in the background it would be ignored, by what we start as well.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, fail)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    started = Registry(tmp_path_factory.mktemp("registry") / "data")
    yield started
    started.stop()


@pytest.fixture
def front(registry: Registry) -> Iterator[Front]:
    started = Front(registry)
    yield started
    started.stop()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))
