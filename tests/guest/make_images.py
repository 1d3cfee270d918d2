"""Makes the images of the guest tests: ``make_images.py DIRECTORY``.

On the host, because the box has neither a compiler nor a fast CPU. Needs gcc with a static libc,
busybox-static, umoci and skopeo; and for the images whose trees are compared root, buildah and
debootstrap. A directory that was made from the same sources stays as it is.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "unit")]

import benchmark_images  # noqa: E402
import debian_images  # noqa: E402
import images  # noqa: E402
import tree_images  # noqa: E402
from images import Layout, directory, file, hard_link, layer, opaque, symlink, whiteout  # noqa: E402
from reference import run  # noqa: E402
from tree_layers import CAPABILITY  # noqa: E402

SOURCES = (
    HERE / "make_images.py",
    HERE / "probe.c",
    HERE / "hostile.c",
    HERE / "vsock.c",
    HERE / "facts",
    HERE / "tree_images.py",
    HERE / "tree_layers.py",
    HERE / "reference.py",
    HERE / "debian_images.py",
    HERE / "benchmark_images.py",
    HERE / "benchmark_google.cc",
    HERE / "benchmark_pytest.py",
    HERE / "lister.c",
    HERE.parent / "unit/images.py",
)
FLOOD_MIB = 64
PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"
GROUP = b"root:x:0:\napp:x:1000:\naudio:x:29:app\nvideo:x:44:root,app\nstaff:x:50:root\n"


def main() -> None:
    target = Path(sys.argv[1])
    sources = b"".join(path.read_bytes() for path in SOURCES)
    digest = f"{hashlib.sha256(sources).hexdigest()} {os.geteuid()}"
    stamp = target / "stamp"
    if stamp.exists() and stamp.read_text() == digest:
        return
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    make(target)
    stamp.write_text(digest)


def make(target: Path) -> None:
    probe = target / "probe"
    run("gcc", "-static", "-O2", "-Wall", "-Werror", "-s", "-o", probe, HERE / "probe.c")
    root = layer(*tree(probe.read_bytes()))
    images.layout(target / "shell", root, Cmd=["/bin/sh"])
    facts = {"Env": ["MY_VAR=test_value"], "WorkingDir": "/app", "Cmd": ["facts"]}
    with_program(target / "hostile", root)
    with_program(target / "vsock", root)
    images.layout(target / "numbers", root, User="1000:1000", **facts)
    images.layout(target / "names", root, User="app", **facts)
    images.layout(target / "docker-rules", root, Entrypoint=["echo", "from"], Cmd=["the", "image"])
    images.layout(target / "no-command", root)
    layers(target / "layers", root)
    images.archive(target / "layers.tar", target / "layers")
    umoci(target / "umoci", root)
    run("skopeo", "--insecure-policy", "copy", "-q", f"oci:{target}/umoci:latest",
        f"docker-archive:{target}/docker.tar:demo:1")  # fmt: skip
    bad(target / "bad", root)
    if os.geteuid() == 0:  # only root unpacks a tree with its owners and devices
        tree_images.make(target / "trees")
        debian_images.make(target / "trees")
        benchmark_images.make(target / "trees" / "benchmarks")
    (target / "flood.json").write_text(json.dumps(flood(probe)))


def with_program(path: Path, root: bytes) -> None:
    """The C program of the image's name, in /bin."""
    program, source = path.with_suffix(".program"), HERE / f"{path.name}.c"
    words = ("-static", "-O2", "-Wall", "-Werror", "-s")
    run("gcc", *words, "-o", program, source)
    images.layout(path, root, layer(file(f"bin/{path.name}", program.read_bytes(), mode=0o755)))
    program.unlink()


def tree(probe: bytes) -> list[images.Entry]:
    """Debian's busybox with a link for each of its applets, and what the tests need beside it."""
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    applets = run("busybox", "--list").split()
    return [
        directory("bin"),
        file("bin/busybox", busybox, mode=0o755),
        *(symlink(f"bin/{name}", "busybox") for name in applets if name != "busybox"),
        file("bin/probe", probe, mode=0o755),
        file("bin/facts", (HERE / "facts").read_bytes(), mode=0o755),
        directory("etc"),
        file("etc/passwd", PASSWD),
        file("etc/group", GROUP),
        file("etc/data", b"not a program\n"),
        directory("home"),
        directory("home/app", uid=1000, gid=1000),
        directory("root", mode=0o700),
        directory("tmp", mode=0o1777),
    ]


def layers(path: Path, root: bytes) -> None:
    """Plain, gzip, zstd; what is removed, replaced and linked between them; owners, xattrs."""
    from backports import zstd

    second = layer(
        directory("data", mode=0o750, uid=7, gid=8),
        file("data/gone", b"gone\n"),
        file("data/kept", b"kept\n", mode=0o640, uid=1000, gid=44),
        file("data/changed", b"first\n"),
        directory("opaque"),
        file("opaque/below", b"below\n"),
        file("data/suid", b"#!/bin/sh\n", mode=0o4755),
        file(
            "data/capable",
            b"x",
            xattrs={"user.note": b"\x00\xffnote", "security.capability": CAPABILITY},
        ),
    )
    third = layer(
        whiteout("data/gone"),
        file("data/changed", b"second\n"),
        opaque("opaque"),
        file("opaque/above", b"above\n"),
        hard_link("data/linked", "data/kept"),
        symlink("data/pointer", "kept"),
        file("data/ünï", b"unicode\n"),
    )
    made = Layout(path)
    config = made.configuration([root, second, third], Cmd=["/bin/sh"])
    made.refer(
        made.manifest(
            made.document(config, images.OCI_CONFIG),
            [
                made.blob(root, images.OCI_LAYER),
                made.blob(gzip.compress(second, mtime=0), f"{images.OCI_LAYER}+gzip"),
                made.blob(zstd.compress(third), f"{images.OCI_LAYER}+zstd"),
            ],
        )
    )


def umoci(path: Path, root: bytes) -> None:
    run("umoci", "init", "--layout", path)
    run("umoci", "new", "--image", f"{path}:latest")
    archive = path.with_suffix(".layer")
    archive.write_bytes(root)
    run("umoci", "raw", "add-layer", "--image", f"{path}:latest", archive)
    run("umoci", "config", "--image", f"{path}:latest", "--config.cmd", "echo",
        "--config.cmd", "made by umoci")  # fmt: skip
    archive.unlink()


def bad(path: Path, root: bytes) -> None:
    path.mkdir()
    (path / "not-a-layout").mkdir()
    (path / "not-an-archive").write_bytes(b"neither tar nor image\n" * 100)
    images.layout(path / "arm64", root, arch="arm64")

    def spoiled(name: str, change: Callable[[bytes], bytes]) -> None:
        images.layout(path / name, root, Cmd=[name])  # another digest: its disk is in no cache
        blob = max((path / name / "blobs/sha256").iterdir(), key=lambda p: p.stat().st_size)
        blob.write_bytes(change(blob.read_bytes()))

    spoiled("damaged", lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    spoiled("short", lambda data: data[:-1])
    made = Layout(path / "layer-type")
    config = made.document(made.configuration([root]), images.OCI_CONFIG)
    made.refer(made.manifest(config, [made.blob(root, "application/vnd.example.squashfs")]))
    (path / "hello.c").write_text("int main(void) { return 0; }\n")
    run("gcc", "-static", "-o", path / "not-a-kernel.elf", path / "hello.c")


def flood(probe: Path) -> dict[str, str]:
    """The digests of what ``probe flood`` writes."""
    process = subprocess.Popen(
        [probe, "flood", str(FLOOD_MIB)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = process.communicate(timeout=60)
    assert len(out) == len(err) == FLOOD_MIB << 20
    return {"stdout": hashlib.sha256(out).hexdigest(), "stderr": hashlib.sha256(err).hexdigest()}


if __name__ == "__main__":
    main()
