"""A pull from Debian's docker-registry on loopback: pyvmm's, skopeo's, and its work alone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from table import Row

CONFIG = """version: 0.1
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}"}}
log: {{level: error, accesslog: {{disabled: true}}}}
"""
START_S = 10.0
# The same bytes: read, hashed and on the disk, each file by itself.
ALONE = """for blob in "$0"/blobs/sha256/*; do
    dd if="$blob" bs=1M 2>/dev/null | tee "$1/$(basename "$blob")" | sha256sum
done
sync "$1"/*"""


@contextmanager
def serve(layout: Path, work: Path) -> Iterator[str]:
    """A registry that has the layout's image; the image's name there."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    config = work / "registry.yml"
    config.write_text(CONFIG.format(root=work / "registry", port=port))
    server = subprocess.Popen(
        ["docker-registry", "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + START_S
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if time.monotonic() > deadline:
                raise TimeoutError("docker-registry does not start")
            time.sleep(0.05)
        name = f"localhost:{port}/large:latest"
        _skopeo("--dest-tls-verify=false", f"oci:{layout}:large", f"docker://{name}")
        yield name
    finally:
        server.terminate()
        server.wait()


def subjects(layout: Path, image: str, work: Path) -> dict[str, Callable[[], float]]:
    """What takes turns: each into an empty place, and returns its seconds."""
    place = work / "pulled"

    def fresh(run: Callable[[], object]) -> float:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        os.sync()
        start = time.monotonic()
        run()
        return time.monotonic() - start

    command = Path(sys.executable).with_name("pyvmm")
    ours = {**os.environ, "XDG_CACHE_HOME": str(place)}
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return {
        "pull": lambda: fresh(
            lambda: subprocess.run([command, "image", "pull", image], env=ours, **quiet)
        ),
        "skopeo": lambda: fresh(
            lambda: _skopeo("--src-tls-verify=false", f"docker://{image}", f"oci:{place}/oci:large")
        ),
        "alone": lambda: fresh(lambda: subprocess.run(["sh", "-c", ALONE, layout, place], **quiet)),
    }


def rows(ms: dict[str, float]) -> list[Row]:
    from table import Row

    figure = "pull from a registry on loopback"
    return [
        Row("", "image", figure, "ms", ms["pull"], "skopeo copy", ms["skopeo"]),
        Row("", "image", f"{figure}, beside its work alone", "ms", ms["pull"],
            "dd, sha256sum, sync", ms["alone"], goal=1.2),
    ]  # fmt: skip


def _skopeo(*words: str) -> None:
    subprocess.run(["skopeo", "--insecure-policy", "copy", "-q", *words], check=True)
