"""References: Docker's names, skopeo's transports, paths; and the platforms they are chosen by."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.errors import ImageError, UsageError
from pyvmm.oci.fields import Fields
from pyvmm.oci.platform import Platform, parse_platform, suitable
from pyvmm.oci.reference import Reference, parse_reference

A = "sha256:" + "a" * 64


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("busybox", "docker.io", "library/busybox", "latest", ""),
        ("busybox:1.36", "docker.io", "library/busybox", "1.36", ""),
        ("docker.io/library/busybox:1.36", "docker.io", "library/busybox", "1.36", ""),
        ("docker.io/busybox", "docker.io", "library/busybox", "latest", ""),
        ("index.docker.io/busybox", "docker.io", "library/busybox", "latest", ""),
        ("docker://busybox", "docker.io", "library/busybox", "latest", ""),
        ("docker://localhost:5000/x:y", "localhost:5000", "x", "y", ""),
        ("a/b", "docker.io", "a/b", "latest", ""),
        ("a/b/c", "docker.io", "a/b/c", "latest", ""),
        (f"ghcr.io/a/b@{A}", "ghcr.io", "a/b", "", A),
        (f"a/b:tag@{A}", "docker.io", "a/b", "tag", A),
        (f"busybox@sha512:{'0' * 128}", "docker.io", "library/busybox", "", f"sha512:{'0' * 128}"),
        ("localhost/x", "localhost", "x", "latest", ""),
        ("localhost:5000/x:y", "localhost:5000", "x", "y", ""),
        ("localhost:5000", "docker.io", "library/localhost", "5000", ""),
        ("Host/x", "Host", "x", "latest", ""),
        ("host/x", "docker.io", "host/x", "latest", ""),
        ("host:80/x", "host:80", "x", "latest", ""),
        ("127.0.0.1:5000/x", "127.0.0.1:5000", "x", "latest", ""),
        ("[::1]:5000/x:y", "[::1]:5000", "x", "y", ""),
        ("[2001:db8::1]/x/y", "[2001:db8::1]", "x/y", "latest", ""),
        ("a-b.example.org/a__b/c.d_e---f", "a-b.example.org", "a__b/c.d_e---f", "latest", ""),
        ("x:_", "docker.io", "library/x", "_", ""),
        ("x:" + "A" * 128, "docker.io", "library/x", "A" * 128, ""),
        ("a/" + "b" * 253, "docker.io", "a/" + "b" * 253, "latest", ""),
        ("a" * 63, "docker.io", "library/" + "a" * 63, "latest", ""),
    ],
)  # fmt: skip
def test_names(text: str, registry: str, repository: str, tag: str, digest: str) -> None:
    found = parse_reference(text)
    assert found == Reference(
        "registry", registry=registry, repository=repository, tag=tag, digest=digest
    )
    assert parse_reference(str(found)) == found


def test_canonical() -> None:
    assert str(parse_reference("busybox:1.36")) == "docker.io/library/busybox:1.36"
    assert str(parse_reference(f"a/b@{A}")) == f"docker.io/a/b@{A}"
    assert str(parse_reference(f"a/b:c@{A}")) == f"docker.io/a/b:c@{A}"


NAME = "is not letters and digits with one of . _ __ - between"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", f"'' {NAME}"),
        ("BusyBox", "'library/BusyBox' must be in lower case"),
        ("host.org/A", "'A' must be in lower case"),
        ("a//b", f"'' {NAME}"),
        ("-a", f"'-a' {NAME}"),
        ("a-", f"'a-' {NAME}"),
        ("a..b", f"'a..b' {NAME}"),
        ("a___b", f"'a___b' {NAME}"),
        ("a_-b", f"'a_-b' {NAME}"),
        ("a b", f"'a b' {NAME}"),
        ("ä", f"'ä' {NAME}"),
        ("a\n", f"'a\\n' {NAME}"),
        ("a\0", f"'a\\x00' {NAME}"),
        ("a/../../etc/passwd", f"'..' {NAME}"),
        ("http://host/x", "'http:' is no host name"),
        ("x:", "'' is no tag: at most 128 of letters, digits and _ . -"),
        ("x:-a", "'-a' is no tag: at most 128 of letters, digits and _ . -"),
        ("x:a b", "'a b' is no tag: at most 128 of letters, digits and _ . -"),
        ("x:" + "a" * 129, f"'{'a' * 129}' is no tag: at most 128 of letters, digits and _ . -"),
        ("a/" + "b" * 254, "its name is longer than 255 characters"),
        ("host_.org/x", "'host_.org' is no host name"),
        ("-h.org/x", "'-h.org' is no host name"),
        ("h..org/x", "'h..org' is no host name"),
        ("host:/x", "'host:' is no host name"),
        ("host:x/x", "'host:x' is no host name"),
        ("host:80:80/x", "'host:80:80' is no host name"),
        ("[::1]x/x", "'[::1]x' is no host name"),
        ("[::1]:/x", "'[::1]:' is no host name"),
        ("[::g]/x", "'[::g]' is no host name"),
        ("[::1/x", "'[::1' is no host name"),
        ("0" * 64, "it is an image's ID, which only the daemon that has it can resolve"),
    ],
)
def test_what_is_no_name(text: str, why: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse_reference(text)
    assert str(caught.value) == (
        f"{text!r} is no image of a registry: {why}; nor is there such a file or directory"
    )


@pytest.mark.parametrize("digest", ["", "sha256", "sha256:0", "md5:" + "0" * 32, A.upper()])
def test_what_is_no_digest(digest: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse_reference(f"docker://a@{digest}")
    assert str(caught.value) == f"a@{digest}: {digest!r} is not a sha256 or sha512 digest"


def test_transports(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d:e").mkdir()
    (tmp_path / "f").touch()
    assert parse_reference("oci:d") == Reference("oci", "d")
    assert parse_reference("oci:d:a:b") == Reference("oci", "d", "a:b")
    assert parse_reference("oci:d:e") == Reference("oci", "d:e")
    assert parse_reference("oci:d:e:x") == Reference("oci", "d", "e:x")
    assert parse_reference("oci-archive:f:x") == Reference("oci-archive", "f", "x")
    assert parse_reference("docker-archive:f:busybox:1.36") == Reference(
        "docker-archive", "f", "busybox:1.36"
    )
    assert parse_reference("docker-archive:f:@0") == Reference("docker-archive", "f", "@0")
    assert parse_reference(f"dir:{tmp_path}/d") == Reference("dir", f"{tmp_path}/d")
    for text in ("oci:d:a:b", "dir:d", "d:x", "docker-archive:f:busybox:1.36"):
        assert str(parse_reference(text)) == text


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "busybox").mkdir()
    (tmp_path / "oci:x").mkdir()
    assert parse_reference("busybox") == Reference("path", "busybox")
    assert parse_reference("busybox:1") == Reference("path", "busybox", "1")
    assert parse_reference("docker://busybox").transport == "registry"
    assert parse_reference("docker.io/busybox").transport == "registry"
    assert parse_reference("oci:x") == Reference("path", "oci:x")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/none", "/none"),
        ("./none", "./none"),
        ("../none:x", "../none:x"),
        (".none", ".none"),
        ("~/none", "~/none"),
        ("none/", "none/"),
        ("oci:none", "none"),
        ("oci-archive:none:x", "none:x"),
        ("dir:none", "none"),
        ("docker-archive:", ""),
    ],
)
def test_no_such_file(text: str, path: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse_reference(text)
    assert str(caught.value) == f"{path}: no such image"


def test_images_of_daemons() -> None:
    with pytest.raises(ImageError) as caught:
        parse_reference("docker-daemon:busybox:latest")
    assert str(caught.value) == (
        "docker-daemon:busybox:latest: docker-daemon cannot be read: write the image to a file "
        "with `docker save`, and use docker-archive:FILE"
    )


def test_platforms() -> None:
    assert parse_platform("linux/amd64") == Platform("linux", "amd64", "")
    assert parse_platform("linux/arm/v7") == Platform("linux", "arm", "v7")
    assert str(parse_platform("linux/amd64/v3")) == "linux/amd64/v3"
    for text in ("", "linux", "linux/", "/amd64", "linux/amd64/v1/x", "linux//v1"):
        with pytest.raises(UsageError) as caught:
            parse_platform(text)
        assert str(caught.value) == (
            f"platform {text!r}: write it as linux/amd64 or linux/amd64/v3"
        )


@pytest.mark.parametrize(
    ("wanted", "offered", "order"),
    [
        ("linux/amd64", "linux/amd64 linux/amd64/v1", "linux/amd64 linux/amd64/v1"),
        ("linux/amd64", "linux/amd64/v2 linux/arm64 linux/amd64/v1", "linux/amd64/v1"),
        ("linux/amd64", "windows/amd64 linux/386 unknown/unknown linux/amd64/v2", ""),
        (
            "linux/amd64/v3",
            "linux/amd64 linux/amd64/v4 linux/amd64/v2 linux/amd64/v3",
            "linux/amd64/v3 linux/amd64/v2 linux/amd64",
        ),
        ("linux/arm64", "linux/arm64/v8 linux/arm64", "linux/arm64/v8 linux/arm64"),
        ("linux/arm/v6", "linux/arm/v7 linux/arm/v5 linux/arm/v6", "linux/arm/v6 linux/arm/v5"),
        ("linux/amd64/x", "linux/amd64/v1 linux/amd64/x", "linux/amd64/x"),
        ("linux/amd64", "- linux/amd64 linux/arm64 -", "linux/amd64 - -"),
        ("linux/amd64/v2", "linux/amd64/v" + "9" * 5000 + " linux/amd64/v²", ""),
    ],
)
def test_which_entries_suit(wanted: str, offered: str, order: str) -> None:
    entries = []
    for word in offered.split():
        platform = dict(zip(("os", "architecture", "variant"), word.split("/"), strict=False))
        entry = {"annotations": {"word": word}, "platform": None if word == "-" else platform}
        entries.append(Fields(entry, "x"))
    chosen = suitable(entries, parse_platform(wanted))
    assert " ".join(entry.object("annotations").text("word") for entry in chosen) == order
