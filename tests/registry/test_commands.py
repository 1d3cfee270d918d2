"""``pyvmm image …`` and ``pyvmm run``, as programs, with a real registry."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pulling import blobs, partial, two_layers
from servers import Fault, Front, Registry

from pyvmm.oci.store import Store

PYVMM = [sys.executable, "-c", "from pyvmm.cli import main; main()"]
Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TERM": "xterm"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "cache/pyvmm/images"))


@pytest.fixture
def pyvmm(environment: dict[str, str]) -> Call:
    def call(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        line = [*PYVMM, *map(str, words)]
        return subprocess.run(
            line, env=environment, text=True, stdout=subprocess.PIPE,
            **{"stderr": subprocess.PIPE, **options},
        )  # fmt: skip

    return call


def test_from_pull_to_prune(
    registry: Registry, front: Front, pyvmm: Call, store: Store, tmp_path: Path
) -> None:
    digest, layers, sizes = two_layers(tmp_path / "image")
    registry.push(tmp_path / "image", "commands:1")
    reference = f"{front.host}/commands:1"

    done = pyvmm("image", "pull", reference)
    assert (done.returncode, done.stdout) == (0, f"{digest}\n")
    shown = [line.split(": ")[1] for line in done.stderr.splitlines()]
    assert sorted(shown) == sorted(blobs(store) - {digest})
    assert [front.sent(each) for each in layers] == sizes

    done = pyvmm("image", "pull", reference)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{digest}\n", "")
    assert [front.sent(each) for each in layers] == sizes

    front.requests.clear()
    (row,) = json.loads(pyvmm("image", "ls", "--json").stdout)
    assert (row["reference"], row["digest"]) == (reference, digest)
    assert row["size"] == sum(Path(store.blob_path(each)).stat().st_size for each in blobs(store))
    facts = json.loads(pyvmm("image", "inspect", reference).stdout)
    assert (facts["digest"], [each["digest"] for each in facts["layers"]]) == (digest, layers)

    saved = tmp_path / "saved.tar"
    done = pyvmm("image", "save", reference, saved)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    copy = subprocess.run(
        ["skopeo", "inspect", "--format", "{{.Digest}}", f"oci-archive:{saved}:{reference}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert copy.stdout == f"{digest}\n"

    assert pyvmm("image", "verify").returncode == 0
    done = pyvmm("image", "rm", reference)
    assert (done.returncode, done.stdout) == (0, "")
    assert blobs(store) == set()
    assert front.requests == []


def test_bars_on_a_terminal(
    registry: Registry, environment: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("rich")
    digest, layers, _ = two_layers(tmp_path / "image")
    reference = registry.push(tmp_path / "image", "bars")
    ours, terminal = pty.openpty()
    line = [*PYVMM, "image", "pull", reference]
    shown = b""
    with subprocess.Popen(
        line, env=environment, text=True, stdout=subprocess.PIPE, stderr=terminal
    ) as pulling:
        os.close(terminal)
        while True:  # meanwhile: a terminal holds little
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # EIO: nobody has the other end
                break
        out, _ = pulling.communicate()
    os.close(ours)
    assert (pulling.returncode, out) == (0, f"{digest}\n")
    for each in layers:
        assert each[7:19].encode() in shown
    assert b"1.0/1.0 MiB" in shown


def test_a_run_pulls_what_is_missing(
    registry: Registry, front: Front, pyvmm: Call, store: Store, tmp_path: Path
) -> None:
    """As far as a run gets without a kernel."""
    digest, *_ = two_layers(tmp_path / "image")
    registry.push(tmp_path / "image", "run:1")
    reference = f"{front.host}/run:1"
    words = ["run", "--dry-run", "--kernel", "/nonexistent", "--image", reference]
    without_kernel = "pyvmm: kernel /nonexistent: No such file or directory"

    done = pyvmm(*words, "--pull", "never")
    assert (done.returncode, done.stderr) == (
        125, f"pyvmm: {reference}: not in the store; get it by `pyvmm image pull`\n",
    )  # fmt: skip
    assert front.requests == []
    assert pyvmm(*words).stderr.splitlines()[-1] == without_kernel
    name = store.find(reference)
    assert name
    assert name.digest == digest
    front.requests.clear()
    assert pyvmm(*words).stderr == f"{without_kernel}\n"
    assert front.requests == []
    assert pyvmm(*words, "--pull", "always").stderr.splitlines() == [
        f"pyvmm: pulling {reference}",
        without_kernel,
    ]
    assert len(front.requests) > 0

    front.stop()
    assert pyvmm(*words).stderr == f"{without_kernel}\n"
    done = pyvmm(*words, "--pull", "always")
    assert done.returncode == 125
    assert done.stderr.splitlines()[-1].startswith(f"pyvmm: {front.host}: cannot be reached: ")


def test_interrupted(
    registry: Registry, front: Front, pyvmm: Call, environment: dict[str, str], store: Store,
    tmp_path: Path,
) -> None:  # fmt: skip
    digest, layers, _ = two_layers(tmp_path / "image")
    registry.push(tmp_path / "image", "interrupted")
    reference = f"{front.host}/interrupted"
    front.faults += [Fault(each, cut=500_000, stalls=True) for each in layers]
    line = [*PYVMM, "image", "pull", reference]
    with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE) as pulling:
        while sum(partial(store).values()) < 100_000:
            assert pulling.poll() is None
            time.sleep(0.01)
        pulling.send_signal(signal.SIGINT)
        _, err = pulling.communicate(timeout=60)
    assert pulling.returncode == 130
    assert b"Traceback" not in err
    assert store.find(reference) is None
    front.faults.clear()
    done = pyvmm("image", "pull", reference)
    assert (done.returncode, done.stdout) == (0, f"{digest}\n")
    assert "of them from before" in done.stderr
