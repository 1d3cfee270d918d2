"""The store: what is in it is whole, whoever writes to it at once and however they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pyvmm.errors import ImageError
from pyvmm.oci.incoming import DigestError
from pyvmm.oci.store import Name, Store

from .images import OCI_INDEX, OCI_MANIFEST, sha256

DATA = b"some bytes" * 1000
DIGEST = sha256(DATA)
IN_USE = "in use by another pyvmm, which pulls or verifies; try again later"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "images"))


def put(store: Store, data: bytes) -> dict[str, object]:
    """Bring a blob into the store; return its descriptor."""
    with store.receive(sha256(data), len(data)) as incoming:
        if incoming.offset < len(data):
            incoming.write(data)
        incoming.finish()
    return {"digest": sha256(data), "size": len(data)}


def put_document(store: Store, **fields: object) -> dict[str, object]:
    return put(store, json.dumps(fields).encode())


def name(reference: str, digest: str = DIGEST, size: int = 5) -> Name:
    return Name(reference, digest, size, OCI_MANIFEST, 1_700_000_000)


def image(store: Store, number: int) -> dict[str, object]:
    """Store an image; return its manifest's descriptor."""
    config = put_document(store, os="linux", number=number)
    layers = [put(store, f"layer {number}".encode()), put(store, b"a shared layer")]
    return put_document(store, config=config, layers=layers)


def files(store: Store, kind: str) -> list[str]:
    return sorted(os.listdir(Path(store.path, kind)))


def test_a_blob(store: Store) -> None:
    assert not store.has(DIGEST, len(DATA))
    with store.receive(DIGEST, len(DATA)) as incoming:
        assert incoming.offset == 0
        incoming.write(DATA[:3000])
        assert not store.has(DIGEST, len(DATA))
        incoming.write(DATA[3000:])
        assert incoming.offset == len(DATA)
        incoming.finish()
    assert store.has(DIGEST, len(DATA))
    assert not store.has(DIGEST, len(DATA) + 1)
    assert store.read(DIGEST, len(DATA)) == DATA
    assert os.stat(store.blob_path(DIGEST)).st_mode & 0o777 == 0o444
    assert files(store, "partial") == []
    with store.receive(DIGEST, len(DATA)) as incoming:  # there already
        assert incoming.offset == len(DATA)
        incoming.finish()
    assert files(store, "partial") == []


def test_an_empty_blob(store: Store) -> None:
    put(store, b"")
    assert store.has(sha256(b""), 0)


def test_sha512(store: Store) -> None:
    import hashlib

    digest = f"sha512:{hashlib.sha512(DATA).hexdigest()}"
    with store.receive(digest, len(DATA)) as incoming:
        incoming.write(DATA)
        incoming.finish()
    assert store.read(digest, len(DATA)) == DATA


def test_a_blob_in_two_goes(store: Store) -> None:
    with store.receive(DIGEST, len(DATA)) as incoming:
        incoming.write(DATA[:3000])
    assert files(store, "partial") == [DIGEST.replace(":", "-")]
    with store.receive(DIGEST, len(DATA)) as incoming:
        assert incoming.offset == 3000
        incoming.write(DATA[3000:])
        incoming.finish()
    assert store.read(DIGEST, len(DATA)) == DATA


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (DATA[:-1] + b"x", "damaged: 10000 of its 10000 bytes came, with the digest {}"),
        (DATA[:-1], "damaged: 9999 of its 10000 bytes came, with the digest {}"),
        (DATA + b"x", "more than its 10000 bytes came"),
    ],
    ids=["other", "short", "long"],
)
def test_another_blob(written: bytes, message: str, store: Store) -> None:
    with store.receive(DIGEST, len(DATA)) as incoming:
        with pytest.raises(DigestError) as caught:  # noqa: PT012 - whichever sees it
            incoming.write(written)
            incoming.finish()
        assert str(caught.value) == f"blob {DIGEST}: {message.format(sha256(written))}"
        assert incoming.offset == 0
    assert files(store, "partial") == []
    assert not store.has(DIGEST, len(DATA))


def test_a_blob_of_the_wrong_size_is_replaced(store: Store) -> None:
    put(store, DATA)
    path = Path(store.blob_path(DIGEST))
    path.chmod(0o644)
    path.write_bytes(b"")
    put(store, DATA)
    assert store.read(DIGEST, len(DATA)) == DATA


@pytest.mark.parametrize("digest", ["", "sha256:../../x", "md5:" + "0" * 32, "sha256:" + "A" * 64])
def test_what_is_no_digest(digest: str, store: Store) -> None:
    for call in store.receive, store.has:
        with pytest.raises(ImageError) as caught:
            call(digest, 1)
        assert str(caught.value) == f"{store.path}: {digest!r} is not a sha256 or sha512 digest"
    assert not os.path.exists(store.path)


def test_threads_that_want_one_blob(store: Store) -> None:
    """One writes it, the others find it."""
    writers = []

    def want() -> None:
        with store.receive(DIGEST, len(DATA)) as incoming:
            if incoming.offset < len(DATA):
                writers.append(incoming.offset)
                for start in range(0, len(DATA), 100):
                    incoming.write(DATA[start : start + 100])
            incoming.finish()

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writers == [0]
    assert store.read(DIGEST, len(DATA)) == DATA
    assert files(store, "partial") == []


KILLED = """
import os, signal, sys
from pyvmm.oci.store import Store
with Store(sys.argv[1]).receive(sys.argv[2], 10000) as incoming:
    incoming.write(b"some bytes" * 500)
    print("written", flush=True)
    sys.stdin.read()
"""


def test_a_writer_that_is_killed(store: Store) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, store.path, DIGEST],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout
    assert writer.stdout.readline() == b"written\n"
    offsets: list[int] = []

    def resume() -> None:
        with store.receive(DIGEST, len(DATA)) as incoming:
            offsets.append(incoming.offset)
            incoming.write(DATA[5000:])
            incoming.finish()

    waiting = threading.Thread(target=resume)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()  # as long as the other holds it
    writer.kill()
    writer.communicate()
    waiting.join()
    assert offsets == [5000]
    assert store.read(DIGEST, len(DATA)) == DATA


LIMITED = """
import resource, signal, sys
from pyvmm.errors import ImageError
from pyvmm.oci.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    with Store(sys.argv[1]).receive(sys.argv[2], 10000) as incoming:
        incoming.write(b"some bytes" * 1000)
except ImageError as error:
    print(error)
"""


def test_no_room(store: Store) -> None:
    line = [sys.executable, "-c", LIMITED, store.path, DIGEST]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    part = f"{store.path}/partial/{DIGEST.replace(':', '-')}"
    assert done.stdout == f"{part}: cannot be written: File too large\n"
    with store.receive(DIGEST, len(DATA)) as incoming:  # what was written is sound
        incoming.write(DATA[incoming.offset :])
        incoming.finish()


def test_names(store: Store) -> None:
    assert store.names() == []
    assert store.find("docker.io/library/a:1") is None
    assert not store.forget("docker.io/library/a:1")
    store.name(name("docker.io/library/b:1"))
    store.name(name("docker.io/library/a:1", size=6))
    store.name(name("docker.io/library/a:1", size=7))
    long = f"x.org/{'a' * 255}:{'b' * 128}@sha512:{'c' * 128}"
    store.name(name(long))
    assert store.find("docker.io/library/a:1") == name("docker.io/library/a:1", size=7)
    assert [each.reference for each in store.names()] == [
        "docker.io/library/a:1",
        "docker.io/library/b:1",
        long,
    ]
    assert store.forget("docker.io/library/a:1")
    assert store.find("docker.io/library/a:1") is None
    assert files(store, "partial") == []


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"{}", b'{"reference": 1}',
        json.dumps({**vars(name("a/b:1")), "digest": "sha256:../../x"}).encode(),
        json.dumps({**vars(name("a/b:1")), "size": -1}).encode(),
        json.dumps(vars(name("another/one:1"))).encode(),
    ],
)  # fmt: skip
def test_a_damaged_name_is_none(content: bytes, store: Store) -> None:
    store.name(name("a/b:1"))
    (file,) = Path(store.path, "names").iterdir()
    file.write_bytes(content)
    assert store.find("a/b:1") is None
    store.name(name("a/b:1"))
    assert store.find("a/b:1") == name("a/b:1")


def named(store: Store, reference: str, descriptor: dict[str, object]) -> None:
    store.name(Name(reference, *descriptor.values(), OCI_INDEX, 1))  # type: ignore[arg-type]


def occupied(store: Store) -> int:
    """The bytes that blobs and parts of blobs take on the disk."""
    parts = [path for kind in ("blobs", "partial") for path in Path(store.path, kind).rglob("*")]
    return sum(path.stat().st_blocks * 512 for path in parts if path.is_file())


def test_prune(store: Store) -> None:
    first, second = image(store, 1), image(store, 2)
    other = {"digest": f"sha256:{'9' * 64}", "size": 5}  # a platform's that was not fetched
    named(store, "a/index:1", put_document(store, manifests=[first, other]))
    named(store, "a/second:1", second)
    used = store.used()
    assert other["digest"] in used
    assert len(files(store, "blobs/sha256")) == 8
    assert store.prune() == 0

    with store.receive(DIGEST, len(DATA)) as incoming:
        incoming.write(DATA)
    before = occupied(store)
    freed = store.prune()
    assert freed == before - occupied(store) > 0
    assert files(store, "partial") == []

    store.forget("a/second:1")
    before = occupied(store)
    freed = store.prune()
    assert freed == before - occupied(store) > 0
    assert store.used() < used
    assert len(files(store, "blobs/sha256")) == 5  # with the layer that both had
    store.forget("a/index:1")
    store.prune()
    assert files(store, "blobs/sha256") == []
    assert store.used() == set()


def test_prune_survives_damage(store: Store) -> None:
    """Of a damaged manifest nothing is known: what it led to goes, and is fetched again."""
    manifest = image(store, 1)
    named(store, "a/b:1", manifest)
    path = Path(store.blob_path(str(manifest["digest"])))
    path.chmod(0o644)
    path.write_bytes(b"{}")
    store.prune()
    assert files(store, "blobs/sha256") == [path.name]


def test_verify(store: Store) -> None:
    manifest = image(store, 1)
    named(store, "a/b:1", manifest)
    put(store, DATA)
    assert store.verify() == []
    path = Path(store.blob_path(DIGEST))
    path.chmod(0o644)
    path.write_bytes(DATA[:-1] + b"x")
    assert store.has(DIGEST, len(DATA))  # whose contents nobody looked at
    assert store.verify() == [DIGEST]
    assert not store.has(DIGEST, len(DATA))
    assert store.verify() == []


def test_prune_and_verify_keep_away_from_a_pull(store: Store) -> None:
    with store.lock(), store.lock():
        put(store, DATA)
        for call in store.prune, store.verify:
            with pytest.raises(ImageError) as caught:
                call()
            assert str(caught.value) == f"{store.path}: {IN_USE}"
    store.prune()
    assert files(store, "blobs/sha256") == []


def test_remove(store: Store) -> None:
    """Only what is damaged indeed: an image may say so of another's."""
    put(store, DATA)
    assert not store.remove(DIGEST)
    assert store.has(DIGEST, len(DATA))
    path = Path(store.blob_path(DIGEST))
    path.chmod(0o644)
    path.write_bytes(DATA[:-1])
    assert store.remove(DIGEST)
    assert not path.exists()
    assert not store.remove(DIGEST)


def test_an_index_of_nonsense_hides_nothing(store: Store) -> None:
    good = image(store, 1)
    entries = [{"digest": 5}, {"digest": "../x"}, {}, good]
    index = put_document(store, manifests=entries, layers="none", config=[])
    store.name(Name("evil", str(index["digest"]), 5, OCI_INDEX, 1))
    before = files(store, "blobs/sha256")
    assert store.prune() == 0
    assert files(store, "blobs/sha256") == before


def test_an_index_without_end_leads_nowhere(store: Store) -> None:
    index = put_document(store, manifests=[{}] * 10_001)
    assert store.reachable([str(index["digest"])]) == {index["digest"]}


def test_a_part_that_was_left_behind_can_be_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while it is synced; then by a user whom modes bind."""

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            put(store, DATA)
    (part,) = Path(store.path, "partial").iterdir()
    assert part.stat().st_mode & 0o777 == 0o644
    put(store, DATA)
    assert Path(store.blob_path(DIGEST)).stat().st_mode & 0o777 == 0o444
