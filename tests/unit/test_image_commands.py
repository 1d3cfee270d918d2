"""``pyvmm image …`` and images of the store, with a store that is filled from a layout."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm import cli, disk_cache
from pyvmm.cache import unfinished
from pyvmm.disk import FORMAT, base_disk
from pyvmm.errors import ImageError
from pyvmm.oci import Image, open_image, with_image
from pyvmm.oci.limits import DEFAULT, Limits
from pyvmm.oci.platform import Platform
from pyvmm.oci.reference import Reference
from pyvmm.oci.store import Name, Store

from .images import OCI_INDEX, OCI_MANIFEST, Layout, docker_archive, file, layer, layout, sha256
from .test_disk_tools import needs
from .test_quick_json import SLOW

ONE = layer(file("one", b"1" * 50_000))
TWO = layer(file("two", b"2"))
DEMO = "docker.io/library/demo:1"


class Registry:
    """Takes the place of pulling: what it has is put into the store."""

    def __init__(self, path: Path) -> None:
        self.made = Layout(path)
        self.images: dict[str, dict[str, Any]] = {}
        self.pulls: list[str] = []

    def pull(
        self,
        reference: Reference,
        platform: Platform,
        store: Store,
        progress: Any,
        limits: Limits = DEFAULT,
    ) -> Name:
        text = str(reference)
        self.pulls.append(f"{text} {platform}")
        descriptor = self.images.get(text)
        if descriptor is None:
            raise ImageError(f"{text}: no such image")
        progress.line("hello")
        for blob in sorted((self.made.path / "blobs/sha256").iterdir()):
            data, digest = blob.read_bytes(), f"sha256:{blob.name}"
            if store.has(digest, len(data)):
                continue
            progress.blob(digest, len(data), 0)
            with store.receive(digest, len(data)) as incoming:
                incoming.write(data)
                incoming.finish()
            progress.advance(digest, len(data))
            progress.done(digest)
        name = Name(text, descriptor["digest"], descriptor["size"], descriptor["mediaType"], 1000)
        store.name(name)
        return name


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TZ", "UTC")
    made = Registry(tmp_path / "registry")
    made.images[DEMO] = made.made.image([ONE, TWO], Cmd=["c"])
    monkeypatch.setattr("pyvmm.oci.pull.pull", made.pull)
    return made


@pytest.fixture
def pyvmm(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls the command line; returns its exit code, stdout and stderr."""

    class Exit(Exception):
        pass

    def leave(code: int) -> None:
        raise Exit(code)

    monkeypatch.setattr("os._exit", leave)
    monkeypatch.setattr(cli, "signal", lambda *_: None)

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(Exit) as caught:
            cli.main([str(word) for word in words])
        out, err = capsysbinary.readouterr()
        return caught.value.args[0], out.decode("latin-1"), err.decode()

    return call


def test_an_image_of_a_registry(registry: Registry) -> None:
    lines: list[str] = []
    for _ in range(2):
        with open_image("demo:1", progress=lines.append) as image:
            assert image.digest == registry.images[DEMO]["digest"]
            assert [each.diff_id for each in image.layers] == [sha256(ONE), sha256(TWO)]
            assert str(image.platform) == "linux/amd64"
    assert lines[:2] == [f"pulling {DEMO}", "hello"]
    assert len(lines) == 2 + len(list((registry.made.path / "blobs/sha256").iterdir()))
    assert registry.pulls == [f"{DEMO} linux/amd64"]
    open_image("demo:1", pull="always")
    assert len(registry.pulls) == 2
    open_image("docker://demo:1", pull="never")
    assert len(registry.pulls) == 2


def test_never_pulled(registry: Registry) -> None:
    with pytest.raises(ImageError) as caught:
        open_image("demo:1", pull="never")
    assert str(caught.value) == f"{DEMO}: not in the store; get it by `pyvmm image pull`"
    assert registry.pulls == []


def test_always_pulled_or_an_error(registry: Registry) -> None:
    open_image("demo:1")
    registry.images.clear()
    open_image("demo:1")
    with pytest.raises(ImageError, match=f"^{DEMO}: no such image$"):
        open_image("demo:1", pull="always")


@pytest.mark.parametrize("damage", ["missing", "short", "changed"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_damaged_blob_is_fetched_again(registry: Registry, damage: str, which: int) -> None:
    """Of the manifest, the configuration and a layer."""
    store = Store()
    with open_image("demo:1") as image:
        manifest = json.loads(Path(store.blob_path(image.digest)).read_text())
    digests = [image.digest, manifest["config"]["digest"], manifest["layers"][0]["digest"]]
    blob = Path(store.blob_path(digests[which]))
    data = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes({"missing": b"", "short": data[:-1]}.get(damage, b"x" + data[1:]))
    if damage == "missing":
        blob.unlink()
    used: list[str] = []

    def use(image: Image) -> str:
        used.append(image.digest)
        for each in image.layers:
            each.verify()
        return "done"

    if (which, damage) == (2, "changed"):  # seen when it is used
        with pytest.raises(ImageError, match=r" is missing; fetch the image again$"):
            with_image(lambda: open_image("demo:1", pull="never"), use)
        blob.write_bytes(b"x" + data[1:])
    else:
        with pytest.raises(ImageError, match=r"; fetch the image again$"):
            open_image("demo:1", pull="never")
    used.clear()
    assert with_image(lambda: open_image("demo:1"), use) == "done"
    assert used == [digests[0]] * (2 if (which, damage) == (2, "changed") else 1)
    assert blob.read_bytes() == data
    assert registry.pulls == [f"{DEMO} linux/amd64"] * 2


def test_a_layer_found_damaged_while_the_disk_is_made(registry: Registry, tmp_path: Path) -> None:
    with open_image("demo:1") as image:
        blob = Path(Store().blob_path(image.layers[0].digest))
        expected = Path(base_disk(image, 16 << 20))
    data = blob.read_bytes()
    good = expected.read_bytes()
    for position in range(0, len(data), 10):
        expected.unlink()
        blob.chmod(0o644)
        blob.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        registry.pulls.clear()
        disk = with_image(lambda: open_image("demo:1"), lambda image: base_disk(image, 16 << 20))
        assert Path(disk).read_bytes() == good
        assert blob.read_bytes() == data
        assert registry.pulls == [f"{DEMO} linux/amd64"]


def test_all_layers_damaged(registry: Registry) -> None:
    with open_image("demo:1") as image:
        blobs = [Path(Store().blob_path(each.digest)) for each in image.layers]
    for blob in blobs:
        blob.chmod(0o644)
        blob.write_bytes(bytes(blob.stat().st_size))

    def use(image: Image) -> int:
        for each in image.layers:
            each.verify()
        return 5

    assert with_image(lambda: open_image("demo:1"), use) == 5
    assert registry.pulls == [f"{DEMO} linux/amd64"] * 3


def test_a_layer_removed_before_it_is_used(registry: Registry) -> None:
    removed = []

    def use(image: Image) -> int:
        if not removed:
            removed.append(Path(Store().blob_path(image.layers[1].digest)))
            removed[0].unlink()
        with image.layers[1].open() as file:
            return len(file.read())

    assert with_image(lambda: open_image("demo:1"), use) > 0
    assert removed[0].exists()


def test_damaged_layers_are_not_saved(registry: Registry, pyvmm: Any, tmp_path: Path) -> None:
    """A plain layer's, too, whose stream is the blob."""
    made = Layout(tmp_path / "oci")
    made.refer(made.image([ONE], compressed=False), "x")
    blob = made.blob_path(sha256(ONE))
    blob.write_bytes(ONE[:-1] + b"x")
    code, out, err = pyvmm("image", "save", tmp_path / "oci", tmp_path / "saved")
    assert (code, out) == (125, "")
    assert err.startswith(f"pyvmm: {blob}: damaged: ")
    assert not (tmp_path / "saved").exists()


def test_leftovers_are_pruned(registry: Registry, pyvmm: Any) -> None:
    with open_image("demo:1") as image:
        disk = Path(base_disk(image, 16 << 20))
    disks = disk.parent
    old = disk.with_name(disk.name.replace(f"-v{FORMAT}", f"-v{FORMAT - 1}"))
    left = Path(unfinished(), "z.ext4.part")
    for path in (old, Path(f"{old}.crc32"), disks / "x.ext4", left):
        path.write_bytes(b"x" * 4096)
    making = Path(unfinished(), "y.ext4.part")
    making.write_bytes(b"")
    for name in ("y", "z"):
        Path(disks, f"{name}.ext4.crc32").write_bytes(b"")
    with making.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert pyvmm("image", "prune") == (0, "", "pyvmm: freed 16.0 KiB\n")
    assert sorted(disks.iterdir()) == sorted([disk, Path(f"{disk}.crc32"), disks / "y.ext4.crc32"])
    assert list(making.parent.iterdir()) == [making]


def test_damage_elsewhere_is_not_mended(registry: Registry, tmp_path: Path) -> None:
    path = layout(tmp_path / "oci", ONE)
    with open_image(path) as image:
        blob = Path(image.layers[0].blob.path)
    blob.write_bytes(bytes(blob.stat().st_size))
    used = []

    def use(image: Image) -> None:
        used.append(image)
        image.layers[0].verify()

    with pytest.raises(ImageError, match=r": damaged: .*; fetch the image again$"):
        with_image(lambda: open_image(path), use)
    assert len(used) == 1
    assert blob.exists()


def test_another_platform_is_pulled_as_well(registry: Registry) -> None:
    made = registry.made
    entries = [
        {**made.image([data]), "platform": {"os": "linux", "architecture": "amd64", "variant": v}}
        for data, v in ((ONE, "v1"), (TWO, "v3"))
    ]
    index = made.document({"schemaVersion": 2, "manifests": entries}, OCI_INDEX)
    registry.images[DEMO] = index
    with open_image("demo:1") as image:
        assert image.layers[0].diff_id == sha256(ONE)
    store = Store()
    Path(store.blob_path(entries[1]["digest"])).unlink()
    with open_image("demo:1", platform=Platform("linux", "amd64", "v3")) as image:
        assert image.layers[0].diff_id == sha256(TWO)
    assert registry.pulls == [f"{DEMO} linux/amd64", f"{DEMO} linux/amd64/v3"]


def test_pull(registry: Registry, pyvmm: Any) -> None:
    code, out, err = pyvmm("image", "pull", "demo:1")
    assert (code, out) == (0, registry.images[DEMO]["digest"] + "\n")
    lines = err.splitlines()
    assert lines[0] == "pyvmm: hello"
    blobs = sorted((registry.made.path / "blobs/sha256").iterdir())
    assert [line.split(" in ")[0] for line in lines[1:]] == [
        f"pyvmm: sha256:{blob.name}: {blob.stat().st_size} bytes" for blob in blobs
    ]
    assert pyvmm("image", "pull", "demo:1") == (0, out, "pyvmm: hello\n")
    assert pyvmm("image", "pull", "demo:2") == (
        125, "", "pyvmm: docker.io/library/demo:2: no such image\n",
    )  # fmt: skip


def test_ls(registry: Registry, pyvmm: Any) -> None:
    assert pyvmm("image", "ls") == (0, "REFERENCE  DIGEST  SIZE  PULLED\n", "")
    pyvmm("image", "pull", "demo:1")
    digest = registry.images[DEMO]["digest"]
    size = sum(blob.stat().st_size for blob in (registry.made.path / "blobs/sha256").iterdir())
    _, out, _ = pyvmm("image", "ls", "--json")
    assert json.loads(out) == [
        {"reference": DEMO, "digest": digest, "size": size, "media_type": OCI_MANIFEST,
         "pulled": 1000}
    ]  # fmt: skip
    assert pyvmm("image", "ls") == (
        0,
        "REFERENCE                 DIGEST        SIZE     PULLED\n"
        f"{DEMO}  {digest[7:19]}  {size / 1024:.1f} KiB  1970-01-01 00:16\n",
        "",
    )


def test_inspect(registry: Registry, pyvmm: Any, tmp_path: Path) -> None:
    assert pyvmm("image", "inspect", "demo:1") == (
        125, "", f"pyvmm: {DEMO}: not in the store; get it by `pyvmm image pull`\n",
    )  # fmt: skip
    path = layout(tmp_path / "oci", ONE, TWO, Cmd=["c"])
    pyvmm("image", "pull", "demo:1")
    image = open_image(path)
    expected = {
        "digest": image.digest,
        "platform": "linux/amd64",
        "config": {
            "entrypoint": [], "cmd": ["c"], "env": [], "workdir": "", "user": "", "stop_signal": "",
        },
        "layers": [
            {
                "digest": each.digest,
                "size": each.size,
                "diff_id": sha256(data),
                "media_type": "application/vnd.oci.image.layer.v1.tar+gzip",
            }
            for each, data in zip(image.layers, (ONE, TWO), strict=True)
        ],
    }  # fmt: skip
    for text, reference in (("demo:1", DEMO), (path, str(path)), (f"oci:{path}:latest",) * 2):
        code, out, err = pyvmm("image", "inspect", text)
        assert (code, json.loads(out), err) == (0, {"reference": reference, **expected}, "")


def test_rm(registry: Registry, pyvmm: Any) -> None:
    other = "docker.io/library/other:latest"
    registry.images[other] = registry.made.image([TWO])
    for ref in ("demo:1", "other"):
        pyvmm("image", "pull", ref)
    digest = registry.images[DEMO]["digest"]
    with open_image("demo:1") as image:
        shared, own = image.layers[1].digest, image.layers[0].digest
        base_disk(image, 16 << 20)
    with open_image("other") as image:
        kept = base_disk(image, 16 << 20)
    message = "docker.io/library/none:latest: not in the store; see pyvmm image ls"
    assert pyvmm("image", "rm", "demo:1", "none") == (125, "", f"pyvmm: {message}\n")
    assert Store().find(DEMO)

    code, out, err = pyvmm("image", "rm", "demo:1")
    assert (code, out) == (0, "")
    assert err.startswith("pyvmm: freed ")
    assert [name.reference for name in Store().names()] == [other]
    assert [base.path for base in disk_cache.bases()] == [str(kept)]
    there = [Path(Store().blob_path(each)).exists() for each in (digest, own, shared)]
    assert there == [False, False, True]
    open_image("other", pull="never").layers[0].verify()


def test_rm_while_somebody_pulls(registry: Registry, pyvmm: Any) -> None:
    open_image("demo:1").close()
    store = Store()
    with store.lock():
        assert pyvmm("image", "rm", "demo:1") == (
            0, "", f"pyvmm: {store.path}: in use by another pyvmm, which pulls or verifies; try "
            "again later, by pyvmm image prune\npyvmm: freed 0 bytes\n",
        )  # fmt: skip
    assert store.names() == []
    assert pyvmm("image", "prune")[2] != "pyvmm: freed 0 bytes\n"


def test_prune(registry: Registry, pyvmm: Any, tmp_path: Path) -> None:
    with open_image("demo:1") as image:
        base_disk(image, 16 << 20)
    base_disk(open_image(layout(tmp_path / "oci", TWO)), 16 << 20)
    assert len(disk_cache.bases()) == 2
    pyvmm("image", "prune")
    assert [base.image for base in disk_cache.bases()] == [registry.images[DEMO]["digest"]]
    assert pyvmm("image", "prune") == (0, "", "pyvmm: freed 0 bytes\n")
    Store().forget(DEMO)
    code, out, err = pyvmm("image", "prune")
    assert (code, out) == (0, "")
    assert err.startswith("pyvmm: freed ")
    assert err.endswith("iB\n")
    assert disk_cache.bases() == []
    assert list((tmp_path / "cache/pyvmm/images/blobs/sha256").iterdir()) == []


def test_verify(registry: Registry, pyvmm: Any) -> None:
    with open_image("demo:1") as image:
        disk = Path(base_disk(image, 16 << 20))
        blob = Path(Store().blob_path(image.layers[0].digest))
    assert pyvmm("image", "verify") == (0, "", "")
    for path in (disk, blob):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
    assert pyvmm("image", "verify") == (
        1,
        f"blob {image.layers[0].digest}: damaged; removed, and made again when it is needed\n"
        f"disk {disk}: damaged; removed, and made again when it is needed\n",
        "",
    )
    assert not disk.exists()
    with_image(lambda: open_image("demo:1"), lambda image: image.layers[0].verify())
    assert pyvmm("image", "verify") == (0, "", "")


@pytest.mark.parametrize("format", ["oci-archive", "docker-archive"])
def test_save(registry: Registry, pyvmm: Any, tmp_path: Path, format: str) -> None:
    saved = tmp_path / "saved.tar"
    assert pyvmm("image", "save", "--format", format, "demo:1", saved)[:2] == (0, "")
    digest = registry.images[DEMO]["digest"]
    for text in (saved, f"{format}:{saved}:{DEMO}"):
        with open_image(text) as image:
            assert [each.diff_id for each in image.layers] == [sha256(ONE), sha256(TWO)]
            assert image.digest == digest or format == "docker-archive"
    _, out, _ = pyvmm("image", "save", "--format", format, "demo:1", "-")
    assert out.encode("latin-1") == saved.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "registry", "saved.tar"]


@needs("skopeo")
@pytest.mark.parametrize("kind", ["oci", "dir"])
def test_saved_archives_are_copied_byte_for_byte(
    registry: Registry, pyvmm: Any, tmp_path: Path, kind: str
) -> None:
    saved = tmp_path / "saved.tar"
    pyvmm("image", "save", "demo:1", saved)
    copy = tmp_path / "copy"
    source = f"oci-archive:{saved}:{DEMO}"
    subprocess.run(["skopeo", "--insecure-policy", "copy", "-q", source, f"{kind}:{copy}"],
                   check=True)  # fmt: skip
    expected = {
        blob.name: blob.read_bytes() for blob in (registry.made.path / "blobs/sha256").iterdir()
    }
    if kind == "oci":
        assert {
            blob.name: blob.read_bytes() for blob in (copy / "blobs/sha256").iterdir()
        } == expected
    else:
        expected["manifest.json"] = expected.pop(registry.images[DEMO]["digest"][7:])
        found = {blob.name: blob.read_bytes() for blob in copy.iterdir() if blob.name != "version"}
        assert found == expected
    assert pyvmm("image", "save", f"{kind}:{copy}", tmp_path / "again.tar")[0] == 0
    assert open_image(tmp_path / "again.tar").digest == registry.images[DEMO]["digest"]


@needs("skopeo")
def test_saved_docker_archives(registry: Registry, pyvmm: Any, tmp_path: Path) -> None:
    saved = tmp_path / "saved.tar"
    pyvmm("image", "save", "--format", "docker-archive", "demo:1", saved)
    line = ["skopeo", "--insecure-policy", "copy", "-q", f"docker-archive:{saved}:{DEMO}"]
    subprocess.run([*line, f"oci:{tmp_path}/copy:x"], check=True)
    copied = [each.diff_id for each in open_image(f"{tmp_path}/copy").layers]
    assert copied == [sha256(ONE), sha256(TWO)]


def test_what_cannot_be_saved(registry: Registry, pyvmm: Any, tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "i.tar", ONE)
    assert pyvmm("image", "save", path, tmp_path / "new") == (
        125, "", f"pyvmm: {path}: is a docker-save archive: skopeo copies it to other kinds\n",
    )  # fmt: skip
    assert not list(tmp_path.glob("new*"))
    pyvmm("image", "pull", "demo:1")
    assert pyvmm("image", "save", "demo:1", "/dev/full") == (
        125, "", "pyvmm: /dev/full: cannot be written: No space left on device\n",
    )  # fmt: skip
    assert Path("/dev/full").is_char_device()
    assert pyvmm("image", "save", "demo:1", tmp_path / "none/x") == (
        125, "", f"pyvmm: {tmp_path}/none/x: cannot be written: No such file or directory\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pull"], "give REF, not 0 words"),
        (["pull", "a", "b"], "give REF, not 2 words"),
        (["inspect"], "give REF, not 0 words"),
        (["save", "a"], "give REF and FILE, not 1 words"),
        (["rm"], "which image? See pyvmm image ls"),
        (["ls", "x"], "'x' is too much: see pyvmm image ls --help"),
        (["pull", "--platform", "x", "a"],
         "platform 'x': write it as linux/amd64 or linux/amd64/v3"),
        (["save", "--format", "zip", "a", "b"],
         "--format 'zip': choose oci-archive or docker-archive"),
        ([], "image: which command? See pyvmm image --help"),
    ],
)  # fmt: skip
def test_usage(registry: Registry, pyvmm: Any, words: list[str], message: str) -> None:
    assert pyvmm("image", *words) == (2, "", f"pyvmm: {message}\n")


def test_help(pyvmm: Any) -> None:
    names = ["pull", "ls", "inspect", "rm", "prune", "verify", "save"]
    for words in (["--help"], ["image", "--help"]):
        code, out, _ = pyvmm(*words)
        found = [line.split()[1] for line in out.splitlines() if line.startswith("  image ")]
        assert (code, found) == (0, names)


def test_what_a_run_imports_for_an_image_of_the_store(registry: Registry) -> None:
    open_image("demo:1").close()
    script = (
        "import sys; from pyvmm import cli, machine, worker; from pyvmm.config import Config; "
        "config = Config('demo:1'); "
        "opened = machine.open_image(config.image, platform=config.image_platform); "
        f"opened.close(); print([m for m in {SLOW.split()} if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p)}
    line = [sys.executable, "-S", "-c", script]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_run_takes_the_same_references(registry: Registry, pyvmm: Any) -> None:
    assert pyvmm("run", "--image", "demo:1", "--pull", "never", "--dry-run") == (
        125, "", f"pyvmm: {DEMO}: not in the store; get it by `pyvmm image pull`\n",
    )  # fmt: skip
    assert pyvmm("run", "--image", "demo:1", "--platform", "linux/arm64", "--dry-run") == (
        2, "", "pyvmm: platform 'linux/arm64': guests are linux/amd64\n",
    )  # fmt: skip
    pyvmm("image", "pull", "demo:1")
    assert pyvmm("run", "--image", "demo:1", "--image-limit", "layers=1", "--dry-run") == (
        125, "", f"pyvmm: {DEMO}: 2 layers, more than 1 (--image-limit layers=…)\n",
    )  # fmt: skip
    assert pyvmm("run", "--image", "demo:1", "--image-limit", "layer=1", "--dry-run") == (
        2, "", "pyvmm: no image limit 'layer': there are size, ratio, layers, entries, path, "
        "config\n",
    )  # fmt: skip
