"""Which benchmarks an invocation means, and their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.benchmark.subject import Subject, resolve, short, shown, subjects
from pyvmm.errors import ImageError, UsageError

from . import images


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("debian", "debian"),
        ("docker.io/library/debian:12", "debian"),
        ("ghcr.io/a/b@sha256:0", "b"),
        ("localhost:5000/x", "x"),
        ("build/oci/", "oci"),
        ("app.tar", "app"),
        ("dir/app.tar.gz:1", "app"),
        ("oci:a/b:latest", "b"),
    ],
)
def test_a_name_stays_when_the_tag_changes(image: str, name: str) -> None:
    assert short(image) == name


def test_every_image_with_every_parameter() -> None:
    made = subjects(
        ["a", "b"], ["x", "{n}", "{m}", "{other}"], {"n": ["1", "2"], "m": ["z"]}, {"vcpus": 2}
    )
    assert [(each.name, each.image, each.command) for each in made] == [
        ("a [n=1, m=z]", "a", ["x", "1", "z", "{other}"]),
        ("a [n=2, m=z]", "a", ["x", "2", "z", "{other}"]),
        ("b [n=1, m=z]", "b", ["x", "1", "z", "{other}"]),
        ("b [n=2, m=z]", "b", ["x", "2", "z", "{other}"]),
    ]
    assert [each.options for each in made] == [{"vcpus": 2, "env": {}}] * 4


def test_parameters_of_tag_and_environment() -> None:
    made = subjects(["app:{tag}"], None, {"tag": ["1", "2"]}, {"env": {"TAG": "v{tag}"}})
    assert [(each.name, each.image, each.options["env"]) for each in made] == [
        ("app:1 [tag=1]", "app:1", {"TAG": "v1"}),
        ("app:2 [tag=2]", "app:2", {"TAG": "v2"}),
    ]


def test_names() -> None:
    assert [each.name for each in subjects(["x/a:1", "y/a:2"], None, {}, {})] == ["x/a:1", "y/a:2"]
    assert [each.name for each in subjects(["a:1"], None, {}, {}, "mine")] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], None, {}, {}), "which image? Give one or more"),
        ((["a"], ["x"], {"n": ["1"]}, {}),
         "parameter n is used nowhere: write {n} in the command"),
        ((["a"], ["{n}"], {"n": ["1", "1"]}, {}),
         "parameter n: give it values that differ, as n=1,2,4"),
        ((["a"], ["{n}"], {"n": []}, {}), "parameter n: give it values that differ, as n=1,2,4"),
        ((["a", "a"], None, {}, {}), "image a is given twice: compare it by pyvmm duet"),
        ((["a", "b"], None, {}, {}, "n"),
         "--name names one image's benchmark, and there are several images"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UsageError) as error:
        subjects(*arguments)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_what_an_image_will_run(tmp_path: Path) -> None:
    layout = images.layout(
        tmp_path / "i", images.layer(images.directory("./")), Entrypoint=["a"], Cmd=["b"]
    )
    (one,) = subjects([layout], None, {}, {})
    resolve(one)
    assert one.shown == ["a", "b"]
    assert len(one.digest) == len("sha256:") + 64
    assert "pull" not in one.options


def test_no_image(tmp_path: Path) -> None:
    (one,) = subjects([f"{tmp_path}/none"], None, {}, {})
    with pytest.raises(ImageError):
        resolve(one)


def test_what_is_shown_of_the_vm() -> None:
    """The same, given or left out; no value of the environment."""
    plain = shown(Subject("a", "image", None))
    given = Subject("a", "image", None, options={"memory": "512M", "vcpus": 1, "user": None})
    assert shown(given) == plain
    assert plain == {
        "vcpus": "1", "memory": "512M", "prefault": "False", "privileged": "False", "jail": "on",
        "entry": "linux64",
    }  # fmt: skip
    secret = Subject("a", "image", None, options={"env": {"TOKEN": "secret", "N": "4"}})
    assert shown(secret)["env"] == "TOKEN, N"
