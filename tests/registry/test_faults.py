"""Registries and lines that fail, and registries that lie."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from pathlib import Path

import images
import pytest
from pulling import Recorder, blobs, get, partial, refused, two_layers
from servers import Fault, Front, Registry

from pyvmm.errors import ImageError
from pyvmm.oci import http, retry
from pyvmm.oci.limits import Limits
from pyvmm.oci.platform import Platform
from pyvmm.oci.pull import pull
from pyvmm.oci.reference import parse_reference
from pyvmm.oci.registry import _REDIRECTS_MAX
from pyvmm.oci.store import Store

EVER = 1000
PATIENCE = 7.0  # seconds: more than a machine with much to do stands still
SIZE = 1 << 20
AGAIN = r"; trying again in \d+\.\d s"


class Image:
    """An image of two layers in the registry."""

    def __init__(self, registry: Registry, path: Path) -> None:
        self.digest, self.layers, self.sizes = two_layers(path, SIZE)
        registry.push(path, "faults:1")
        self.first, self.size = self.layers[0], self.sizes[0]
        self.reference = ""  # by way of the front


@pytest.fixture(scope="module")
def pushed(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Image(registry, tmp_path_factory.mktemp("faults") / "image")


@pytest.fixture
def image(pushed: Image, front: Front) -> Image:
    pushed.reference = f"{front.host}/faults:1"
    return pushed


def ranges(front: Front, digest: str) -> list[str]:
    return [
        request.headers.get("range", "")
        for request in front.requests
        if request.path.endswith(digest)
    ]


def lines(recorded: list[str]) -> list[str]:
    """The notes of retries, without how long they wait, which is chance's."""
    return [line.partition("; trying again in ")[0] for line in recorded]


def test_cut(front: Front, store: Store, image: Image) -> None:
    front.faults = [Fault(image.first, cut=300_000), Fault(image.first, cut=400_000)]
    _, recorder = get(store, image.reference)
    assert lines(recorder.lines) == [f"{front.host}: the connection was cut"] * 2
    assert ranges(front, image.first) == ["", "bytes=300000-", "bytes=700000-"]
    assert front.sent(image.first) == image.size


def test_cut_for_ever(front: Front, store: Store, image: Image) -> None:
    front.faults = [Fault(image.first, times=EVER, cut=10_000)]
    assert refused(store, image.reference) == f"{front.host}: the connection was cut"
    assert ranges(front, image.first) == [
        "", *(f"bytes={count}0000-" for count in range(1, retry.TRIES))
    ]  # fmt: skip
    assert partial(store)[image.first] == 10_000 * retry.TRIES
    front.faults = []
    get(store, image.reference)
    assert front.sent(image.first) == image.size


def test_a_line_that_is_cut_each_mebibyte(
    front: Front, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it goes on, it is no failure."""
    monkeypatch.setattr(retry, "TRIES", 2)
    _, layers, sizes = two_layers(tmp_path / "image", 5 << 20)
    front._registry.push(tmp_path / "image", "long:1")
    front.faults = [Fault(layers[0], times=EVER, cut=(1 << 20) + 1)]
    _, recorder = get(store, f"{front.host}/long:1")
    assert len(recorder.lines) == sizes[0] // ((1 << 20) + 1) == 5
    assert front.sent(layers[0]) == sizes[0]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("what", ["/manifests/", "/blobs/"])
def test_temporary_statuses(
    status: int, what: str, front: Front, store: Store, image: Image
) -> None:
    front.faults = [Fault(what, times=2, status=status)]
    _, recorder = get(store, image.reference)
    assert lines(recorder.lines) == [f"{image.reference}: {front.host}: answers {status}"] * 2


def test_status_for_ever(front: Front, store: Store, image: Image) -> None:
    body = json.dumps({"errors": [{"code": "X", "message": "not \x1b[31mtoday\nnor tomorrow"}]})
    front.faults = [Fault("/blobs/", times=EVER, status=500, body=body.encode())]
    assert refused(store, image.reference) == (
        f"{image.reference}: {front.host}: answers 500: not  [31mtoday nor tomorrow"
    )
    assert blobs(store) == {image.digest}
    assert partial(store) == {}


def test_retry_after(front: Front, store: Store, image: Image) -> None:
    front.faults = [Fault("/manifests/", status=429, headers={"Retry-After": "1"})]
    _, recorder = get(store, image.reference)
    assert recorder.lines == [
        f"{image.reference}: {front.host}: answers 429; trying again in 1.0 s"
    ]
    front.faults = [Fault("/manifests/", status=429, headers={"Retry-After": "600"})]
    store.forget(image.reference)
    assert refused(store, image.reference) == (
        f"{image.reference}: {front.host}: answers 429; try again in 600 s"
    )


@pytest.mark.parametrize("times", [1, 2])
def test_wrong_contents(times: int, front: Front, store: Store, image: Image) -> None:
    front.faults = [Fault(image.first, times=times, flip=70_000)]
    if times == 1:
        _, recorder = get(store, image.reference)
        (line,) = recorder.lines
        assert line.endswith("; fetching it again")
        message = line.removesuffix("; fetching it again")
    else:
        message = refused(store, image.reference)
        assert image.first not in partial(store)
        assert image.first not in blobs(store)
        get(store, image.reference)
    start = f"blob {image.first}: damaged: {image.size} of its {image.size} bytes came, with the "
    assert message.startswith(f"{start}digest sha256:")
    assert ranges(front, image.first) == [""] * (times + 1)


@pytest.mark.parametrize("extra", [1, -1])
def test_wrong_length(extra: int, front: Front, store: Store, image: Image) -> None:
    front.faults = [Fault(image.first, times=EVER, extra=extra)]
    assert refused(store, image.reference) == (
        f"blob {image.first}: the registry has {image.size + extra} bytes, the image says "
        f"{image.size}"
    )
    assert image.first not in {**partial(store), **dict.fromkeys(blobs(store), 0)}
    front.faults = []
    get(store, image.reference)


@pytest.mark.parametrize("extra", [1, -1, 5_000_000])
def test_wrong_length_that_was_not_said(
    extra: int, front: Front, store: Store, image: Image
) -> None:
    front.faults = [Fault(image.first, times=EVER, extra=extra, unsaid=True)]
    message = refused(store, image.reference)
    if extra > 0:
        assert message == f"blob {image.first}: more than its {image.size} bytes came"
        assert len(ranges(front, image.first)) == 2
        assert image.first not in partial(store)
    else:  # as if the connection were cut each time
        assert message == f"blob {image.first}: the connection was cut"
        assert ranges(front, image.first) == ["", *[f"bytes={image.size - 1}-"] * (retry.TRIES - 1)]
        assert partial(store)[image.first] == image.size - 1
    front.faults = []
    get(store, image.reference)


@pytest.mark.parametrize("way", ["unsaid", "chunked"])
def test_without_content_length(way: str, front: Front, store: Store, image: Image) -> None:
    front.faults = [Fault("", times=EVER, **{way: True})]  # type: ignore[arg-type]
    _, recorder = get(store, image.reference)
    assert recorder.lines == []


def test_chunks_cut(front: Front, store: Store, image: Image) -> None:
    front.faults = [Fault(image.first, cut=300_000, chunked=True)]
    _, recorder = get(store, image.reference)
    assert lines(recorder.lines) == [f"{front.host}: the connection was cut"]
    assert ranges(front, image.first) == ["", "bytes=300000-"]


def test_no_ranges(front: Front, store: Store, image: Image) -> None:
    """What is there already comes again, for want of better."""
    front.faults = [Fault(image.first, cut=300_000), Fault(image.first, no_range=True)]
    _, recorder = get(store, image.reference)
    assert ranges(front, image.first) == ["", "bytes=300000-"]
    assert [at for digest, _, at in recorder.began if digest == image.first] == [0, 0]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("", status=416),
        Fault("", headers={"Content-Range": "bytes 0-9/10"}),
        Fault("", headers={"Content-Range": "bytes " + "9" * 5000}),
        Fault("", status=206),
    ],
)
def test_ranges_refused(fault: Fault, front: Front, store: Store, image: Image) -> None:
    front.faults = [
        Fault(image.first, cut=300_000),
        Fault(image.first, status=fault.status, headers=fault.headers),
    ]
    get(store, image.reference)
    assert ranges(front, image.first) == ["", "bytes=300000-", ""]


def test_a_damaged_part(front: Front, store: Store, image: Image) -> None:
    front.faults = [Fault(image.first, times=EVER, cut=1000)]
    refused(store, image.reference)
    front.faults = []
    part = Path(store.path, "partial", image.first.replace(":", "-"))
    part.write_bytes(b"x" * 2000)
    _, recorder = get(store, image.reference)
    (line,) = recorder.lines
    assert line.startswith(f"blob {image.first}: damaged: {image.size} of its {image.size} bytes")
    assert ranges(front, image.first)[-2:] == ["bytes=2000-", ""]


def test_a_part_that_is_too_long(front: Front, store: Store, image: Image) -> None:
    Path(store.path, "partial").mkdir(parents=True)
    Path(store.path, "partial", image.first.replace(":", "-")).write_bytes(bytes(image.size + 1))
    get(store, image.reference)
    assert ranges(front, image.first) == [""]


def test_silence(front: Front, store: Store, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "READ_TIMEOUT", PATIENCE)
    front.faults = [
        Fault("/manifests/", cut=0, stalls=True),
        Fault(image.first, cut=300_000, stalls=True),
    ]
    _, recorder = get(store, image.reference)
    assert lines(recorder.lines) == [f"{front.host}: does not answer"] * 2
    assert ranges(front, image.first) == ["", "bytes=300000-"]


def test_slow_but_alive(
    front: Front, store: Store, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "READ_TIMEOUT", PATIENCE)
    front.delay = 0.5
    assert front.delay * image.size / (1 << 16) > PATIENCE
    _, recorder = get(store, image.reference)
    assert recorder.lines == []


def test_damaged_manifest(front: Front, store: Store, image: Image) -> None:
    front.faults = [Fault("/manifests/", flip=1)]
    message = refused(store, image.reference)
    assert message.startswith(f"{image.reference}: damaged on its way: it has the digest sha256:")
    assert message.endswith(f", not {image.digest}")
    by_digest = f"{front.host}/faults@{image.digest}"
    front.faults = [Fault("/manifests/", flip=1)]
    assert refused(store, by_digest).endswith(f", not {image.digest}")
    # By tag, a lie of which nothing is known is the image.
    front.faults = [Fault("/manifests/", headers={"Docker-Content-Digest": ""})]
    get(store, image.reference)


def manifest(front: Front, body: bytes | object, **headers: str) -> str:
    """A reference that leads to this manifest."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": images.OCI_MANIFEST, **headers}
    front.faults = [Fault("/manifests/", EVER, status=200, headers=headers, body=data)]
    return f"{front.host}/hostile:1"


def test_hostile_manifests(front: Front, store: Store) -> None:
    def said(body: bytes | object, **headers: str) -> str:
        reference = manifest(front, body, **headers)
        return refused(store, reference).replace(reference, "REF").replace(front.host, "HOST")

    config = {"mediaType": images.OCI_CONFIG, "digest": f"sha256:{'0' * 64}", "size": 9 << 20}
    whole = {"schemaVersion": 2, "config": config, "layers": []}
    digest = images.sha256(json.dumps(whole).encode())
    assert said(b" " * ((8 << 20) + 1)) == "HOST: its answer is larger than 8388608 bytes"
    assert said(b"x").startswith("REF: not valid JSON: ")
    assert said(b"[" * 100_000).startswith("REF: not valid JSON: ")
    assert said([]) == "REF: not a JSON object"
    assert said({}).endswith(": neither an image manifest nor an index")
    assert said({**whole, "manifests": []}).endswith(": neither an image manifest nor an index")
    assert said(whole) == (
        f"REF: {config['digest']}: has 9437184 bytes, more than 8388608 (--image-limit config=…)"
    )
    config["size"] = -1
    assert said(whole).endswith(": config: 'size' is not a size")
    config.update(size=5, digest="sha256:../../../etc/passwd")
    assert said(whole).endswith(
        ": config: 'sha256:../../../etc/passwd' is not a sha256 or sha512 digest"
    )
    assert said(whole, Docker_Content_Digest="sha256:../../x") == (
        "REF: HOST: 'sha256:../../x' is not a sha256 or sha512 digest"
    )
    assert said(whole, Docker_Content_Digest=digest).startswith("REF: damaged on its way: ")
    assert partial(store) == {}


def test_an_index_that_leads_to_itself_or_nowhere(front: Front, store: Store) -> None:
    """Every manifest that is asked for is another index of a thousand."""
    entry = {"mediaType": images.OCI_INDEX, "digest": f"sha256:{'1' * 64}", "size": 5}
    reference = manifest(front, {"schemaVersion": 2, "manifests": [entry] * 1000})
    message = refused(store, reference)
    assert message.startswith(f"blob sha256:{'1' * 64}: damaged: ")
    entry["platform"] = {"os": "linux", "architecture": "s390x"}  # type: ignore[assignment]
    reference = manifest(front, {"schemaVersion": 2, "manifests": [entry]})
    assert refused(store, reference) == (
        f"{reference}: needs linux/amd64, but the image has linux/s390x"
    )


def test_redirects_without_end(front: Front, store: Store, image: Image) -> None:
    front.faults = [Fault("/blobs/", EVER, status=307, headers={"Location": "/v2/x/blobs/y"})]
    assert refused(store, image.reference) == (
        f"{image.reference}: {front.host} redirects more than {_REDIRECTS_MAX} times"
    )
    for target in "file:///etc/passwd", "http://user@localhost/":
        front.faults = [Fault("/blobs/", EVER, status=307, headers={"Location": target})]
        assert refused(store, image.reference) == (
            f"{image.reference}: {front.host} redirects to {target!r}"
        )


def test_limits(front: Front, store: Store, image: Image) -> None:
    """An image that asks for too much is refused before its layers come."""

    def said(**limits: int) -> str:
        with pytest.raises(ImageError) as caught:
            pull(parse_reference(image.reference), Platform(), store, Recorder(), Limits(**limits))
        assert front.sent(image.first) == 0
        return str(caught.value).removeprefix(f"{image.reference}: ")

    total = sum(image.sizes)
    assert said(size=total - 1) == (
        f"its layers have {total} bytes, more than {total - 1} (--image-limit size=…)"
    )
    assert said(layers=1) == "2 layers, more than 1 (--image-limit layers=…)"
    assert said(config=50).endswith(" bytes, more than 50 (--image-limit config=…)")


def test_layers_of_an_unknown_kind(front: Front, store: Store, tmp_path: Path) -> None:
    made = images.Layout(tmp_path / "image")
    layer = images.layer(images.file("x"))
    config = made.document(made.configuration([layer]), images.OCI_CONFIG)
    made.refer(made.manifest(config, [made.blob(layer, "application/x-shoe")]), "latest")
    front._registry.push(tmp_path / "image", "shoe:1")
    reference = f"{front.host}/shoe:1"
    assert refused(store, reference).endswith("unknown layer type 'application/x-shoe'")
    assert front.sent(images.sha256(layer)) == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", 0), ("7", 7), ("9" * 400, 999_999_999), ("-1", 0), ("soon", 0), ("1e9", 0)],
)
def test_retry_after_seconds(text: str, seconds: float) -> None:
    assert http._seconds(text) == seconds


def test_retry_after_date() -> None:
    """Of which nothing is asserted but that it is understood: clocks go on."""
    assert 3500 < http._seconds(formatdate(time.time() + 3600, usegmt=True)) <= 3600
    assert http._seconds("Fri, 01 Jan 1999 00:00:00 GMT") == 0
