"""Opening images: which is chosen, what is read of it, and one line for all that is wrong."""

from __future__ import annotations

import gzip
import json
import lzma
import random
import subprocess
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from pyvmm.errors import ImageError
from pyvmm.oci import ImageConfig, open_image
from pyvmm.oci.limits import Limits
from pyvmm.oci.platform import Platform, parse_platform

from .images import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Layout,
    archive,
    docker_archive,
    file,
    layer,
    layout,
    sha256,
    symlink,
)
from .test_disk_tools import needs

ONE = layer(file("one", b"1"))
TWO = layer(file("two", b"2"))


ARM = Platform("linux", "arm64")


def fails(path: Path | str, *words: str, platform: str = "linux/amd64") -> str:
    """The message of the ImageError that opening raises: one line, with these words in it."""
    with pytest.raises(ImageError) as caught:
        open_image(path, platform=parse_platform(platform))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def test_layout_directory(tmp_path: Path) -> None:
    path = layout(
        tmp_path / "oci",
        ONE,
        TWO,
        Entrypoint=["/bin/a", "b"],
        Cmd=["c"],
        Env=["A=1", "B="],
        WorkingDir="/w",
        User="1:2",
        StopSignal="SIGINT",
    )
    index = json.loads((path / "index.json").read_text())
    with open_image(path) as image:
        assert image.digest == index["manifests"][0]["digest"]
        assert image.config == ImageConfig(
            ("/bin/a", "b"), ("c",), ("A=1", "B="), "/w", "1:2", "SIGINT"
        )
        assert [layer.diff_id for layer in image.layers] == [sha256(ONE), sha256(TWO)]
        for each, stream in zip(image.layers, (ONE, TWO), strict=True):
            with each.open() as blob:
                data = blob.read(each.size)
            assert sha256(data) == each.digest
            assert gzip.decompress(data) == stream
            assert each.media_type == f"{OCI_LAYER}+gzip"
            each.verify()


def test_configuration_with_nothing_in_it(tmp_path: Path) -> None:
    path = layout(tmp_path / "oci", ONE, Entrypoint=None, Env=None, User=None)
    assert open_image(path).config == ImageConfig((), (), (), "", "", "")


def test_archive_is_the_same_image_as_its_layout(tmp_path: Path) -> None:
    path = layout(tmp_path / "oci", ONE, TWO)
    there = open_image(path)
    here = open_image(archive(tmp_path / "oci.tar", path))
    assert (here.digest, here.config) == (there.digest, there.config)
    for each in here.layers:
        each.verify()
        with each.open() as blob:
            assert sha256(blob.read(each.size)) == each.digest


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_docker_archive(tmp_path: Path, compressed: bool, linked: bool) -> None:
    path = docker_archive(tmp_path / "i.tar", ONE, TWO, compressed=compressed, linked=linked)
    image = open_image(path)
    assert image.config.cmd == ("/bin/sh",)
    assert [each.diff_id for each in image.layers] == [sha256(ONE), sha256(TWO)]
    with image.layers[1].open() as blob:
        data = blob.read(image.layers[1].size)
    assert (gzip.decompress(data) if compressed else data) == TWO
    assert image.digest == open_image(f"{path}:demo:1").digest
    fails(f"{path}:demo:2", "no image named 'demo:2'", "demo:1")


def test_docker_media_types_and_manifests_without_one(tmp_path: Path) -> None:
    made = Layout(tmp_path)
    config = made.document(made.configuration([ONE]), DOCKER_CONFIG)
    blob = made.blob(gzip.compress(ONE, mtime=0), DOCKER_LAYER)
    made.refer(made.manifest(config, [blob], mediaType=DOCKER_MANIFEST), mediaType=DOCKER_MANIFEST)
    assert open_image(tmp_path).layers[0].digest == blob["digest"]
    del made.index["manifests"][0]["mediaType"]
    made.write_index()
    assert open_image(tmp_path).layers[0].digest == blob["digest"]


def several(path: Path) -> Layout:
    made = Layout(path)
    for ref, stream in (("a", ONE), ("b", TWO)):
        made.refer(made.image([stream]), ref)
    return made


def test_reference_chooses(tmp_path: Path) -> None:
    several(tmp_path)
    assert open_image(f"{tmp_path}:b").layers[0].diff_id == sha256(TWO)
    fails(tmp_path, "several images", "a, b")
    fails(f"{tmp_path}:c", "no image named 'c'", "a, b")


def test_two_names_of_one_image_are_no_choice(tmp_path: Path) -> None:
    made = Layout(tmp_path)
    descriptor = made.image([ONE])
    made.refer(descriptor, "a")
    made.refer(descriptor, "b")
    assert open_image(tmp_path).digest == descriptor["digest"]


def test_colon_in_the_path_itself(tmp_path: Path) -> None:
    layout(tmp_path / "a:b", ONE)
    assert open_image(tmp_path / "a:b").digest == open_image(f"{tmp_path}/a:b:latest").digest


def multi_platform(path: Path) -> Layout:
    made = Layout(path)
    entries = [
        {**made.image([ONE], arch="arm64"), "platform": {"os": "linux", "architecture": "arm64"}},
        {**made.image([TWO]), "platform": {"os": "linux", "architecture": "amd64"}},
        # BuildKit's provenance: no image, and its platform says so
        {
            **made.document({"schemaVersion": 2}, OCI_INDEX),
            "platform": {"os": "unknown", "architecture": "unknown"},
        },
    ]
    inner = made.document({"schemaVersion": 2, "manifests": entries}, OCI_INDEX)
    made.refer(made.document({"schemaVersion": 2, "manifests": [inner]}, OCI_INDEX))
    return made


def test_nested_index_chooses_the_platform(tmp_path: Path) -> None:
    multi_platform(tmp_path)
    assert open_image(tmp_path).layers[0].diff_id == sha256(TWO)
    assert open_image(tmp_path, platform=ARM).layers[0].diff_id == sha256(ONE)
    fails(tmp_path, "needs linux/s390x", "linux/arm64, linux/amd64", platform="linux/s390x")


def test_other_platforms_may_be_absent(tmp_path: Path) -> None:
    made = multi_platform(tmp_path)
    arm = open_image(tmp_path, platform=ARM).digest
    made.blob_path(arm).unlink()
    assert open_image(tmp_path).layers[0].diff_id == sha256(TWO)


def test_wrong_architecture(tmp_path: Path) -> None:
    path = layout(tmp_path, ONE, arch="arm64")
    fails(path, str(path), "needs linux/amd64", "has linux/arm64")
    saved = docker_archive(tmp_path / "i.tar", ONE, architecture="arm64")
    fails(saved, "needs linux/amd64", "is for linux/arm64")


def test_nothing_there(tmp_path: Path) -> None:
    fails(tmp_path / "none", "none: no such image")
    fails(f"{tmp_path}/none\0", "no such image")
    fails(tmp_path, "neither index.json nor manifest.json")
    (tmp_path / "text").write_text("hello")
    fails(tmp_path / "text", "not an image")
    (tmp_path / "packed").write_bytes(gzip.compress(ONE))
    fails(tmp_path / "packed", "neither index.json nor manifest.json")
    (tmp_path / "xz").write_bytes(lzma.compress(ONE))
    assert fails(tmp_path / "xz") == (
        f"{tmp_path}/xz: not an image: neither a directory nor a tar archive, plain, gzip or zstd "
        "(unpack any other): truncated header"
    )


def blob_of(path: Path, kind: str) -> tuple[Path, str]:
    """The file of an image's manifest, configuration or layer, and its digest."""
    blobs = path / "blobs" / "sha256"
    digest = json.loads((path / "index.json").read_text())["manifests"][0]["digest"]
    if kind != "manifest":
        document = json.loads((blobs / digest[7:]).read_text())
        digest = document["config" if kind == "config" else "layers"]
        digest = (digest if kind == "config" else digest[0])["digest"]
    return blobs / digest[7:], digest


@pytest.mark.parametrize("kind", ["manifest", "config", "layer"])
def test_blobs_are_checked(tmp_path: Path, kind: str) -> None:
    path = layout(tmp_path, ONE)
    blob, digest = blob_of(path, kind)
    data = blob.read_bytes()

    blob.write_bytes(data[:-1])
    fails(path, digest, f"has {len(data) - 1} bytes, not {len(data)}")
    blob.unlink()
    fails(path, digest, "is missing")
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    if kind == "layer":  # read when it is used, not to open the image
        with pytest.raises(ImageError, match="damaged"):
            open_image(path).layers[0].verify()
    else:
        fails(path, digest[7:], "damaged")


def test_unknown_layer_type(tmp_path: Path) -> None:
    made = Layout(tmp_path)
    config = made.document(made.configuration([ONE]), OCI_CONFIG)
    made.refer(made.manifest(config, [made.blob(ONE, f"{OCI_LAYER}+encrypted")]))
    fails(tmp_path, "unknown layer type", "tar+encrypted")


def test_layers_and_diff_ids_must_pair(tmp_path: Path) -> None:
    made = Layout(tmp_path)
    config = made.document(made.configuration([ONE, TWO]), OCI_CONFIG)
    made.refer(made.manifest(config, [made.blob(ONE, OCI_LAYER)]))
    fails(tmp_path, "1 layers", "lists 2")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"x"', "[" * 100_000, '{"manifests": 1}', '{"manifests": [1]}', "\xff"]
)
def test_bad_index(tmp_path: Path, text: str) -> None:
    path = layout(tmp_path, ONE)
    (path / "index.json").write_bytes(text.encode("latin-1"))
    fails(path, "index.json")


def test_large_documents_are_refused(tmp_path: Path) -> None:
    path = layout(tmp_path, ONE)
    (path / "index.json").write_bytes(b" " * (8 << 20) + b"{}")
    assert fails(path) == (
        f"{path}/index.json: has 8388610 bytes, more than 8388608 (--image-limit config=…)"
    )


def test_limits(tmp_path: Path) -> None:
    path = layout(tmp_path / "oci", ONE, TWO)
    saved = docker_archive(tmp_path / "i.tar", ONE, TWO)
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(saved.read_bytes() + bytes(65 << 20)))
    for place in (path, saved, packed):
        open_image(place, limits=Limits(layers=2, ratio=10_000))
        with pytest.raises(ImageError) as caught:
            open_image(place, limits=Limits(layers=1, ratio=10_000))
        assert str(caught.value) == f"{place}: 2 layers, more than 1 (--image-limit layers=…)"
    for place, name in ((path, "/index.json"), (saved, ": manifest.json")):
        with pytest.raises(ImageError) as caught:
            open_image(place, limits=Limits(config=100))
        message = str(caught.value)
        assert message.startswith(f"{place}{name}: has ")
        assert message.endswith(" bytes, more than 100 (--image-limit config=…)")


@pytest.mark.parametrize(
    "digest", ["sha256:" + "0" * 63, "../../../etc/passwd", "md5:" + "0" * 32, "sha256:../x", ""]
)
def test_digests_that_are_none(tmp_path: Path, digest: str) -> None:
    made = Layout(tmp_path)
    made.refer({**made.image([ONE]), "digest": digest})
    fails(tmp_path, "is not a sha256 or sha512 digest")


def test_indexes_nest_to_any_depth_but_end(tmp_path: Path) -> None:
    made = Layout(tmp_path)
    descriptor = made.image([ONE])
    for _ in range(997):  # and the manifest and the configuration
        descriptor = made.document({"schemaVersion": 2, "manifests": [descriptor]}, OCI_INDEX)
    made.refer(descriptor, "1000")
    assert open_image(tmp_path).layers[0].diff_id == sha256(ONE)
    for _ in range(2):
        descriptor = made.document({"schemaVersion": 2, "manifests": [descriptor]}, OCI_INDEX)
    made.refer(descriptor, "1001")
    fails(f"{tmp_path}:1001", "more than 1000 documents, or 64 MiB of them, lead to images")


def test_documents_are_not_read_without_end(tmp_path: Path) -> None:
    made = Layout(tmp_path)
    large = made.blob(b'{"manifests": []}' + b" " * (7 << 20), OCI_INDEX)
    made.refer(made.document({"manifests": [large] * 9}, OCI_INDEX), "9")
    made.refer(made.document({"manifests": [large] * 10}, OCI_INDEX), "10")
    fails(f"{tmp_path}:9", "the image has no image")
    fails(f"{tmp_path}:10", "more than 1000 documents, or 64 MiB of them, lead to images")
    fails(tmp_path, "more than 1000 documents, or 64 MiB of them, lead to images")


def test_the_best_variant_is_chosen(tmp_path: Path) -> None:
    made = Layout(tmp_path)
    entries = [
        {**made.image([stream]), "platform": {"os": "linux", "architecture": "amd64", **variant}}
        for stream, variant in ((ONE, {"variant": "v3"}), (TWO, {"variant": "v2"}))
    ]
    made.refer(made.document({"schemaVersion": 2, "manifests": entries}, OCI_INDEX), "a")
    for entry in entries:
        made.refer(entry, "b")
    for ref in "ab":
        path = f"{tmp_path}:{ref}"
        assert open_image(path, platform=parse_platform("linux/amd64/v4")).layers[0].diff_id == (
            sha256(ONE)
        )
        assert open_image(path, platform=parse_platform("linux/amd64/v2")).layers[0].diff_id == (
            sha256(TWO)
        )
        assert fails(path) == (
            f"{tmp_path}: needs linux/amd64, but the image has linux/amd64/v3, linux/amd64/v2"
        )


def test_the_configuration_has_the_last_word(tmp_path: Path) -> None:
    made = Layout(tmp_path)
    platform = {"os": "linux", "architecture": "amd64"}
    made.refer({**made.image([ONE], arch="arm64"), "platform": platform})
    assert fails(tmp_path) == f"{tmp_path}: needs linux/amd64, but the image has linux/arm64"


def test_what_an_image_has_is_listed_briefly(tmp_path: Path) -> None:
    made = Layout(tmp_path)
    image = made.image([ONE])
    names = [f"{i:02}" for i in range(22)]
    for name in names:
        made.refer(made.image([name.encode()]), name)
    assert fails(tmp_path).endswith(f"(there are: {', '.join(names[:20])}, and 2 more)")
    foreign = [{**image, "platform": {"os": "linux", "architecture": "x" * 999}}] * 2
    made.refer(made.document({"schemaVersion": 2, "manifests": foreign}, OCI_INDEX), "foreign")
    assert fails(f"{tmp_path}:foreign").endswith(f"the image has linux/{'x' * 94}…")


def test_artifacts_are_no_images(tmp_path: Path) -> None:
    made = Layout(tmp_path)
    config = made.document({}, "application/vnd.cncf.helm.config.v1+json")
    chart = made.manifest(config, [made.blob(b"chart", "application/x")])
    made.refer(chart, "chart")
    bill = made.document(
        {"schemaVersion": 2, "artifactType": "application/spdx+json", "blobs": []}, OCI_MANIFEST
    )
    made.refer(bill, "bill")
    image = made.image([ONE])
    index = {"schemaVersion": 2, "manifests": [bill, chart, image]}
    made.refer(made.document(index, OCI_INDEX), "image")
    assert open_image(f"{tmp_path}:image").digest == image["digest"]
    for ref, kind in (
        ("chart", "application/vnd.cncf.helm.config.v1+json"),
        ("bill", "application/spdx+json"),
    ):
        assert fails(f"{tmp_path}:{ref}") == (
            f"{tmp_path}: needs linux/amd64, but the image has an artifact ({kind})"
        )


def test_what_is_both_manifest_and_index_is_neither(tmp_path: Path) -> None:
    made = Layout(tmp_path)
    image = made.image([ONE])
    document = json.loads(made.blob_path(image["digest"]).read_text())
    made.refer(made.document({**document, "manifests": [image]}, OCI_INDEX))
    fails(tmp_path, "neither an image manifest nor an index")


def test_names_that_containerd_writes(tmp_path: Path) -> None:
    made = several(tmp_path)
    for entry, name in zip(made.index["manifests"], ("x", "y"), strict=True):
        entry["annotations"]["io.containerd.image.name"] = f"docker.io/library/{name}:1"
    made.write_index()
    assert open_image(f"{tmp_path}:y:1").layers[0].diff_id == sha256(TWO)
    fails(f"{tmp_path}:y", "no image named 'y'")


def test_names_in_docker_archives(tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "i.tar", ONE)
    digest = open_image(path).digest
    for ref in ("demo:1", "docker.io/library/demo:1", "library/demo:1", "@0"):
        assert open_image(f"docker-archive:{path}:{ref}").digest == digest
    assert fails(f"docker-archive:{path}:demo") == (
        f"{path}: has no image named 'demo': add :NAME to choose one (there are: demo:1)"
    )
    fails(f"docker-archive:{path}:@1", "no image named '@1'")


def test_transports_take_what_is_theirs(tmp_path: Path) -> None:
    path = layout(tmp_path / "oci", ONE)
    packed = archive(tmp_path / "oci.tar", path)
    saved = docker_archive(tmp_path / "saved.tar", ONE)
    digest = open_image(path).digest
    assert open_image(f"oci:{path}:latest").digest == digest
    assert open_image(f"oci-archive:{packed}:latest").digest == digest
    assert open_image(f"oci-archive:{packed}").digest == digest
    assert fails(f"oci:{saved}") == f"{saved}: not an OCI layout: it has no index.json"
    assert fails(f"oci-archive:{saved}") == f"{saved}: not an OCI layout: it has no index.json"
    assert fails(f"oci-archive:{path}") == f"{path}: cannot be read: Is a directory"
    assert fails(f"dir:{path}") == (
        f"{path}: not an image that skopeo copied: it has no manifest.json"
    )
    assert fails(f"docker-archive:{packed}") == (
        f"{packed}: not a docker-save archive: it has no manifest.json"
    )


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
@pytest.mark.parametrize("packed", [False, True])
def test_compressed_archives(
    tmp_path: Path, packed: bool, compress: Callable[[bytes], bytes]
) -> None:
    saved = docker_archive(tmp_path / "i.tar", ONE, compressed=packed)
    whole = saved.read_bytes()
    saved.write_bytes(compress(whole[:3000]) + compress(whole[3000:]))
    with open_image(saved) as image:
        with image.layers[0].open() as blob:
            data = blob.read(image.layers[0].size)
        assert (gzip.decompress(data) if packed else data) == ONE
        saved.unlink()  # what was unpacked has no name, and stays as long as the image is open
        assert image.layers[0].blob.read() == data
    saved.write_bytes(compress(whole)[:-9])
    assert fails(saved) == f"{saved}: cannot be decompressed: it is truncated"
    saved.write_bytes(compress(bytes(65 << 20)))
    assert fails(saved) == (
        f"{saved}: more than 200 times as large uncompressed (--image-limit ratio=…)"
    )


def skopeo(*words: object) -> None:
    line = ["skopeo", "--insecure-policy", "copy", "--quiet", *map(str, words)]
    subprocess.run(line, check=True)


@needs("skopeo")
@pytest.mark.parametrize("kind", ["oci:{}/new:x", "oci-archive:{}/new:x", "docker-archive:{}/new:x",
                                  "dir:{}/new"])  # fmt: skip
def test_what_skopeo_writes(tmp_path: Path, kind: str) -> None:
    """By the transport and by the path alone."""
    path = layout(tmp_path / "oci", ONE, TWO, Cmd=["c"])
    skopeo(f"oci:{path}:latest", kind.format(tmp_path))
    for reference in (kind.format(tmp_path), f"{tmp_path}/new"):
        with open_image(reference) as image:
            assert image.config.cmd == ("c",)
            assert [each.diff_id for each in image.layers] == [sha256(ONE), sha256(TWO)]
            for each in image.layers:
                each.verify()


@needs("skopeo")
def test_dir_with_an_index(tmp_path: Path) -> None:
    made = Layout(tmp_path / "flat")
    entries = [
        {**made.image([data], arch=arch), "platform": {"os": "linux", "architecture": arch}}
        for arch, data in (("arm64", ONE), ("amd64", TWO))
    ]
    made.refer(made.document({"schemaVersion": 2, "manifests": entries}, OCI_INDEX), "x")
    skopeo("--all", f"oci:{tmp_path}/flat:x", f"dir:{tmp_path}/dir")
    image = open_image(f"dir:{tmp_path}/dir")
    assert image.layers[0].diff_id == sha256(TWO)
    image.layers[0].verify()
    assert open_image(f"dir:{tmp_path}/dir", platform=ARM).layers[0].diff_id == sha256(ONE)
    fails(f"dir:{tmp_path}/dir", "needs linux/s390x", platform="linux/s390x")


WRONG: list[Any] = [None, True, -1, 1.5, 1 << 70, "", "\0", "\ud800", [], [None], {}, {"": []}]


def mutations(value: Any) -> Any:
    """The value with each of its parts, in turn, replaced by each wrong value."""
    yield from WRONG
    if isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            for changed in mutations(value[key]):
                yield {**value, key: changed}
    elif isinstance(value, list):
        for i in range(len(value)):
            for changed in mutations(value[i]):
                yield [*value[:i], changed, *value[i + 1 :]]


def opens_or_fails(path: Path) -> None:
    with suppress(ImageError):
        open_image(path)


def test_any_field_may_be_of_any_type(tmp_path: Path) -> None:
    made = Layout(tmp_path)
    config = made.configuration([ONE], Cmd=["x"], Env=["A=1"], User="u")
    blob = made.blob(ONE, OCI_LAYER)
    manifest = {"schemaVersion": 2, "config": made.document(config, OCI_CONFIG), "layers": [blob]}
    platform = {"os": "linux", "architecture": "amd64"}
    made.refer(made.document(manifest, ""), "name", platform=platform)
    opens_or_fails(tmp_path)

    for changed in mutations(dict(made.index)):
        (tmp_path / "index.json").write_text(json.dumps(changed))
        opens_or_fails(tmp_path)
    for changed in mutations(manifest):
        made.index["manifests"] = []
        made.refer(made.document(changed, ""))
        opens_or_fails(tmp_path)
    for changed in mutations(config):
        made.index["manifests"] = []
        made.refer(made.manifest(made.document(changed, OCI_CONFIG), [blob]))
        opens_or_fails(tmp_path)


def test_any_field_of_a_docker_archive_may_be_of_any_type(tmp_path: Path) -> None:
    with tarfile.open(docker_archive(tmp_path / "good.tar", ONE)) as good:
        members = {m.name: good.extractfile(m).read() for m in good}  # type: ignore[union-attr]
    manifest = json.loads(members.pop("manifest.json"))
    for changed in mutations(manifest):
        entries = [file(name, data) for name, data in members.items()]
        entries.append(file("manifest.json", json.dumps(changed).encode()))
        (tmp_path / "i.tar").write_bytes(layer(*entries))
        opens_or_fails(tmp_path / "i.tar")


def test_damaged_archives(tmp_path: Path) -> None:
    good = archive(tmp_path / "good.tar", layout(tmp_path / "oci", ONE)).read_bytes()
    bad = tmp_path / "bad.tar"
    for length in range(0, len(good), 256):
        bad.write_bytes(good[:length])
        opens_or_fails(bad)
    dice = random.Random(1)
    for _ in range(300):
        data = bytearray(good)
        for _ in range(dice.randrange(1, 8)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        bad.write_bytes(data)
        opens_or_fails(bad)


def test_archive_with_negative_size_does_not_loop(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 11 + b"\x00"  # -256, base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(10240))
    fails(tmp_path / "x.tar")


def test_links_in_archives_may_go_round(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(layer(symlink("index.json", "b"), symlink("b", "index.json")))
    fails(path, "neither index.json nor manifest.json")
    path.write_bytes(layer(symlink("index.json", "/etc/passwd")))
    fails(path, "neither index.json nor manifest.json")


def test_extended_headers_of_archives_are_bounded(tmp_path: Path) -> None:
    """Python's reader holds them whole, and some versions read digits in quadratic time."""
    hostile = file("manifest.json", b"[]")
    hostile[0].pax_headers["comment"] = "1" * 10_000
    saved = tmp_path / "i.tar"
    saved.write_bytes(layer(hostile))
    assert fails(saved) == f"{saved}: extended header of 10015 bytes"


def test_an_index_of_many_entries(tmp_path: Path) -> None:
    made = Layout(tmp_path / "oci")
    made.refer(made.document({"manifests": [{}] * 10_001}, OCI_INDEX))
    assert fails(made.path).endswith(": more than 10000 manifests")
    made = Layout(tmp_path / "nested")
    other = {"platform": {"os": "linux", "architecture": "arm64"}}
    below = made.document({"manifests": [other] * 6000}, OCI_INDEX)
    made.refer(made.document({"manifests": [below, *[other] * 6000]}, OCI_INDEX))
    assert fails(made.path) == f"{made.path}: its indexes have more than 10000 entries"
