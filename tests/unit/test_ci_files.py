"""The GitHub Action, the GitLab template and the documentation's examples: linted, and run here.

The steps' shell runs as it is, with a pyvmm that measures without KVM; compare is the real one.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyvmm.arguments import parse
from pyvmm.benchmark.commands import COMMANDS
from pyvmm.benchmark.export import NAMES
from pyvmm.benchmark.model import Report

from .test_compare import report, series, steady

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
EXAMPLES = re.findall(
    r"```yaml\n(.*?)```", (ROOT / "docs/ci.md").read_text(encoding="utf-8"), re.DOTALL
)
yaml = pytest.importorskip("ruamel.yaml", reason="no ruamel.yaml: pip install 'pyvmm[dev]'")

BENCH = """#!{python}
import os, shutil, sys
with open("called", "a") as log:
    print(sys.argv[1:], file=log)
if sys.argv[1] == "compare":
    os.execv("{pyvmm}", ["pyvmm", *sys.argv[1:]])
print("::error::the table")
shutil.copy("measured.json", sys.argv[sys.argv.index("--json") + 1])
"""
LOG = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
[ "$(basename "$0")" != tee ] || cat >> "$LOG"
"""


def tool(name: str, mend: str) -> str:
    found = shutil.which(name, path=f"{BIN}:{os.environ['PATH']}")
    if not found:
        pytest.skip(f"no {name}: {mend}")
    return found


def lint(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "") or (
        done.stdout == "ok -- validation done\n"
    ), done.stdout + done.stderr


def action() -> dict[str, Any]:
    found: dict[str, Any] = yaml.YAML(typ="safe").load((ROOT / "action.yml").read_text())
    return found


def gitlab() -> dict[str, Any]:
    found: dict[str, Any] = yaml.YAML(typ="safe").load((ROOT / "ci/gitlab.yml").read_text())[
        ".pyvmm-bench"
    ]
    return found


def scripts() -> dict[str, str]:
    """All shell that is in the files, by a name for it."""
    steps = action()["runs"]["steps"]
    found = {step["name"]: step["run"] for step in steps}
    found["GitLab"] = "\n".join(gitlab()["before_script"] + gitlab()["script"])
    return found


def test_schemas(tmp_path: Path) -> None:
    check = tool("check-jsonschema", "pip install 'pyvmm[dev]'")
    lint(check, "--builtin-schema", "vendor.github-actions", str(ROOT / "action.yml"))
    lint(check, "--builtin-schema", "vendor.gitlab-ci", str(ROOT / "ci/gitlab.yml"))
    kinds = ["github-workflows", "github-workflows", "gitlab-ci"]
    for kind, text in zip(kinds, EXAMPLES, strict=True):
        path = tmp_path / "example.yml"
        path.write_text(text)
        lint(check, "--builtin-schema", f"vendor.{kind}", str(path))


@pytest.mark.parametrize("number", [0, 1])
def test_actionlint(tmp_path: Path, number: int) -> None:
    """The examples, with this action's inputs and outputs."""
    check = tool("actionlint", "make lint gets it, with go")
    shell = shutil.which("shellcheck", path=f"{BIN}:{os.environ['PATH']}") or ""
    (tmp_path / ".git").mkdir()
    shutil.copy(ROOT / "action.yml", tmp_path)
    path = tmp_path / ".github/workflows/example.yml"
    path.parent.mkdir(parents=True)
    path.write_text(EXAMPLES[number].replace("OWNER/pyvmm@main", "./"))
    lint(check, "-shellcheck", shell, "-pyflakes", "", str(path))


@pytest.mark.parametrize("name", sorted(scripts()))
def test_shellcheck(tmp_path: Path, name: str) -> None:
    check = tool("shellcheck", "pip install 'pyvmm[dev]'")
    path = tmp_path / "script"
    path.write_text(scripts()[name])
    lint(check, "--shell=bash", str(path))


class Job:
    """A folder in which steps run, with tools that say how they were called."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bin = path / "bin"
        self.bin.mkdir()
        self.fake("pyvmm", BENCH.format(python=sys.executable, pyvmm=BIN / "pyvmm"))
        self.save("measured.json", 2.0)
        self.files = {
            name: path / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_PATH")
        }

    def fake(self, name: str, text: str = LOG) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def save(self, name: str, value: float) -> None:
        report(time=series(steady(value))).save(self.path / name)

    def inputs(self, **given: str) -> dict[str, str]:
        defaults = {k: each.get("default", "") for k, each in action()["inputs"].items()}
        return defaults | given

    def step(self, name: str, inputs: dict[str, str], **options: Any) -> tuple[int, str]:
        """As a runner does: `shell: bash`, the step's env with its expressions filled in."""
        (step,) = (each for each in action()["runs"]["steps"] if each["name"] == name)
        env = {
            key: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda at: inputs[at[1]], str(value))
            for key, value in step["env"].items()
        }
        return self.shell(step["run"], env | options.pop("env", {}), **options)

    def shell(self, script: str, env: dict[str, str], **options: Any) -> tuple[int, str]:
        script_path = self.path / "step.sh"
        script_path.write_text(script)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script_path)],
            cwd=self.path,
            env=clean
            | {key: str(path) for key, path in self.files.items()}
            | {
                "PATH": f"{self.bin}:{os.environ['PATH']}",
                "RUNNER_TEMP": str(self.path),
                "LOG": str(self.path / "log"),
                "PYTHONUTF8": "1",
            }
            | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            **options,
        )
        return done.returncode, done.stdout

    def called(self) -> list[str]:
        return (self.path / "called").read_text().splitlines()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_the_bench_step(job: Job) -> None:
    inputs = job.inputs(
        image="oci/ 'b c'", command='sh -c "a  b"', options="--vcpus 2 --env X='y z'"
    )
    code, out = job.step("Benchmark", inputs)
    first, table, last = out.splitlines()
    token = first.removeprefix("::stop-commands::")
    assert (code, len(token), table, last) == (0, 32, "::error::the table", f"::{token}::")
    assert job.called() == [
        "['bench', 'oci/', 'b c', '--runs', '10', '--json', 'pyvmm-bench.json', '--vcpus', '2',"
        " '--env', 'X=y z', '--', 'sh', '-c', 'a  b']"
    ]
    assert job.files["GITHUB_STEP_SUMMARY"].read_text() == "    ::error::the table\n"
    assert job.files["GITHUB_OUTPUT"].read_text() == "report=pyvmm-bench.json\n"
    assert Report.load(job.path / "pyvmm-bench.json").benchmarks[0].name == "a"


def test_the_image_says_what_runs(job: Job) -> None:
    assert job.step("Benchmark", job.inputs(image="oci/"))[0] == 0
    assert job.called() == ["['bench', 'oci/', '--runs', '10', '--json', 'pyvmm-bench.json']"]


@pytest.mark.parametrize("name", ["image", "command", "options"])
def test_a_quote_that_does_not_end(job: Job, name: str) -> None:
    code, out = job.step("Benchmark", job.inputs(image="oci/") | {name: "a 'b"})
    assert (code, out.startswith("xargs: unmatched single quote")) == (1, True)
    assert not (job.path / "called").exists()


def test_a_bench_that_fails(job: Job) -> None:
    job.fake("pyvmm", "#!/bin/sh\nexit 3\n")
    code, out = job.step("Benchmark", job.inputs(image="oci/"))
    assert code == 3
    first, last = out.splitlines()
    assert last == f"::{first.removeprefix('::stop-commands::')}::"
    assert not job.files["GITHUB_OUTPUT"].exists()


@pytest.mark.parametrize(
    ("before", "more", "code", "found"),
    [
        (1.0, {}, 1, "1 regression; 99% intervals, threshold 5%"),
        (2.0, {}, 0, "1 same; 99% intervals, threshold 5%"),
        (1.0, {"threshold": "5% time=100%"}, 0, "1 same; 99% intervals, threshold 100%"),
        (1.0, {"metrics": "time", "strict": "true"}, 1,
         "1 regression; 99% intervals, threshold 5%"),
    ],
)  # fmt: skip
def test_the_compare_step(
    job: Job, before: float, more: dict[str, str], code: int, found: str
) -> None:
    job.save("old.json", before)
    job.save("pyvmm-bench.json", 2.0)
    inputs = job.inputs(image="oci/", baseline="old.json", **more)
    assert job.step("Compare", inputs, env={"GITHUB_ACTIONS": "true"})[0] == code
    text = (job.path / "pyvmm-compare.md").read_text()
    assert text.splitlines()[0] == f"### Benchmarks: {found}"
    assert job.files["GITHUB_STEP_SUMMARY"].read_text() == text
    assert job.files["GITHUB_OUTPUT"].read_text() == "comparison=pyvmm-compare.md\n"


def test_compare_options(job: Job) -> None:
    job.save("old.json", 2.0)
    job.save("pyvmm-bench.json", 2.0)
    more = {"threshold": "1% 't*=2%'", "metrics": "time 'u v'", "strict": "true"}
    assert job.step("Compare", job.inputs(baseline="old.json", **more))[0] == 3  # no metric 'u v'
    assert job.called() == [
        "['compare', 'old.json', 'pyvmm-bench.json', '--markdown', 'pyvmm-compare.md',"
        " '--threshold', '1%', '--threshold', 't*=2%', '--metric', 'time', '--metric', 'u v',"
        " '--strict']"
    ]


def test_no_baseline_yet(job: Job) -> None:
    assert job.step("Compare", job.inputs(baseline="old.json")) == (
        0, "::notice title=pyvmm::no baseline old.json yet: nothing is compared\n",
    )  # fmt: skip
    assert not job.files["GITHUB_OUTPUT"].exists()


def test_no_kvm(job: Job) -> None:
    assert job.step("Check /dev/kvm", {}, env={"KVM": "/nowhere"}) == (
        1,
        "::error title=pyvmm::no /nowhere here: use an x86-64 Linux runner with KVM;"
        " in a container, give it --device /nowhere\n",
    )


def test_kvm_at_hand(job: Job) -> None:
    (job.path / "kvm").touch()
    assert job.step("Check /dev/kvm", {}, env={"KVM": str(job.path / "kvm")}) == (0, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: nobody to run a step as")
@pytest.mark.parametrize("mended", [True, False])
def test_kvm_of_root_only(job: Job, mended: bool, request: pytest.FixtureRequest) -> None:
    """The udev rule, by an unprivileged user; udevadm here lets everybody in, or does not."""
    kvm = job.path / "kvm"
    kvm.touch(0o600)
    os.chown(kvm, 65534, 65534)
    kvm.chmod(0o000)
    for path in (job.path, *job.path.parents):
        if path.owner() == "root" and not (mode := path.stat().st_mode) & 0o1:
            path.chmod(mode | 0o11)
            request.addfinalizer(partial(path.chmod, mode))
    (job.path / "log").touch()
    (job.path / "log").chmod(0o666)
    job.fake("sudo", '#!/bin/sh\nexec "$@"\n')
    job.fake("tee")
    job.fake("udevadm", LOG + (f'[ "$1" != trigger ] || chmod 600 {kvm}\n' if mended else ""))
    code, out = job.step("Check /dev/kvm", {}, env={"KVM": str(kvm)}, user=65534, group=65534)
    assert (code, out) == (
        (0, "") if mended
        else (1, f"::error title=pyvmm::{kvm} is still not writable for nobody\n")
    )  # fmt: skip
    assert (job.path / "log").read_text().splitlines() == [
        "tee /etc/udev/rules.d/99-pyvmm-kvm.rules",
        'KERNEL=="kvm", GROUP="kvm", MODE="0666", OPTIONS+="static_node=kvm"',
        "udevadm control --reload-rules",
        "udevadm trigger --name-match=kvm --settle",
    ]


@pytest.mark.parametrize(("package", "installed"), [("", "/action"), ("pyvmm==1", "pyvmm==1")])
def test_the_install_step(job: Job, package: str, installed: str) -> None:
    venv = job.path / "pyvmm"
    job.fake("sudo", '#!/bin/sh\nexec "$@"\n')
    job.fake("apt-get")
    make = f'mkdir -p {venv}/bin; cp {job.bin}/apt-get {venv}/bin/pip; echo "python3 $*" >> "$LOG"'
    job.fake("python3", f"#!/bin/sh\n{make}\n")
    env = {"GITHUB_ACTION_PATH": "/action"}
    assert job.step("Install pyvmm", job.inputs(package=package), env=env) == (0, "")
    update, install, *rest = (job.path / "log").read_text().splitlines()
    assert update == "apt-get update -q"
    assert install == (
        "apt-get install -q -y --no-install-recommends"
        " gcc make libc6-dev libext2fs-dev pkg-config python3-dev python3-venv"
    )
    assert rest == [f"python3 -m venv {venv}", f"pip install --quiet {installed}"]
    assert job.files["GITHUB_PATH"].read_text() == f"{venv}/bin\n"


def test_gitlab(job: Job) -> None:
    job.save("old.json", 1.0)
    given = {"PYVMM_IMAGE": "oci/", "PYVMM_COMMAND": "sh -c 'a b'", "PYVMM_BASELINE": "old.json"}
    script = "\n".join(gitlab()["script"])
    assert job.shell(script, gitlab()["variables"] | given)[0] == 1
    assert job.called() == [
        "['bench', 'oci/', '--runs', '10', '--json', 'pyvmm-bench.json', '--export',"
        " 'junit=pyvmm-junit.xml', '--export', 'openmetrics=pyvmm-metrics.txt', '--', 'sh', '-c',"
        " 'a b']",
        "['compare', 'old.json', 'pyvmm-bench.json', '--markdown', 'pyvmm-compare.md',"
        " '--threshold', '5%']",
    ]
    first = (job.path / "pyvmm-compare.md").read_text().splitlines()[0]
    assert first == "### Benchmarks: 1 regression; 99% intervals, threshold 5%"
    (job.path / "old.json").unlink()
    assert job.shell(script, gitlab()["variables"] | given) == (
        0, "::error::the table\nno baseline old.json yet: nothing is compared\n",
    )  # fmt: skip
    assert job.shell(script, gitlab()["variables"]) == (0, "::error::the table\n")


def test_bench_knows_these_options(job: Job) -> None:
    script = "\n".join(gitlab()["script"])
    given = {"PYVMM_IMAGE": "oci/", "PYVMM_OPTIONS": "--vcpus 2", "PYVMM_COMMAND": "sh -c 'a b'"}
    assert job.shell(script, gitlab()["variables"] | given)[0] == 0
    _, values = parse("pyvmm", COMMANDS, ast.literal_eval(job.called()[0]))
    assert (values.runs, values.json, values.vcpus) == (10, "pyvmm-bench.json", 2)
    assert values.export == ["junit=pyvmm-junit.xml", "openmetrics=pyvmm-metrics.txt"]
    assert (values.words, values.tail) == (["oci/", "sh", "-c", "a b"], ["sh", "-c", "a b"])


def test_gitlabs_reports_are_formats_of_export() -> None:
    assert {"junit", "openmetrics"} <= set(NAMES)
    assert gitlab()["artifacts"]["reports"] == {
        "junit": "pyvmm-junit.xml", "metrics": "pyvmm-metrics.txt",
    }  # fmt: skip
