"""Image references: where an image is, as people write it.

A transport and what it needs (containers-transports(5)), a registry's image by Docker's rules, or a
path. The grammar of names is github.com/distribution/reference's.
"""

from __future__ import annotations

import os

from pyvmm.errors import ImageError
from pyvmm.oci.blob import checked_digest
from pyvmm.record import Record

DEFAULT_REGISTRY = "docker.io"
REGISTRY = "registry"
PATH = "path"  # a bare path: what is there decides
_SKOPEO = "docker://"
_FILES = ("oci", "oci-archive", "docker-archive", "dir")
_ELSEWHERE = {  # transports of skopeo's that need a daemon or another tool's storage
    "docker-daemon": "docker save",
    "containers-storage": "podman save",
}
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_ALPHANUMERIC = _LOWER + "0123456789"
_WORD = _ALPHANUMERIC + _LOWER.upper() + "_"
_REPOSITORY_MAX = 255  # characters
_TAG_MAX = 128


class Reference(Record):
    """Where an image is. ``str()`` of it is canonical and can be parsed again."""

    transport: str
    """``registry``, ``oci``, ``oci-archive``, ``docker-archive``, ``dir``, or ``path``"""
    path: str = ""
    name: str = ""
    """which image of a layout or archive; "" if it has one only"""
    registry: str = ""
    """host[:port]"""
    repository: str = ""
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        if self.transport != REGISTRY:
            transport = "" if self.transport == PATH else f"{self.transport}:"
            return f"{transport}{self.path}" + (f":{self.name}" if self.name else "")
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


def parse_reference(image: str | os.PathLike[str]) -> Reference:
    """What ``image`` refers to. Raises ImageError if it can be nothing, or no file is there.

    What exists as a file or directory is a path; what looks like a path is nothing else, and
    neither is a PathLike.
    """
    text = os.fspath(image)
    transport, colon, rest = text.partition(":")
    if text is image and not os.path.lexists(text):
        if text.startswith(_SKOPEO):
            return parse_name(text)
        if colon and transport in _FILES:
            place, name = (rest, "") if transport == "dir" else _split(rest)
            if not _exists(place):
                raise ImageError(f"{rest}: no such image")
            return Reference(transport, place, name)
        if colon and transport in _ELSEWHERE:
            raise ImageError(
                f"{text}: {transport} cannot be read: write the image to a file with "
                f"`{_ELSEWHERE[transport]}`, and use docker-archive:FILE"
            )
    place, name = _split(text)
    if _exists(place):
        return Reference(PATH, place, name)
    if text is not image or text.startswith(("/", ".", "~")) or text.endswith("/"):
        raise ImageError(f"{text}: no such image")
    try:
        return parse_name(text)
    except ImageError as error:
        raise ImageError(f"{error}; nor is there such a file or directory") from None


def parse_name(text: str) -> Reference:
    """A registry's image by its name, as Docker completes it. Raises ImageError."""
    text = text.removeprefix(_SKOPEO)
    rest, at, digest = text.partition("@")
    name, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:  # a registry's port
        name, colon, tag = rest, "", ""
    registry, slash, repository = name.partition("/")
    if not (slash and _is_registry(registry)):
        registry, repository = DEFAULT_REGISTRY, name
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    wrong = _wrong(registry, repository, tag if colon else "latest")
    if len(name) == 64 and not name.strip("0123456789abcdef"):
        wrong = "it is an image's ID, which only the daemon that has it can resolve"
    if wrong:
        raise ImageError(f"{text[:300]!r} is no image of a registry: {wrong}")
    if at:
        checked_digest(digest, text[:300])
    if not colon and not at:
        tag = "latest"
    return Reference(REGISTRY, registry=registry, repository=repository, tag=tag, digest=digest)


def same_name(one: str, other: str) -> bool:
    """Whether both name the same image, as ``busybox`` and ``docker.io/library/busybox`` do."""
    try:
        return bool(one and other) and parse_name(one) == parse_name(other)
    except ImageError:
        return False


def _split(text: str) -> tuple[str, str]:
    """A path, and which image in it. Colons may be part of a path, so what exists decides."""
    places = [text]
    places += [text[:i] for i, char in enumerate(text) if char == ":" and i > 0]
    for place in places:
        if _exists(place):
            return place, text[len(place) + 1 :]
    return text, ""


def _exists(path: str) -> bool:
    return os.path.isdir(path) or os.path.isfile(path)


def _is_registry(word: str) -> bool:
    """Whether what is before the first slash is a host: Docker's rule."""
    return "." in word or ":" in word or word == "localhost" or word != word.lower()


def _wrong(registry: str, repository: str, tag: str) -> str:
    """What is wrong with the parts of a name; "" if nothing."""
    if not _is_host(registry):
        return f"{registry!r} is no host name"
    if len(repository) > _REPOSITORY_MAX:
        return f"its name is longer than {_REPOSITORY_MAX} characters"
    if repository != repository.lower():
        return f"{repository!r} must be in lower case"
    for component in repository.split("/"):
        if not _is_component(component):
            return f"{component!r} is not letters and digits with one of . _ __ - between"
    # The tag's first character is no separator.
    if not tag or tag.strip(_WORD + ".-") or tag[0] in ".-" or len(tag) > _TAG_MAX:
        return f"{tag!r} is no tag: at most {_TAG_MAX} of letters, digits and _ . -"
    return ""


def _is_component(text: str) -> bool:
    """Runs of letters and digits, with one ``.``, ``_``, ``__`` or any number of ``-`` between."""
    while "--" in text:
        text = text.replace("--", "-")
    runs = text.replace("__", "_").replace("_", ".").replace("-", ".").split(".")
    return all(run and not run.strip(_ALPHANUMERIC) for run in runs)


def _is_host(text: str) -> bool:
    """A name or address with a port or none. An IPv6 address is in brackets."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or not host or host.strip("0123456789abcdefABCDEF:"):
            return False
        if not port:
            return True
        port = port.removeprefix(":") if port[0] == ":" else ""
        return port.isascii() and port.isdecimal()
    host, colon, port = text.partition(":")
    if colon and not (port.isascii() and port.isdecimal()):
        return False
    allowed = _WORD.replace("_", "") + "-"
    return all(
        part and not part.strip(allowed) and "-" not in (part[0], part[-1])
        for part in host.split(".")
    )
