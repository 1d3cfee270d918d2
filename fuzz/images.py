"""What reads images in Python, fed with anything: it may raise ImageError and nothing else.

``FEEDS`` are the ways in, by the names of their directories in fuzz/corpus/.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from unittest.mock import patch

from urllib3 import HTTPHeaderDict, HTTPResponse

from pyvmm.errors import ImageError
from pyvmm.oci import authorization, registry
from pyvmm.oci.blob import Blob
from pyvmm.oci.credentials import Credentials
from pyvmm.oci.dir import open_dir
from pyvmm.oci.docker import open_docker_archive
from pyvmm.oci.http import Http, Temporary
from pyvmm.oci.image import Image, Layer
from pyvmm.oci.layout import open_layout
from pyvmm.oci.limits import Limits
from pyvmm.oci.platform import Platform
from pyvmm.oci.reference import parse_name
from pyvmm.oci.source import Archive, Source
from pyvmm.oci.stream import uncompressed

_MARK = b"\n---\n"  # between the documents, or the answers, of one input
_PLATFORM = Platform("linux", "arm64", "v8")
_MEMORY = os.memfd_create("fuzz")
_MEMORY_PATH = f"/proc/self/fd/{_MEMORY}"
_BLOCK = 512


def _store(data: bytes) -> None:
    os.truncate(_MEMORY, 0)
    os.pwrite(_MEMORY, data, 0)


def _expect_image(read: Callable[..., Image], *arguments: object) -> None:
    try:
        image = read(*arguments)
    except ImageError as error:
        message = str(error)
    else:
        _check(image)
        return
    assert message.isprintable()
    assert len(message) <= 10 * 2000 + 1  # all of it escaped


def _check(image: Image) -> None:
    assert image.digest.startswith("sha")
    for layer in image.layers:
        assert layer.blob.size == layer.size


class _Files(Source):
    """Files of one image in one file."""

    name = "fuzz"

    def __init__(self, files: dict[str, bytes]) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        whole = b""
        for name, data in files.items():
            self._places[name] = len(whole), len(data)
            whole += data
        _store(whole)

    def find(self, name: str) -> Blob | None:
        place = self._places.get(name)
        return Blob(name, _MEMORY_PATH, *place) if place else None


def _documents(data: bytes) -> dict[str, bytes]:
    """The documents of an input by their numbers. ``@2`` in one becomes the digest of the third,
    ``#2`` its size, for the fuzzer cannot compute them; a document refers to later ones only.
    """
    documents = dict(enumerate(data.split(_MARK)[:8]))
    for number in sorted(documents, reverse=True):
        document = documents[number]
        for later in range(number + 1, len(documents)):
            digest = hashlib.sha256(documents[later]).hexdigest().encode()
            document = document.replace(b"@%d" % later, digest)
            document = document.replace(b"#%d" % later, b"%d" % len(documents[later]))
        documents[number] = document
    return {str(number): document for number, document in documents.items()}


def layout(data: bytes) -> None:
    """The first document is index.json."""
    documents = _documents(data)
    files = {"index.json": documents["0"]}
    for document in documents.values():
        files[f"blobs/sha256/{hashlib.sha256(document).hexdigest()}"] = document
    for name in ("", "a"):
        _expect_image(open_layout, _Files(files), name, _PLATFORM)


def docker(data: bytes) -> None:
    """The first document is manifest.json, the others are named by their numbers."""
    documents = _documents(data)
    files = {**documents, "manifest.json": documents["0"]}
    for name in ("", "a", "@1"):
        _expect_image(open_docker_archive, _Files(files), name, _PLATFORM)


def directory(data: bytes) -> None:
    """The first document is manifest.json, the others are named by their digests."""
    documents = _documents(data)
    with tempfile.TemporaryDirectory() as path:
        for number, document in documents.items():
            name = "manifest.json" if number == "0" else hashlib.sha256(document).hexdigest()
            with open(f"{path}/{name}", "wb") as file:
                file.write(document)
        _expect_image(open_dir, path, _PLATFORM, Limits())


def archive(data: bytes) -> None:
    """A tar archive, whose checksums are put right first."""
    blocks = [data[i : i + _BLOCK] for i in range(0, len(data), _BLOCK)]
    for i, block in enumerate(blocks):
        if len(block) == _BLOCK and block[257:262] == b"ustar":
            total = sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
            blocks[i] = block[:148] + b"%06o\0 " % total + block[156:]
    _store(b"".join(blocks))
    try:
        source = Archive(_MEMORY_PATH)
        for name in ("index.json", "manifest.json", "blobs/../a", "a"):
            found = source.find(name)
            if found and found.size < 1 << 20:
                found.read()
        source.close()
    except ImageError:
        pass


def stream(data: bytes) -> None:
    """A layer's blob."""
    _store(data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blob = Blob("fuzz", _MEMORY_PATH, 0, len(data))
    layer = Layer(digest, len(data), "", f"sha256:{'0' * 64}", blob)
    try:
        for _ in uncompressed(layer, Limits(size=1 << 20)):
            pass
    except ImageError:
        return
    raise AssertionError("a wrong diff_id was not seen")


def name(data: bytes) -> None:
    """A name of a registry's image."""
    try:
        reference = parse_name(data.decode(errors="replace"))
    except ImageError:
        return
    assert parse_name(str(reference)) == reference


class _Answers(Http):
    """Instead of a network: the answers of an input, one after the other."""

    waiting: list[bytes]

    def _pool(self, url: str) -> _Answers:  # type: ignore[override]
        return self

    def urlopen(self, method: str, url: str, **_: object) -> HTTPResponse:
        if not self.waiting:
            raise Temporary("no more answers")
        head, _, body = self.waiting.pop().partition(b"\n\n")
        status, *lines = head.decode("latin-1").split("\n")
        headers = HTTPHeaderDict()
        for line in lines:
            key, _, value = line.partition(":")
            headers.add(key, value.strip())
        return HTTPResponse(
            io.BytesIO(body),
            headers,
            int(status) if status in ("200", "206", "302", "401", "403", "404", "416") else 503,
            preload_content=False,
            decode_content=False,
        )


def answers(data: bytes) -> None:
    """A registry's answers, and its token service's: a status, headers, an empty line, a body."""
    reference = parse_name("registry.test:5000/a/b:c")
    login = Credentials("here", "user", "password")
    for offset in (None, 7):
        _Answers.waiting = data.split(_MARK)[:12][::-1]
        with (
            patch(f"{registry.__name__}.Http", _Answers),
            patch(f"{authorization.__name__}.find_credentials", return_value=offset and login),
        ):
            client = registry.Registry(reference, 1)
            try:
                if offset is None:
                    client.manifest("c")
                else:
                    with client.blob(f"sha256:{'0' * 64}", offset) as body:
                        while body.read(1 << 16):
                            pass
            except ImageError:
                pass


FEEDS: dict[str, Callable[[bytes], None]] = {
    feed.__name__: feed for feed in (layout, docker, directory, archive, stream, name, answers)
}
