"""What a pull brings, from a registry as it should be."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import images
import pytest
from pulling import Recorder, blobs, get, noise, partial, refused, two_layers
from servers import Fault, Front, Registry

from pyvmm.errors import ImageError
from pyvmm.oci import download
from pyvmm.oci.open import open_name
from pyvmm.oci.platform import Platform
from pyvmm.oci.pull import pull
from pyvmm.oci.reference import parse_reference
from pyvmm.oci.store import Store

DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


def test_an_image(registry: Registry, store: Store, tmp_path: Path) -> None:
    digest, layers, sizes = two_layers(tmp_path / "image")
    reference = registry.push(tmp_path / "image", "a/b/image:1.0")
    before = int(time.time())
    name, recorder = get(store, reference)
    assert (name.digest, name.media_type) == (digest, images.OCI_MANIFEST)
    assert before <= name.pulled <= time.time()
    config, *begun = recorder.began
    assert sorted(begun) == sorted((*pair, 0) for pair in zip(layers, sizes, strict=True))
    assert recorder.bytes == config[1] + sum(sizes)
    assert sorted(recorder.finished) == sorted([config[0], *layers])
    assert blobs(store) == {digest, config[0], *layers} == store.used()
    assert recorder.lines == []


def test_what_is_there_is_not_fetched(front: Front, store: Store, tmp_path: Path) -> None:
    made = images.Layout(tmp_path / "image")
    shared, first, second = (images.layer(images.file(name)) for name in ("0", "1", "2"))
    made.refer(made.image([shared, first]), "first")
    made.refer(made.image([shared, second]), "second")
    for tag in "first", "second":
        front._registry.push(f"{tmp_path}/image:{tag}", f"shared:{tag}")
    get(store, f"{front.host}/shared:first")
    again = [request.path for request in front.requests]
    _, recorder = get(store, f"{front.host}/shared:first")
    assert recorder.began == []
    assert [request.path for request in front.requests[len(again) :]] == again[:1]
    _, recorder = get(store, f"{front.host}/shared:second")
    assert len(recorder.finished) == 2  # the configuration and one layer
    assert [each.reference for each in store.names()] == [
        f"{front.host}/shared:first",
        f"{front.host}/shared:second",
    ]


def test_by_digest(registry: Registry, store: Store, tmp_path: Path) -> None:
    digest, _, _ = two_layers(tmp_path / "image")
    registry.push(tmp_path / "image", "by/digest:x")
    name, _ = get(store, f"{registry.host}/by/digest@{digest}")
    assert (name.reference, name.digest) == (f"{registry.host}/by/digest@{digest}", digest)
    name, _ = get(
        store, f"{registry.host}/by/digest:other@{digest}"
    )  # as Docker: the digest counts
    assert name.digest == digest


def test_docker_schema_2(registry: Registry, store: Store, tmp_path: Path) -> None:
    two_layers(tmp_path / "image")
    reference = registry.push(tmp_path / "image", "v2s2:1", "--format", "v2s2")
    assert get(store, reference)[0].media_type == images.DOCKER_MANIFEST


@pytest.fixture(scope="module")
def several(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> images.Layout:
    """An index in an index, of several platforms, none of them named by the outer one."""
    made = images.Layout(tmp_path_factory.mktemp("several") / "image")
    entries = []
    for number, (arch, variant) in enumerate(
        [("arm64", "v8"), ("amd64", "v3"), ("amd64", ""), ("arm", "v6"), ("arm", "v7")]
    ):
        descriptor = made.image([images.layer(images.file(str(number)))], arch)
        entries.append({**descriptor, "platform": {"os": "linux", "architecture": arch}})
        if variant:
            entries[-1]["platform"]["variant"] = variant
    inner = made.document({"schemaVersion": 2, "manifests": entries}, images.OCI_INDEX)
    made.entries = entries  # type: ignore[attr-defined]
    outer = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": [inner]}
    made.refer(made.document(outer, images.OCI_INDEX), "latest")
    push_all(registry, made, "platforms")
    return made


@pytest.mark.parametrize(
    ("platform", "number"),
    [
        (Platform(), 2),
        (Platform(variant="v4"), 1),
        (Platform(architecture="arm64"), 0),
        (Platform(architecture="arm", variant="v6"), 3),
    ],
)
def test_platforms(
    platform: Platform, number: int, registry: Registry, store: Store, several: images.Layout
) -> None:
    name, _ = get(store, f"{registry.host}/platforms:latest", platform)
    index = several.index["manifests"][0]
    assert (name.digest, name.media_type) == (index["digest"], images.OCI_INDEX)
    with open_name(store, name, platform) as image:
        assert image.digest == several.entries[number]["digest"]  # type: ignore[attr-defined]
    assert len(blobs(store)) == 5  # of the others nothing came
    assert store.prune() == 0


def push_all(registry: Registry, made: images.Layout, name: str) -> None:
    """Put every blob and document of a layout into the registry, as skopeo would not."""
    connection = http.client.HTTPConnection("127.0.0.1", registry.port)

    def send(method: str, path: str, body: bytes = b"", media_type: str = "") -> str:
        headers = {"Content-Type": media_type or "application/octet-stream"}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read()
        assert response.status in (201, 202), text
        return response.headers.get("location", "")

    documents = []
    for path in (made.path / "blobs" / "sha256").iterdir():
        data = path.read_bytes()
        try:
            value = json.loads(data)
        except ValueError:
            value = {}
        if "config" in value and "layers" in value:
            documents.append((0, data, images.OCI_MANIFEST, path.name))
        elif "manifests" in value:
            outer = "mediaType" in value
            documents.append((1 + outer, data, images.OCI_INDEX, path.name))
        location = send("POST", f"/v2/{name}/blobs/uploads/")
        target = location[location.index("/v2/") :]
        send("PUT", f"{target}&digest=sha256:{path.name}", data)
    for _, data, media_type, digest in sorted(documents):
        send("PUT", f"/v2/{name}/manifests/sha256:{digest}", data, media_type)
    for entry in made.index["manifests"]:
        data = made.blob_path(entry["digest"]).read_bytes()
        send("PUT", f"/v2/{name}/manifests/latest", data, entry["mediaType"])
    connection.close()


def test_an_index_that_skopeo_pushed(registry: Registry, store: Store, tmp_path: Path) -> None:
    made = images.Layout(tmp_path / "image")
    entries = [
        {**made.image([images.layer(images.file(arch))], arch), "platform": platform}
        for arch in ("arm64", "amd64")
        for platform in [{"os": "linux", "architecture": arch}]
    ]
    index = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": entries}
    made.refer(made.document(index, images.OCI_INDEX), "latest")
    reference = registry.push(tmp_path / "image", "index:1", "--all")
    assert get(store, reference)[0].media_type == images.OCI_INDEX
    reference = registry.push(tmp_path / "image", "index:2", "--all", "--format", "v2s2")
    assert get(store, reference)[0].media_type == DOCKER_LIST
    assert len(store.names()) == 2


def test_foreign_platform(front: Front, store: Store, tmp_path: Path) -> None:
    images.layout(tmp_path / "image", images.layer(images.file("x", noise(5000))), arch="arm64")
    front._registry.push(tmp_path / "image", "foreign:1")
    reference = f"{front.host}/foreign:1"
    assert refused(store, reference) == (
        f"{reference}: needs linux/amd64, but the image has linux/arm64"
    )
    assert max(request.sent for request in front.requests) < 5000  # its layer was not fetched


def test_manifests_without_media_type(registry: Registry, store: Store, tmp_path: Path) -> None:
    made = images.Layout(tmp_path / "image")
    made.refer(made.image([images.layer(images.file("x"))]), "latest")
    assert "mediaType" not in json.loads(
        made.blob_path(made.index["manifests"][0]["digest"]).read_bytes()
    )
    push_all(registry, made, "plain/manifest")
    assert get(store, f"{registry.host}/plain/manifest:latest")[0].media_type == images.OCI_MANIFEST


def test_schema_1(front: Front, store: Store) -> None:
    front.faults = [
        Fault(
            "/manifests/",
            status=200,
            body=b'{"schemaVersion": 1, "fsLayers": [], "history": []}',
            headers={"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"},
        )
    ]
    reference = f"{front.host}/old:1"
    assert refused(store, reference) == (
        f"{reference}: has a manifest of Docker's schema 1, from before 2017; push it again with a "
        "newer tool"
    )


def test_not_there(registry: Registry, store: Store, tmp_path: Path) -> None:
    reference = f"{registry.host}/nothing/here:1"
    assert refused(store, reference) == (
        f"{reference}: {registry.host} has no such image (manifest unknown)"
    )


def test_nobody_there(store: Store) -> None:
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        assert refused(store, f"{host}/a:b") == f"{host}: cannot be reached: Connection refused"
    message = refused(store, "registry.invalid/a:b")
    assert message.startswith("registry.invalid: cannot be reached: ")


PULL = """
import sys
from pyvmm.oci.platform import Platform
from pyvmm.oci.pull import pull
from pyvmm.oci.reference import parse_reference
from pyvmm.oci.store import Store

class Quiet:
    def blob(self, digest, size, at): print("blob", digest, at, flush=True)
    def advance(self, digest, count): print("advance", flush=True)
    def done(self, digest): print("done", digest, flush=True)
    def line(self, text): print(text, flush=True)

pull(parse_reference(sys.argv[1]), Platform(), Store(sys.argv[2]), Quiet())
"""


def start(reference: str, store: Store) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PULL, reference, store.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_at_once(front: Front, store: Store, tmp_path: Path) -> None:
    _, layers, sizes = two_layers(tmp_path / "image", 4 << 20)
    front._registry.push(tmp_path / "image", "two/at/once:1")
    front.delay = 0.005
    reference = f"{front.host}/two/at/once:1"
    processes = [start(reference, store) for _ in range(3)]
    for process in processes:
        assert process.communicate()[1] == ""
        assert process.returncode == 0
    assert [front.sent(digest) for digest in layers] == sizes
    get(store, reference)


@pytest.mark.parametrize("how", ["KILL", "TERM", "INT"])
def test_resumed(how: str, front: Front, store: Store, tmp_path: Path) -> None:
    """A pull that is killed in the middle of a blob goes on there."""
    _, layers, sizes = two_layers(tmp_path / "image", 3 << 20)
    front._registry.push(tmp_path / "image", f"resumed/{how.lower()}:1")
    reference = f"{front.host}/resumed/{how.lower()}:1"
    front.faults = [Fault(digest, cut=2 << 20, stalls=True) for digest in layers]
    process = start(reference, store)
    while sum(front.sent(digest) for digest in layers) < 4 << 20:
        time.sleep(0.01)
    while sum(partial(store).get(digest, 0) for digest in layers) < 3 << 20:
        time.sleep(0.01)
    begun = time.monotonic()
    process.send_signal(signal.Signals[f"SIG{how}"])
    process.communicate()
    assert time.monotonic() - begun < 60
    there = partial(store)
    assert set(there) == set(layers)
    count = len(front.requests)
    _, recorder = get(store, reference)
    ranges = {
        request.path.rpartition("/")[2]: request.headers.get("range")
        for request in front.requests[count:]
        if "/blobs/" in request.path
    }
    assert ranges == {digest: f"bytes={there[digest]}-" for digest in layers}
    assert recorder.bytes == sum(sizes) - sum(there.values())


def test_many_layers_from_several_threads(
    registry: Registry, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [images.layer(images.file(f"{number}", noise(9000, number))) for number in range(40)]
    images.layout(tmp_path / "image", *data)
    reference = registry.push(tmp_path / "image", "many/layers:1")
    monkeypatch.setattr(download, "CONNECTIONS", 8)
    _, recorder = get(store, reference)
    assert len(recorder.finished) == 41


def test_no_room(registry: Registry, tmp_path: Path) -> None:
    two_layers(tmp_path / "image")
    reference = registry.push(tmp_path / "image", "no/room:1")
    (tmp_path / "file").write_text("")
    store = Store(str(tmp_path / "file" / "store"))
    with pytest.raises(ImageError) as caught:
        pull(parse_reference(reference), Platform(), store, Recorder())
    assert str(caught.value) == f"{store.path}: cannot be written: Not a directory"
    assert not os.path.exists(store.path)
