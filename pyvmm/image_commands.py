"""``pyvmm image …``: what is in the store, and what becomes of it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from . import disk_cache
from .arguments import Command, Option, Values
from .cli import say
from .errors import ImageError, PyvmmError, UsageError
from .oci import Image, open_image, with_image
from .oci.limits import parse_limits
from .oci.platform import parse_platform
from .oci.reference import parse_name, parse_reference
from .oci.save import FORMATS, save
from .oci.store import Name, Store
from .progress import display, quantity, short
from .vm_options import IMAGE_LIMIT, limit
from .whole_file import whole_file


def _pull(a: Values) -> int:
    (text,) = _words(a, "REF")
    from .oci.pull import pull  # the rest needs no network

    store = Store()
    with display(say, bars=True) as shown:
        limits = parse_limits(dict(limit(word) for word in a.image_limit))
        name = pull(parse_name(text), parse_platform(a.platform), store, shown, limits)
    print(name.digest)
    return 0


def _ls(a: Values) -> int:
    store = Store()
    rows = [(name, _size(store, name)) for name in store.names()]
    if a.json:
        print(json.dumps([vars(name) | {"size": size} for name, size in rows], indent=2))
        return 0
    table = [("REFERENCE", "DIGEST", "SIZE", "PULLED")]
    for name, size in rows:
        pulled = time.strftime("%Y-%m-%d %H:%M", time.localtime(name.pulled))
        table.append((name.reference, short(name.digest), quantity(size), pulled))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    return 0


def _size(store: Store, name: Name) -> int:
    """Bytes of the blobs that are there: of an index mostly one platform's."""
    size = 0
    for digest in store.reachable([name.digest]):
        try:
            size += os.stat(store.blob_path(digest)).st_size
        except FileNotFoundError:
            pass
    return size


def _inspect(a: Values) -> int:
    (text,) = _words(a, "REF")
    with open_image(text, platform=parse_platform(a.platform), pull="never") as image:
        print(json.dumps(_facts(text, image), indent=2))
    return 0


def _facts(text: str, image: Image) -> dict[str, Any]:
    return {
        "reference": str(parse_reference(text)),
        "digest": image.digest,
        "platform": str(image.platform),
        "config": vars(image.config),
        "layers": [
            {
                "digest": layer.digest,
                "size": layer.size,
                "diff_id": layer.diff_id,
                "media_type": layer.media_type,
            }
            for layer in image.layers
        ],
    }


def _rm(a: Values) -> int:
    if not a.words:
        raise UsageError("which image? See pyvmm image ls")
    store = Store()
    names = [str(parse_name(text)) for text in a.words]
    for name in names:
        if not store.find(name):
            raise ImageError(f"{name}: not in the store; see pyvmm image ls")
    before = store.used()
    for name in names:
        store.forget(name)
    unused = before - store.used()
    freed = _drop(lambda base: base.image in unused)
    try:
        freed += store.prune(parts=False)  # they are other images'
    except ImageError as error:  # the names are gone already: this is not to be done again
        say(f"{error}, by pyvmm image prune")
    return _freed(freed)


def _prune(_: Values) -> int:
    store = Store()
    freed = store.prune()  # first: it may not be allowed to
    used = store.used()
    freed += _drop(lambda base: base.image not in used)
    return _freed(freed + disk_cache.remove_leftovers())


def _drop(unwanted: Any) -> int:
    freed = 0
    for base in disk_cache.bases():
        if unwanted(base):
            disk_cache.remove(base)
            freed += base.used
    return freed


def _freed(size: int) -> int:
    say(f"freed {quantity(size)}")
    return 0


def _verify(_: Values) -> int:
    damaged = [f"blob {digest}" for digest in Store().verify()]
    for base in disk_cache.bases():
        if not disk_cache.is_intact(base):
            disk_cache.remove(base)
            damaged.append(f"disk {base.path}")
    for what in damaged:
        print(f"{what}: damaged; removed, and made again when it is needed")
    return 1 if damaged else 0


def _save(a: Values) -> int:
    text, path = _words(a, "REF", "FILE")
    reference = parse_reference(text)

    def write(image: Image) -> None:
        try:
            with _output(path) as file:
                save(image, reference, a.format, file)
        except OSError as error:
            raise PyvmmError(f"{path}: cannot be written: {error.strerror}") from None

    platform = parse_platform(a.platform)
    with_image(lambda: open_image(text, platform=platform, progress=say, bars=True), write)
    return 0


@contextmanager
def _output(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        if not sys.stdout or sys.stdout.isatty():
            raise UsageError("an archive is nothing for a terminal: give a FILE, or redirect")
        yield sys.stdout.buffer
        return
    with whole_file(path) as file:
        yield file


def _words(a: Values, *names: str) -> list[str]:
    if len(a.words) != len(names):
        raise UsageError(f"give {' and '.join(names)}, not {len(a.words)} words")
    return a.words


_PLATFORM = Option(
    "--platform", "PLATFORM", "default linux/amd64; or as linux/amd64/v3", "linux/amd64"
)

COMMANDS = (
    Command("image pull", "Get an image from a registry; prints its digest.", _pull,
            (_PLATFORM, IMAGE_LIMIT), words="REF"),
    Command("image ls", "What is in the store.", _ls, (Option("--json", "", "as JSON", False),)),
    Command("image inspect", "Show an image, of the store or a file, as JSON.", _inspect,
            (_PLATFORM,), words="REF"),
    Command("image rm", "Remove images, and what no other needs.", _rm, words="REF…"),
    Command("image prune", "Remove blobs and disks of no image in the store.", _prune),
    Command("image verify", "Read all blobs and disks; remove the damaged.", _verify),
    Command(
        "image save",
        "Write an image to one file; - is stdout.",
        _save,
        (
            _PLATFORM,
            Option("--format", "FORMAT", "oci-archive (default) or docker-archive", "oci-archive",
                   choices=FORMATS),
        ),
        words="REF FILE",
    ),
)  # fmt: skip
