"""An image straight from a registry, and again when the registry is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from harness import IMAGES, Host

LAYOUT = IMAGES / "umoci"


class Registry(ThreadingHTTPServer):
    """Has the blobs of a layout, and its one manifest as demo:latest. Notes what is asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        (self.manifest,) = json.loads((LAYOUT / "index.json").read_text())["manifests"]
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Registry

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        digest = self.path.rpartition("/")[2]
        kind = "application/octet-stream"
        if self.path == "/v2/demo/manifests/latest":
            digest, kind = self.server.manifest["digest"], self.server.manifest["mediaType"]
        data = blob(digest)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def blob(digest: str) -> bytes:
    return Path(LAYOUT, "blobs", *digest.split(":")).read_bytes()


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry()
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def test_from_a_registry_and_from_the_store(host: Host, registry: Registry) -> None:
    image = f"localhost:{registry.server_port}/demo"
    run = ("run", "--kernel", "minimal", "--image", image)

    done = host.pyvmm(*run).finish()
    assert (done.code, done.out) == (0, b"made by umoci\n"), done
    manifest = json.loads(blob(registry.manifest["digest"]))
    blobs = [entry["digest"] for entry in (manifest["config"], *manifest["layers"])]
    expected = ["/v2/demo/manifests/latest", *(f"/v2/demo/blobs/{digest}" for digest in blobs)]
    assert sorted(registry.asked) == sorted(expected)

    registry.asked.clear()
    host.pyvmm(*run).finish().check(0, b"made by umoci\n")
    assert registry.asked == []
    host.pyvmm("image", "rm", image).finish()
    done = host.pyvmm(*run, "--pull", "never").finish()
    message = f"pyvmm: {image}:latest: not in the store; get it by `pyvmm image pull`\n"
    done.check(125, b"", message.encode())
