"""What is benchmarked: an image and a command, with parameters put in."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from ..config import Config
from ..errors import UsageError
from ..oci import open_image
from ..oci.reference import REGISTRY, parse_reference
from ..options import Options

PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
# Of the VM's options, those that change what is measured.
SHOWN = (
    "vcpus", "memory", "hugepages", "numa_node", "cpus", "prefault", "disk_rate", "env", "workdir",
    "user", "entrypoint", "privileged", "jail", "kernel", "entry", "cmdline_extra",
)  # fmt: skip


@dataclass
class Subject:
    """One benchmark to be: ``name`` is its name in the report."""

    name: str
    image: str
    command: list[str] | None
    params: dict[str, str] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    digest: str = ""
    shown: list[str] = field(default_factory=list)
    """the command as the report has it: the image's own if ``command`` is None"""


def subjects(
    images: Sequence[str | os.PathLike[str]],
    command: Sequence[str] | None,
    params: Mapping[str, Sequence[str]],
    options: Options,
    name: str | None = None,
) -> list[Subject]:
    """Every image with every set of parameters, named; UsageError for what cannot be meant.

    ``{x}`` in an image's name, in the command and in a value of the environment is replaced by the
    parameter x.
    """
    if not images:
        raise UsageError("which image? Give one or more")
    if name is not None and len(images) > 1:
        raise UsageError("--name names one image's benchmark, and there are several images")
    texts = [os.fspath(image) for image in images]
    environment = options.get("env", {})
    used = {
        key
        for text in (*texts, *(command or ()), *environment.values())
        for key in PLACE.findall(text)
    }
    for key, values in params.items():
        if key not in used:
            raise UsageError(f"parameter {key} is used nowhere: write {{{key}}} in the command")
        if not values or len(set(values)) < len(values):
            raise UsageError(f"parameter {key}: give it values that differ, as {key}=1,2,4")
    made = []
    for text in texts:
        for chosen in product(*params.values()):
            at = dict(zip(params, chosen, strict=True))
            image = _put(text, at)
            env = {key: _put(value, at) for key, value in environment.items()}
            words = None if command is None else [_put(word, at) for word in command]
            own: Options = {**options, "env": env}
            made.append(Subject(name or short(text), image, words, at, own))
    _tell_apart(made)
    return made


def resolve(subject: Subject, tell: Callable[[str], None] | None = None) -> None:
    """Find the image (pulled once, if it must be), its digest and what it will run.

    ``tell`` is called with a line when it takes long.
    """
    from ..config import program

    config = Config(subject.image, subject.command, **subject.options)
    with open_image(
        subject.image,
        platform=config.image_platform,
        pull=config.pull,
        limits=config.limits,
        progress=tell,
        bars=tell is not None,
    ) as image:
        subject.digest = image.digest
        subject.shown = program(config, image.config)
    if parse_reference(subject.image).transport == REGISTRY:
        subject.options["pull"] = "never"  # what is measured is this one to the end


def shown(subject: Subject) -> dict[str, str]:
    """Its VM's options, the defaults too: who leaves one out and who gives it mean the same.

    Of the environment the names only: reports are published, and values may be secrets.
    """
    config = Config(subject.image, subject.command, **subject.options)
    values = {name: getattr(config, name) for name in SHOWN}
    values |= {"memory": f"{config.memory_bytes / (1 << 20):.10g}M", "env": ", ".join(config.env)}
    return {name: str(value) for name, value in values.items() if value not in (None, "")}


def short(image: str) -> str:
    """A benchmark's name: the image's last word, without tag and digest, so that it stays."""
    path = image.partition("@")[0].rstrip("/")
    last = path.rpartition("/")[2].partition(":")[0] or path
    for suffix in (".tar.gz", ".tar.zst", ".tar"):
        last = last.removesuffix(suffix)
    return last


def _put(text: str, at: Mapping[str, str]) -> str:
    return PLACE.sub(lambda found: at.get(found[1], found[0]), text)


def _tell_apart(made: list[Subject]) -> None:
    names = [each.name for each in made]
    several = {
        each.name for each in made if len({o.image for o in made if o.name == each.name}) > 1
    }
    for each in made:
        if each.name in several:
            each.name = each.image
        if each.params:
            each.name += f" [{', '.join(f'{key}={value}' for key, value in each.params.items())}]"
    names = [each.name for each in made]
    for number, each in enumerate(made):
        if names.count(each.name) > 1:
            raise UsageError(f"image {made[number].image} is given twice: compare it by pyvmm duet")
